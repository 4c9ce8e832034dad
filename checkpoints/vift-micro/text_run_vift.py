"""The text run: h(q), hidden states of prompts without their images (arXiv 2502.11427), and where they come from.

A text run has `states_of(model, layers, texts, device)` -> {layer: (N, D)}: the inputs of `layers` at all tokens of
`texts` (tuples of ids), one text after the other. h(q) depends on the ids and the model alone, not on the settings.

    FreshRun          runs the texts when it is asked, each different one once
    TextStreamCache   keeps what it ran, for questions that are asked again
    AnswerRun         goes on with a KV cache of its own as the answer grows (`fusion_answer`)
    TextStream        given: whatever the texts are

Shapes: T tokens of one text, N of all texts, D hidden size.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from .fusion_vift import check_seen, running
from .interfaces_vift import CACHE, is_sharded, must_finish_forward, state_of


class StopForward(Exception):
    """Ends a recording run after the last layer that is wanted."""


class LayerRecorder:
    """Stands in the place of a `FusionEdit`: keeps the inputs of `layers` at the places (rows, columns), each (N,)."""

    def __init__(self, layers: Sequence[int], rows: torch.Tensor, columns: torch.Tensor, stop_early: bool):
        self.layers, self.rows, self.columns, self.states = set(layers), rows, columns, {}
        self.last = max(layers) if stop_early else None

    def __call__(self, layer: int, hidden_states: torch.Tensor) -> torch.Tensor:
        if layer in self.layers:
            if hidden_states.ndim != 3:
                raise ValueError(f"states of shape {tuple(hidden_states.shape)} at layer {layer} are no (B, S, D)")
            rows, columns = self.rows.to(hidden_states.device), self.columns.to(hidden_states.device)
            self.states[layer] = hidden_states[rows, columns]
            # a compiled run goes on to its end: leaving it would break its graph
            if layer == self.last and not torch.compiler.is_compiling():
                raise StopForward
        return hidden_states


def record(model, layers: Sequence[int], rows, columns, **model_inputs) -> dict[int, torch.Tensor]:
    """Inputs of `layers` at the places (rows, columns), each (N, D), in an unfused run of the model."""
    recorder = LayerRecorder(layers, rows, columns, stop_early=not must_finish_forward(model))
    model_inputs = {"use_cache": False} | model_inputs | {"logits_to_keep": 1, "fusion": recorder}
    with running(model, None), suppress(StopForward):
        model(**model_inputs)
    check_seen(layers, recorder.states)
    return recorder.states


def by_text(states: dict, texts: list) -> list[dict]:
    """layer -> (N, D) of all texts as layer -> (T, D) of each."""
    parts = zip(*(of_layer.split([len(text) for text in texts]) for of_layer in states.values()))
    return [dict(zip(states, part)) for part in parts]


class FreshRun:
    """Runs the texts when it is asked: one lean pass, at positions 0 ... T-1, up to the last of `layers`."""

    is_given = False

    def states_of(self, model, layers: tuple, texts: list, device) -> dict[int, torch.Tensor]:
        streams = self.streams_of(model, layers, list(dict.fromkeys(texts)), device)
        return {layer: torch.cat([streams[text][layer] for text in texts]) for layer in layers}

    def streams_of(self, model, layers: tuple, texts: list, device) -> dict:
        """text -> layer -> (T, D) of different texts."""
        # right-padded and causal: no token sees the padding, so that no mask is needed
        ids = [torch.tensor(text, device=device) for text in texts]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        kept = torch.nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in ids], batch_first=True)
        states = record(model, layers, *kept.nonzero(as_tuple=True), input_ids=padded)
        return dict(zip(texts, by_text(states, texts)))


class TextStreamCache(FreshRun):
    """
    The text streams that one model used last, up to `max_bytes`: `generate(text_stream=TextStreamCache())`.

    Safe to share among threads. It empties itself when another model comes or anything changes that decides h(q)
    (`state_of`), but can't see writing through `parameter.data`: begin a new cache after that. A kept stream was
    computed in the batch of its first call: it equals a new one up to rounding. Sharded models go without.
    """

    def __init__(self, max_bytes: int = 256 * 2**20):
        if type(max_bytes) is not int or max_bytes < 0:
            raise ValueError(f"max_bytes={max_bytes!r} must be a whole number of bytes, at least 0")
        self.max_bytes, self.bytes, self.streams = max_bytes, 0, OrderedDict()  # (layers, ids) -> {layer: (T, D)}
        self._version, self._lock = None, threading.Lock()

    def streams_of(self, model, layers: tuple, texts: list, device) -> dict:
        if is_sharded(model):  # all ranks run, or none
            return super().streams_of(model, layers, texts, device)
        version = [weakref.ref(model), *state_of(model.get_decoder())]
        with self._lock:
            if self._version != version:
                self.streams.clear()
                self.bytes, self._version = 0, version
            kept = {text: self.streams[layers, text] for text in texts if (layers, text) in self.streams}
            for text in kept:
                self.streams.move_to_end((layers, text))
        new = [text for text in texts if text not in kept]
        fresh = super().streams_of(model, layers, new, device) if new else {}
        unchanged = version[1:] == state_of(model.get_decoder())
        with self._lock:
            for text in new if unchanged and self._version == version else ():
                if (layers, text) not in self.streams:  # another thread may have been faster
                    own = {layer: state.detach().clone() for layer, state in fresh[text].items()}
                    self.streams[layers, text] = own
                    self.bytes += sum(state.nbytes for state in own.values())
            while self.bytes > self.max_bytes:
                self.bytes -= sum(state.nbytes for state in self.streams.popitem(last=False)[1].values())
        return kept | fresh


class AnswerRun(FreshRun):
    """Prompts and their answers so far, a token longer at each call (beams may change places), else run anew."""

    def __init__(self):
        self.streams, self.mask, self.cache = {}, None, None  # text -> layer -> (T, D), in the cache's order

    def streams_of(self, model, layers: tuple, texts: list, device) -> dict:
        before = {text: place for place, text in enumerate(self.streams)}
        places = [before.get(text[:-1]) for text in texts]
        if None in places:
            self.cache, width = DynamicCache(config=model.config.get_text_config()), max(map(len, texts))
            padding = [[0] * (width - len(text)) for text in texts]
            self.mask = torch.tensor([pad + [1] * len(text) for pad, text in zip(padding, texts)], device=device)
            ids = torch.tensor([pad + list(text) for pad, text in zip(padding, texts)], device=device)
            earlier, new = [{} for _ in texts], texts
        else:
            index = torch.tensor(places, device=device)
            self.cache.batch_select_indices(index)
            self.mask = torch.cat([self.mask[index], self.mask.new_ones(len(texts), 1)], dim=1)
            earlier, new = [self.streams[text[:-1]] for text in texts], [text[-1:] for text in texts]
            ids = torch.tensor(new, device=device)
        fresh = self.mask[:, -ids.shape[1] :]
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        inputs = {"input_ids": ids, "attention_mask": self.mask, "position_ids": positions, CACHE: self.cache}
        states = record(model, layers, *fresh.nonzero(as_tuple=True), use_cache=True, **inputs)
        self.streams = {
            text: {layer: torch.cat([old[layer], part[layer]]) for layer in layers} if old else part
            for text, old, part in zip(texts, earlier, by_text(states, new))
        }
        return self.streams


@dataclass
class TextStream:
    """h(q) that is given: `model.text_run()` makes it, `generate(text_stream=...)` takes it, edited or not."""

    states: dict[int, torch.Tensor]  # layer -> (N, D), the input of that layer
    rows: torch.Tensor  # (N,), where each token stands in the (B, S) prompt with image
    columns: torch.Tensor
    is_given = True

    def states_of(self, model, layers: tuple, texts: list, device) -> dict[int, torch.Tensor]:
        """Raises a ValueError with both numbers where a layer has not N states."""
        count = sum(map(len, texts))
        for layer in layers:
            own = len(self.states[layer]) if layer in self.states else "no"
            if own != count:
                raise ValueError(
                    f"text_stream has {own} states for layer {layer}, the prompts have {count} text tokens"
                )
        return {layer: self.states[layer] for layer in layers}
