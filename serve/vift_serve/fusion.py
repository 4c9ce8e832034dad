"""The edit of one forward pass in vLLM: h'(v,q) = alpha * h(v,q) + beta * h(q), arXiv 2502.11427.

Before a decoder runs, its model asks which requests are where (`rows`, `states`), runs their texts (`text_run`) and
keeps the edits; a pre-hook of each decoder layer applies them. vLLM's layers take `(positions, hidden_states,
residual)`, the residual stream being the sum of the last two: a written token has all of it in the residual.
In a compiled decoder the pre-hook is the operator `vllm::vift_fuse`, opaque to the compiler: nothing is recorded
in a graph, and a step without fused tokens costs a call.
"""

import threading
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from vllm.model_executor.layers.attention import Attention
from vllm.utils.torch_utils import direct_register_custom_op

from modeling_vift.fusion_vift import FusionEdit, check_seen

from .requests import FusedRequest, RequestFusion
from .text_run import Text, run_texts

_RUNNING = threading.local()  # edits of the forward pass of this thread: a list of `FusionEdit`


def apply_edits(layer: int, hidden_states: torch.Tensor, residual: torch.Tensor | None) -> None:
    """Writes the fused tokens of this step at the input of `layer`, in place; both (T, D)."""
    for edit in getattr(_RUNNING, "edits", ()):
        if layer not in edit.text_states:
            continue
        places = edit.places
        x = hidden_states[places] if residual is None else hidden_states[places] + residual[places]
        fused = edit(layer, x[None])[0]
        if residual is None:
            hidden_states[places] = fused
        else:
            residual[places] = fused
            hidden_states[places] = 0


def _operator(hidden_states: torch.Tensor, residual: torch.Tensor, layer: int) -> None:
    apply_edits(layer, hidden_states, residual)


def _fake_operator(hidden_states: torch.Tensor, residual: torch.Tensor, layer: int) -> None:
    """Nothing comes back: both are written in place."""


direct_register_custom_op("vift_fuse", _operator, ["hidden_states", "residual"], _fake_operator)


def _fuse_input(layer: int, module, args):
    """Pre-hook of a decoder layer."""
    _, hidden_states, residual = args
    if torch.compiler.is_compiling():
        torch.ops.vllm.vift_fuse(hidden_states, residual, layer)
    elif getattr(_RUNNING, "edits", ()):
        apply_edits(layer, hidden_states, residual)


class Fusion:
    """Fusion of one model in a worker: its decoder's hooks, and the edits of a step."""

    def __init__(self, vllm_config, language_model):
        self.requests = RequestFusion(vllm_config.model_config.hf_config)
        self.language_model, self.decoder = language_model, language_model.model
        self.mrope = vllm_config.model_config.uses_mrope
        self.layers = list(self.decoder.layers)
        self.attentions = [_attention(index, layer) for index, layer in enumerate(self.layers)]
        for index, layer in enumerate(self.layers[1:], 1):  # the input of layer 0 is written before the decoder
            layer.register_forward_pre_hook(partial(_fuse_input, index))

    @contextmanager
    def step(self, batch: list[tuple[FusedRequest, int, int, int]], inputs_embeds):
        """
        A forward pass in which the edits of `batch` are made; yields its embeddings (T, D), written for layer 0.

        Args:
            batch: (request, its first row of `inputs_embeds`, its first position, its number of tokens).

        Raises:
            RuntimeError: tokens of a request that passed by unseen, or layers that were not fused: better no answer
                than a wrong one.
        """
        edits = self.edits(batch, inputs_embeds) if batch else []
        if not edits:
            yield inputs_embeds
            return
        _RUNNING.edits = edits
        try:
            if any(0 in edit.text_states for edit in edits):
                inputs_embeds = inputs_embeds.clone()
                apply_edits(0, inputs_embeds, None)
            yield inputs_embeds
            for edit in edits:
                check_seen(edit.text_states, edit.written)
        except ValueError as error:
            raise RuntimeError(str(error)) from error
        finally:
            _RUNNING.edits = ()

    def edits(self, batch, inputs_embeds) -> list[FusionEdit]:
        written = []  # (request, text tokens, rows of the batch), sorted as `run_texts` wants
        for request, row, start, length in batch:
            if request.computed not in (None, start):
                raise RuntimeError(f"positions {request.computed} to {start - 1} of a request passed by unfused")
            source, position = request.places(start, start + length)
            request.computed = start + length
            if len(source):
                written.append((request, source, position - start + row, start, row))
        written.sort(key=lambda one: -one[0].settings.layers[-1])
        texts, ids, known, shared, offsets = [], [], [], {}, []
        for request, source, _, start, row in written:
            stop, kept = int(source.max()) + 1, request.settings.answer or request.computed < request.length
            stop = max(stop, request.done)
            new = request.ids(request.done, stop)
            # the answer's last token may not have come back from the device yet, but its embedding is here
            new += [-1] * (stop - request.done - len(new))
            key = None if kept or request.done else tuple(new)
            if key in shared:  # equal texts run once
                text, offset = shared[key]
                text.layers = tuple(sorted({*text.layers, *request.settings.layers}))
                offsets.append((offset, request.done))
                continue
            for i, token in enumerate(new, request.done):
                position = i - len(request.text) + request.length
                if i >= len(request.text) and position >= start:
                    known.append((len(ids), row + position - start))
                elif token < 0:
                    raise RuntimeError(f"token {i} of a request's text is not known")
                ids.append(max(token, 0))
            text = Text(len(new), request.settings.layers, request.done, request.kv, kept)
            offsets.append((len(ids) - len(new), request.done))
            texts.append(text)
            if key is not None:
                shared[key] = text, offsets[-1][0]
            request.done = stop if kept else request.done
        if not texts:
            return []
        with torch.inference_mode():
            device = inputs_embeds.device
            embeddings = self.language_model.embed_input_ids(torch.tensor(ids, device=device))
            if known:
                to, origin = torch.tensor(known, device=device).T
                embeddings[to] = inputs_embeds[origin]
            states = run_texts(self.layers, self.attentions, texts, embeddings.to(inputs_embeds.dtype), self.mrope)
        return self._grouped(written, offsets, states, inputs_embeds.device)

    def _grouped(self, written, offsets, states, device) -> list[FusionEdit]:
        """One edit for all requests with the same layers and norm."""
        groups: dict = {}
        for (request, source, rows, _, _), (offset, done) in zip(written, offsets):
            settings = request.settings
            groups.setdefault((settings.layers, settings.norm), []).append((settings, source - done + offset, rows))
        edits = []
        for (layers, _), members in groups.items():
            settings = members[0][0]
            sources = torch.from_numpy(np.concatenate([source for _, source, _ in members])).to(device)
            places = torch.from_numpy(np.concatenate([rows for _, _, rows in members])).to(device)
            strength = [
                torch.tensor([getattr(own, name) for own, source, _ in members for _ in source], device=device)[
                    :, None
                ]
                for name in ("alpha", "beta")
            ]
            order = torch.arange(len(sources), device=device)
            text_states = {layer: states[layer][sources] for layer in layers}
            edit = FusionEdit(settings, *strength, text_states, None, torch.zeros_like(order), order, order)
            edit.places = places
            edits.append(edit)
        return edits


def _attention(index: int, layer) -> Attention:
    """The paged attention of a decoder layer; a ValueError where it is not what the text run can stand in for."""
    found = [module for module in layer.modules() if isinstance(module, Attention)]
    if len(found) != 1 or type(found[0]).forward is not Attention.forward:
        raise ValueError(
            f"decoder layer {index} has {len(found)} attentions of vLLM's common kind: it cannot be fused"
        )
    own, impl = found[0], found[0].impl
    odd = {
        "sliding_window": own.sliding_window,
        "sinks": own.has_sink,
        "alibi_slopes": getattr(impl, "alibi_slopes", None),
        "logits_soft_cap": getattr(impl, "logits_soft_cap", None),
        "kv_sharing": own.kv_sharing_target_layer_name,
        "head_size_v": own.head_size_v != own.head_size,
    }
    if named := [name for name, value in odd.items() if value is not None and value is not False and value != 0]:
        raise ValueError(f"decoder layer {index} has {named[0]}={odd[named[0]]!r}, which the text run does not follow")
    return own
