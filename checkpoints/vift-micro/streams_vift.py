"""Text streams that were run before: of questions asked again, and of an answer without its last token.

h(q) depends on the ids of the text and on the weights, not on the image, `alpha`, `beta`, rule or span of the fusion
(arXiv 2502.11427). With `generate(text_stream=TextStreamCache())` the text pass of a question runs once; nothing is
kept otherwise, for streams take memory between calls. `GrowingStreams` live as long as one `generate()`.
Shapes: T text tokens of one prompt, D hidden size.
"""

import threading
import weakref
from collections import OrderedDict

import torch
from transformers import DynamicCache


def _weights(model) -> list:
    """Another list after a weight was written in place or replaced, moved, or an adapter switched or merged."""
    decoder = model.get_decoder()
    weights = [(id(p), p.dtype, p.device, p.is_inference() or p._version) for p in decoder.parameters()]
    adapters = [module for module in decoder.modules() if hasattr(module, "merged_adapters")]
    return [
        weakref.ref(model),
        *weights,
        *((tuple(a.active_adapters), a.disable_adapters, a.merged) for a in adapters),
    ]


class TextStreamCache:
    """
    The last used text streams of one model, safe to share among threads.

    It empties itself when the weights change or another model comes; the one change that it can't see is writing
    through `parameter.data`: begin a new cache after that. A kept stream was computed in the batch of its first call,
    so that it equals a new text pass up to rounding. Models sharded by FSDP2 or DeepSpeed go without.

    Args:
        max_bytes (`int`): most that the states may take; those used longest ago leave first.
    """

    def __init__(self, max_bytes: int = 256 * 2**20):
        if type(max_bytes) is not int or max_bytes < 0:
            raise ValueError(f"max_bytes={max_bytes!r} must be a whole number of bytes, at least 0")
        self.max_bytes, self.bytes, self.streams = max_bytes, 0, OrderedDict()  # (layers, ids) -> {layer: (T, D)}
        self._weights, self._lock = None, threading.Lock()

    def get(self, model, layers: tuple, texts, run) -> dict:
        """ids -> layer -> (T, D) for each of `texts` (tuples of ids); `run` makes that for a list of new ones."""
        weights = _weights(model)
        with self._lock:
            if self._weights != weights:
                self.streams.clear()
                self.bytes, self._weights = 0, weights
            found = {text: self.streams[layers, text] for text in texts if (layers, text) in self.streams}
            for text in found:
                self.streams.move_to_end((layers, text))
        new = [text for text in texts if text not in found]
        ran = run(new) if new else {}
        with self._lock:
            for text in new if self._weights == weights == _weights(model) else ():
                if (layers, text) not in self.streams:  # another thread may have been faster
                    self.streams[layers, text] = {layer: state.detach().clone() for layer, state in ran[text].items()}
                    self.bytes += sum(state.nbytes for state in ran[text].values())
            while self.bytes > self.max_bytes:
                self.bytes -= sum(state.nbytes for state in self.streams.popitem(last=False)[1].values())
        return found | ran


class GrowingStreams:
    """
    The text run of prompts and their answers so far (`fusion_answer`), a token longer at each call, with a KV cache.

    Beams may change places between calls. Texts that are not the last ones with one token more are run from the start.
    """

    def __init__(self, cache_name: str, device: torch.device):
        self.cache_name, self.device = cache_name, device
        self.streams, self.mask, self.cache = {}, None, None  # ids -> layer -> (T, D), in the cache's order

    def get(self, model, layers: tuple, texts, run) -> dict:
        """ids -> layer -> (T, D) for each of `texts` (tuples of ids); `run` is not used."""
        device = self.device
        before = {text: place for place, text in enumerate(self.streams)}
        places = [before.get(text[:-1]) for text in texts]
        if None in places:
            self.cache, sizes = DynamicCache(config=model.config.get_text_config()), [len(text) for text in texts]
            width = max(sizes)
            self.mask = torch.tensor([[0] * (width - size) + [1] * size for size in sizes], device=device)
            ids = torch.tensor([[0] * (width - len(text)) + list(text) for text in texts], device=device)
            kept = [{} for _ in texts]
        else:
            index = torch.tensor(places, device=device)
            self.cache.batch_select_indices(index)
            self.mask = torch.cat([self.mask[index], self.mask.new_ones(len(texts), 1)], dim=1)
            ids, sizes = torch.tensor([text[-1:] for text in texts], device=device), [1] * len(texts)
            kept = [self.streams[text[:-1]] for text in texts]
        fresh = self.mask[:, -ids.shape[1] :]
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        given = {"input_ids": ids, "attention_mask": self.mask, "position_ids": positions, self.cache_name: self.cache}
        states = model._record(layers, *fresh.nonzero(as_tuple=True), use_cache=True, **given)
        new = zip(*(states[layer].split(sizes) for layer in layers))
        self.streams = {
            text: {layer: torch.cat([old[layer], part]) if old else part for layer, part in zip(layers, parts)}
            for text, old, parts in zip(texts, kept, new)
        }
        return self.streams
