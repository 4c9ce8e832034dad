"""h(q) in vLLM: the decoder's own layers over texts without their images, beside the paged KV cache.

One packed run a step over the texts that go on in it, up to the last fused layer: no padding but inside attention, the
text with the most layers first, so that shorter runs drop off at the end. The decoder's layers are called as they
are; only their paged `Attention.forward` is replaced meanwhile by causal attention over each text's own keys and
values. Positions are 0, 1, 2 ... in each text (arXiv 2502.11427; `modeling_vift.text_run_vift` in transformers).
Shapes: T tokens of all texts, D hidden size, H heads, K heads of keys and values, C their size.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence


@dataclass
class Text:
    """New tokens of one text in a run."""

    length: int
    layers: tuple[int, ...]  # whose inputs are wanted
    done: int = 0  # tokens before them, whose keys and values are in `kv`
    kv: dict | None = None  # layer -> (keys, values), each (done, K, C)
    keep: bool = False  # whether the run extends `kv`


def run_texts(layers, attentions, texts: list[Text], hidden_states, mrope: bool = False) -> dict[int, torch.Tensor]:
    """
    Inputs of decoder layers, layer -> (T', D): those of the first T' tokens, of all texts that need the layer.

    Args:
        layers: the decoder's, called with (positions, hidden_states, residual).
        attentions: the paged attention of each.
        texts: by their last layer, the highest first.
        hidden_states: (T, D), embeddings of the new tokens, text after text.
        mrope: whether positions are three (M-RoPE), equal for text.
    """
    wanted = set().union(*(text.layers for text in texts))
    starts = torch.tensor([text.done for text in texts])
    counts = torch.tensor([text.length for text in texts])
    positions = torch.cat([torch.arange(s, s + n) for s, n in zip(starts.tolist(), counts.tolist())])
    positions = positions.to(hidden_states.device)
    states, residual, last = {}, None, max(wanted)
    for index in range(last + 1):
        texts = [text for text in texts if text.layers[-1] >= index]
        tokens = sum(text.length for text in texts)
        hidden_states, positions = hidden_states[:tokens], positions[:tokens]
        residual = None if residual is None else residual[:tokens]
        if index in wanted:
            states[index] = hidden_states.clone() if residual is None else hidden_states + residual
        if index == last:
            break
        texts = [text for text in texts if text.layers[-1] > index]
        tokens = sum(text.length for text in texts)
        residual = None if residual is None else residual[:tokens]
        place = positions[:tokens].expand(3, -1) if mrope else positions[:tokens]
        with own_attention(attentions[index], index, texts):
            hidden_states, residual = layers[index].forward(place, hidden_states[:tokens], residual)
        positions = positions[:tokens]
    return states


@contextmanager
def own_attention(attention, index: int, texts: list[Text]):
    """`attention` reads and extends the keys and values of `texts` at layer `index`, and no paged cache."""

    def forward(query, key, value, output_shape=None, output_dtype=None):
        heads, kv_heads, size = attention.num_heads, attention.num_kv_heads, attention.head_size
        counts, device = [text.length for text in texts], query.device
        keys, values = key.view(-1, kv_heads, size).split(counts), value.view(-1, kv_heads, size).split(counts)
        if any(text.done for text in texts):
            before = [text.kv[index] if text.done else (k[:0], v[:0]) for text, k, v in zip(texts, keys, values)]
            keys = [torch.cat([old[0], new]) for old, new in zip(before, keys)]
            values = [torch.cat([old[1], new]) for old, new in zip(before, values)]
        for text, k, v in zip(texts, keys, values):
            if text.keep:
                text.kv[index] = (k.clone(), v.clone())  # not views, which would keep the whole batch
        queries = query.view(-1, heads, size).split(counts)
        padded = [pad_sequence(list(one), batch_first=True).transpose(1, 2) for one in (queries, keys, values)]
        new = torch.arange(padded[0].shape[2], device=device)
        mask = None
        if any(text.done for text in texts):  # query i of a text sees its keys 0 ... done + i
            seen = torch.tensor([text.done for text in texts], device=device)[:, None] + new
            mask = (torch.arange(padded[1].shape[2], device=device) <= seen[..., None])[:, None]
        output = scaled_dot_product_attention(
            *padded, attn_mask=mask, is_causal=mask is None, scale=attention.impl.scale, enable_gqa=heads != kv_heads
        )
        filled = new < torch.tensor(counts, device=device)[:, None]
        return output.transpose(1, 2)[filled].reshape(query.shape)

    attention.forward = forward  # on the instance: `Attention.forward` comes back when this is deleted
    try:
        yield
    finally:
        del attention.forward
