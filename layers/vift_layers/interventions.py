"""Causal interventions on a vision-language model's decoder layers, as context managers (arXiv 2606.03871).

    with knock_out(model, range(4, 8)):        # there, text tokens can't attend to image tokens
        model.generate(**inputs)
    with skip(model, range(4, 8), "image"):    # there, the layer leaves image tokens as they are ("all": every token)
        ...
    with transplant(model, donor, range(0, 4)):  # there, the layer has the donor's weights
        ...

They hold for this thread only and can be nested; when they end, nothing is left on the model. An empty range, a prompt
without image (for `knock_out` and "image") and a model as its own donor are the model as it is, bit for bit.

Cutting every edge is the blind run *at the same positions*: text tokens keep the positions that they have behind the
image, and an answer without image at positions 0 ... T-1 is another (rotary) input. Where attention has a sliding
window, image tokens go on filling the window. Shapes: B rows, S new tokens, K keys (those in the cache too).
"""

import re
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch

from .capture import image_token_ids

_ACTIVE = ContextVar("vift_interventions", default=frozenset())  # of this thread
_FORWARDS = threading.Lock()
SKIPPED = ("all", "image", "text")


def window(layers, num_layers: int) -> tuple[int, ...]:
    """Sorted layer indices from a sequence, or from "2:5" (half-open) or "~2:5" (all others).

    Raises:
        ValueError: not of this form, or outside the model.
    """
    chosen, others = layers, False
    if isinstance(layers, str):
        band = re.fullmatch(r"(~?)(\d*):(\d*)", layers)
        if band is None:
            raise ValueError(f"layers={layers!r} must be 'first:stop', '~first:stop' or a sequence of layers")
        others, chosen = bool(band[1]), range(int(band[2] or 0), int(band[3] or num_layers))
    chosen = sorted(set(chosen))
    if chosen and not 0 <= chosen[0] <= chosen[-1] < num_layers:
        raise ValueError(f"layers={layers!r} reaches outside layers 0 to {num_layers - 1}")
    return tuple(layer for layer in range(num_layers) if layer not in chosen) if others else tuple(chosen)


def _decoder_layers(model):
    layers = getattr(model.get_decoder(), "layers", None)
    if layers is None:
        raise ValueError(f"model={type(model).__name__}: its decoder has no list `layers`")
    return layers


@contextmanager
def _active(key, handles):
    """
    `key` holds in this thread while it lasts; the hooks are removed after it.

    Other threads may meet a hook that is being registered or removed, and then call it without keywords: every hook
    asks for its key before it touches them.
    """
    token = _ACTIVE.set(_ACTIVE.get() | {key})
    try:
        yield
    finally:
        _ACTIVE.reset(token)
        for handle in handles:
            handle.remove()


def _cached_tokens(kwargs) -> int:
    cache = kwargs.get("past_key_values")
    cache = kwargs.get("cache") if cache is None else cache
    return 0 if cache is None else int(cache.get_seq_length())


class _ImageKeys:
    """Which of the keys so far are image tokens: (B, K), told by the ids of each forward pass of the model."""

    def __init__(self, model):
        self.key, self.ids, self.mask, self.new = object(), image_token_ids(model.config), None, 0
        self.handle = model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs=None):
        if self.key not in _ACTIVE.get():
            return
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        if input_ids is None:
            raise ValueError("inputs_embeds without input_ids: which tokens are the image's can't be told")
        new = torch.isin(input_ids, torch.tensor(self.ids, device=input_ids.device))
        past = _cached_tokens(kwargs)
        if past and (self.mask is None or self.mask.shape[1] < past):
            raise ValueError(f"the cache holds {past} tokens of a prompt read before the intervention began")
        self.mask = torch.cat([self.mask[:, :past], new], dim=1) if past else new
        self.new = new.shape[1]

    def here(self, states) -> torch.Tensor:
        """(B, S): of the tokens that this pass reads."""
        return self.mask[:, -self.new :].to(states.device)


@contextmanager
def knock_out(model, layers):
    """
    Cuts attention from text tokens to image tokens (the generated tokens' too) in `layers`.

    Args:
        model: a VIFT or another vision-language model, with eager or sdpa attention.
        layers: a sequence of indices, or as in `window`.

    Raises:
        ValueError: layers outside the model; no image placeholder; another attention than eager or sdpa.
    """
    decoder = _decoder_layers(model)
    layers = window(layers, len(decoder))
    implementation = model.config.get_text_config()._attn_implementation
    if implementation not in ("eager", "sdpa"):
        raise ValueError(
            f"attn_implementation={implementation!r} takes no 4-D mask: load the model with eager or sdpa"
        )
    if not layers:
        yield
        return
    keys = _ImageKeys(model)

    def cut(module, args, kwargs=None):
        if keys.key not in _ACTIVE.get() or not bool(keys.mask.any()):
            return None
        states = args[0] if args else kwargs["hidden_states"]
        mask, queries = kwargs.get("attention_mask"), keys.here(states)
        edges = ~queries[:, None, :, None] & keys.mask.to(states.device)[:, None, None, :]
        if mask is None:  # sdpa's own causal attention: said in full, to cut from it
            total, new = edges.shape[-1], edges.shape[-2]
            mask = torch.ones(new, total, dtype=torch.bool, device=states.device).tril(total - new)[None, None]
        if mask.shape[-1] > edges.shape[-1]:  # a static cache has room for more keys
            edges = torch.nn.functional.pad(edges, (0, mask.shape[-1] - edges.shape[-1]))
        elif mask.shape[-1] < edges.shape[-1]:  # a sliding window keeps the latest keys
            edges = edges[..., edges.shape[-1] - mask.shape[-1] :]
        mask = mask & ~edges if mask.dtype == torch.bool else mask.masked_fill(edges, torch.finfo(mask.dtype).min)
        return args, kwargs | {"attention_mask": mask}

    handles = [decoder[i].register_forward_pre_hook(cut, with_kwargs=True) for i in layers]
    with _active(keys.key, [keys.handle, *handles]):
        yield


@contextmanager
def skip(model, layers, tokens: str = "all"):
    """
    Lets `tokens` ("all", "image" or "text") leave each of `layers` as they came in. Others still see them there.

    Raises:
        ValueError: layers outside the model, unknown tokens.
    """
    decoder = _decoder_layers(model)
    layers = window(layers, len(decoder))
    if tokens not in SKIPPED:
        raise ValueError(f"tokens={tokens!r} must be one of {', '.join(SKIPPED)}")
    if not layers:
        yield
        return
    keys = _ImageKeys(model)

    def leave(module, args, *rest):
        if keys.key not in _ACTIVE.get() or (tokens == "image" and not bool(keys.mask.any())):
            return None
        kwargs, output = rest
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        if tokens != "all":
            is_image = keys.here(before)[..., None]
            before = torch.where(is_image if tokens == "image" else ~is_image, before, after)
        return (before, *output[1:]) if isinstance(output, tuple) else before

    # before the hooks of fusion, which write the input of the next layer
    handles = [decoder[i].register_forward_hook(leave, with_kwargs=True, prepend=True) for i in layers]
    with _active(keys.key, [keys.handle, *handles]):
        yield


_TRANSPLANTS = ContextVar("vift_transplants", default=None)  # {layer: donor layer} of this thread


def _native(layer):
    """The layer's forward, past the dispatcher if there is one."""
    opened = vars(layer).get("_transplants")
    return layer.forward if opened is None else opened[2]


def _dispatch(layer, *args, **kwargs):
    return _native((_TRANSPLANTS.get() or {}).get(layer, layer))(*args, **kwargs)


@contextmanager
def transplant(model, donor, layers):
    """
    Runs `layers` with the weights of the donor's; connector, embeddings and head stay. No weight is copied.

    Args:
        donor: a model of the same decoder, for instance before or after fine-tuning.
        layers: a sequence of indices, or as in `window`: "0:4" (cumulative), "2:5" (a window), "~2:5" (all others).

    Raises:
        ValueError: layers outside the model; decoders or attention implementations that differ.
    """
    own, other = _decoder_layers(model), _decoder_layers(donor)
    if len(own) != len(other):
        raise ValueError(f"donor has {len(other)} layers, model has {len(own)}")
    layers = window(layers, len(own))
    implementations = [m.config.get_text_config()._attn_implementation for m in (model, donor)]
    if implementations[0] != implementations[1]:
        raise ValueError(
            f"attn_implementation of the donor is {implementations[1]!r}, of the model {implementations[0]!r}"
        )
    for i in layers:
        shapes = [{name: (p.shape, p.dtype) for name, p in layer.named_parameters()} for layer in (own[i], other[i])]
        if shapes[0] != shapes[1]:
            raise ValueError(f"layer {i} of the donor has parameters of another name, shape or dtype")
    with _FORWARDS:
        for i in layers:
            _open(own[i])
    token = _TRANSPLANTS.set((_TRANSPLANTS.get() or {}) | {own[i]: other[i] for i in layers})
    try:
        yield
    finally:
        _TRANSPLANTS.reset(token)
        with _FORWARDS:
            for i in layers:
                _close(own[i])


def _open(layer) -> None:
    """`layer.forward` looks for a donor; counted, as threads may open the same layer."""
    if "_transplants" in vars(layer):
        users, *rest = layer._transplants
        layer._transplants = (users + 1, *rest)
    else:
        # an instance's own forward, such as accelerate's, is put back later; known before a thread meets the
        # dispatcher
        layer._transplants = (1, vars(layer).get("forward"), layer.forward)
        layer.forward = partial(_dispatch, layer)


def _close(layer) -> None:
    users, own, native = layer._transplants
    if users > 1:
        layer._transplants = (users - 1, own, native)
        return
    if own is None:
        del layer.__dict__["forward"]
    else:
        layer.forward = own
    del layer.__dict__["_transplants"]
