"""Text streams of questions that were asked before, so that a repeated question costs no second text pass.

h(q) depends on the ids of the text and on the weights, not on the image, `alpha`, `beta`, the rule or the span (of
`h'(v,q) = alpha * h(v,q) + beta * h(q)`, arXiv 2502.11427). A caller who asks one question about many images holds a
`TextStreamCache` and hands it to `generate(text_stream=...)`. Nothing is kept otherwise: streams take memory between
calls, and a model that is still trained would have to watch for changes of its weights.

Shapes: T text tokens of one prompt, D hidden size.
"""

import threading
import weakref
from collections import OrderedDict

import torch


def _weights(model) -> list:
    """Changes whenever a weight is written in place or replaced, an adapter is switched or merged, or dtype moves."""
    decoder = model.get_decoder()
    state = [(id(p), p.dtype, p.device, p.is_inference() or p._version) for p in decoder.parameters()]
    adapters = (module for module in decoder.modules() if hasattr(module, "merged_adapters"))
    return state + [(tuple(module.active_adapters), module.disable_adapters, module.merged) for module in adapters]


class TextStreamCache:
    """
    The last used text streams of one model, safe to share among threads.

    It empties itself when the model's weights change or another model comes. The one change that it can't see is
    writing through `parameter.data`: call `clear()` after that. What comes out was computed in the batch of the first
    call, so that it equals a new text pass up to rounding. Models that FSDP2 or DeepSpeed shards go without.

    Args:
        max_bytes (`int`): most that the states may take; those used longest ago leave first.
    """

    def __init__(self, max_bytes: int = 256 * 2**20):
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 0:
            raise ValueError(f"max_bytes={max_bytes!r} must be a whole number of bytes, at least 0")
        self.max_bytes, self.bytes = max_bytes, 0
        self._streams: OrderedDict = OrderedDict()  # (layers, ids) -> {layer: (T, D)}
        self._model, self._state, self._lock = None, None, threading.Lock()

    def __len__(self) -> int:
        return len(self._streams)

    def clear(self) -> None:
        with self._lock:
            self._streams.clear()
            self.bytes = 0

    def get(self, model, layers: tuple, texts) -> dict[tuple, dict[int, torch.Tensor]]:
        """Those of `texts` (tuples of ids) that are kept for `layers` of `model`."""
        state = _weights(model)
        with self._lock:
            if self._model is None or self._model() is not model or self._state != state:
                self._streams.clear()
                self._model, self._state, self.bytes = weakref.ref(model), state, 0
            found = {text: self._streams[layers, text] for text in texts if (layers, text) in self._streams}
            for text in found:
                self._streams.move_to_end((layers, text))
            return found

    def put(self, model, layers: tuple, streams: dict[tuple, dict[int, torch.Tensor]]) -> None:
        """Keeps copies of `streams` (ids -> layer -> states) unless the weights changed since `get`."""
        with self._lock:
            if self._model is None or self._model() is not model or self._state != _weights(model):
                return
            for text, states in streams.items():
                if (layers, text) not in self._streams:
                    self._streams[layers, text] = {layer: state.detach().clone() for layer, state in states.items()}
                    self.bytes += sum(state.nbytes for state in states.values())
            while self.bytes > self.max_bytes:
                self.bytes -= sum(state.nbytes for state in self._streams.popitem(last=False)[1].values())
