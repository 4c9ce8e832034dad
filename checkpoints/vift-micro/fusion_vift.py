"""Ability fusion: the algebra, apart from the model that it is installed in.

`h'(v,q) = alpha * h(v,q) + beta * h(q)` (arXiv 2502.11427): at the input of each fused decoder layer, the
hidden states of the text tokens in the image run `h(v,q)` are mixed with those of the same tokens in a run
without the image, `h(q)`, the *text stream*. Prompt tokens only: decoding is untouched, the effect lives in
the KV cache.

Shapes: B prompts, S tokens in the (padded) prompt with image, N text tokens of all prompts that hold an image,
row after row, D hidden size. A layer index l is counted from 0 and means the *input* of decoder layer l.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

# What is written at the input x of fused layer l; h_q and h_vq come from unfused runs without and with image.
FUSION_RULES = {
    "cascade": "alpha * x + beta * h_q[l]; contributions of successive layers compound",
    "additive": "x + beta * h_q[l] - (1 - alpha) * h_vq[l]; the authors' released code",
    "independent": "alpha * h_vq[l] + beta * h_q[l]; the literal reading, nothing compounds",
}
# Which tokens of the prompt are written.
FUSION_SPANS = {
    "all": "every text token",
    "after_image": "the text tokens after the last image: query and assistant header",
    "reference": "the last T tokens, T = length of the prompt without image: the authors' released code, where the "
    "header lands on the last image tokens; for reproduction only",
}
OVERRIDES = ("alpha", "beta", "dose", "fusion_layers", "fusion_rule", "fusion_span", "fusion_norm", "fusion_answer")


@dataclass(frozen=True)
class FusionSettings:
    """Validated parameters of one fused run; alpha and beta are floats or tensors of shape (B,)."""

    alpha: float | torch.Tensor
    beta: float | torch.Tensor
    layers: tuple[int, ...]
    rule: str
    span: str
    norm: bool
    answer: bool = False

    @property
    def needs_image_run(self) -> bool:
        """Whether the rule reads h_vq, the unfused run with image."""
        if self.rule == "additive":
            return isinstance(self.alpha, torch.Tensor) or self.alpha != 1.0
        return self.rule == "independent"


def resolve_fusion(config, fusion=None, **overrides) -> FusionSettings | None:
    """
    Settings of a run: the config's fusion fields, then a preset, then the keywords that are not None.

    Args:
        config (`VIFTConfig`): the defaults.
        fusion (`bool`, `str` or `dict`, *optional*): on, off, the name of a preset, or a dict of overrides.
        overrides: any of `OVERRIDES`.

    Returns:
        `FusionSettings`, or None when fusion is off.

    Raises:
        ValueError: unknown names, values out of range, contradictions; names the argument and the range.
    """
    given = dict(fusion) if isinstance(fusion, dict) else {}
    given |= {name: value for name, value in overrides.items() if value is not None}
    if unknown := set(given) - set(OVERRIDES):
        raise ValueError(f"unknown fusion argument {sorted(unknown)[0]!r}; known: {', '.join(OVERRIDES)}")
    preset = {}
    if isinstance(fusion, str):
        if fusion not in config.fusion_presets:
            raise ValueError(
                f"unknown preset fusion={fusion!r}; config.fusion_presets has {list(config.fusion_presets)}"
            )
        preset = config.fusion_presets[fusion]
        if unknown := set(preset) - set(OVERRIDES):
            raise ValueError(
                f"fusion_presets[{fusion!r}]: unknown {sorted(unknown)[0]!r}; known: {', '.join(OVERRIDES)}"
            )
    elif not isinstance(fusion, bool | dict | None):
        raise ValueError(f"fusion={fusion!r} is neither a bool, nor the name of a preset, nor a dict of overrides")
    if not (config.fusion_enabled if fusion is None else fusion is not False):
        if given:
            raise ValueError(f"{', '.join(given)} given but fusion is off: drop it, or pass fusion=True")
        return None

    value = {"alpha": config.fusion_alpha} | {name: getattr(config, name) for name in OVERRIDES[3:]}
    for layer in ({"beta": config.fusion_beta, "dose": config.fusion_dose}, preset, given):
        strength = {name: layer[name] for name in ("beta", "dose") if layer.get(name) is not None}
        if len(strength) == 2:
            raise ValueError(f"beta={strength['beta']} and dose={strength['dose']} contradict each other: give one")
        if strength:
            value = {name: v for name, v in value.items() if name not in ("beta", "dose")}
        value |= {name: v for name, v in layer.items() if v is not None}

    layers = _resolve_layers(value["fusion_layers"], config.get_text_config().num_hidden_layers)
    for name, known in (("fusion_rule", FUSION_RULES), ("fusion_span", FUSION_SPANS)):
        if value[name] not in known:
            raise ValueError(f"{name}={value[name]!r} is unknown; known: {', '.join(known)}")
    for name in ("fusion_norm", "fusion_answer"):
        if not isinstance(value[name], bool):
            raise ValueError(f"{name}={value[name]!r} must be True or False")
    if "dose" in value:
        beta = _coefficient("dose", value["dose"], -64.0, 64.0) / len(layers)
        beta = _coefficient(f"beta (dose={value['dose']} over {len(layers)} layers)", beta, -2.0, 2.0)
    else:
        beta = _coefficient("beta", value["beta"], -2.0, 2.0)
    settings = FusionSettings(
        alpha=_coefficient("alpha", value["alpha"], 0.0, 2.0),
        beta=beta,
        layers=layers,
        rule=value["fusion_rule"],
        span=value["fusion_span"],
        norm=value["fusion_norm"],
        answer=value["fusion_answer"],
    )
    if settings.answer and settings.needs_image_run:
        raise ValueError(
            f"fusion_answer=True needs the rule 'cascade', or 'additive' with alpha=1, not {settings.rule!r}"
        )
    return settings


def _coefficient(name: str, value, low: float, high: float) -> float | torch.Tensor:
    """A float, or a float tensor of shape (B,), inside [low, high]."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = torch.tensor(value)
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, torch.Tensor):
        if value.ndim != 1 or not bool(((value >= low) & (value <= high)).all()):
            raise ValueError(f"{name}={value.tolist()} must be one number, or one a row, in [{low}, {high}]")
        return value if value.is_floating_point() else value.float()
    if isinstance(value, bool | str) or value is None or not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{name}={value!r} must be a finite number in [{low}, {high}]")
    return float(value)


def _resolve_layers(layers, num_layers: int) -> tuple[int, ...]:
    """Layer indices from a fraction of the top, a half-open band "a:b", or a sequence of indices."""
    described = f"fusion_layers={layers!r}"
    if isinstance(layers, float):
        if not 0.0 < layers <= 1.0:
            raise ValueError(f"{described}: a fraction of the top must be in (0, 1]")
        return tuple(range(num_layers - max(1, round(layers * num_layers)), num_layers))
    if isinstance(layers, str):
        start, colon, stop = layers.partition(":")
        try:
            layers = range(int(start or 0), int(stop or num_layers)) if colon else ()
        except ValueError:
            layers = ()
    if isinstance(layers, bool | int) or not layers or not all(type(layer) is int for layer in layers):
        raise ValueError(f"{described} must be a fraction in (0, 1], a band 'first:stop' with first < stop, or layers")
    if min(layers) < 0 or max(layers) >= num_layers:
        raise ValueError(
            f"{described} reaches layer {min(min(layers), max(layers), key=lambda i: 0 <= i < num_layers)}, "
            f"but the language model has layers 0 to {num_layers - 1}"
        )
    if len(set(layers)) != len(layers):
        raise ValueError(f"{described} names a layer twice")
    return tuple(sorted(layers))


@dataclass
class TextStream:
    """
    h(q): hidden states of the prompts' text tokens in a run without image.

    Attributes:
        states (`dict[int, torch.Tensor]`): layer index -> (N, D), the input of that layer.
        rows, columns (`torch.Tensor` of shape (N,)): where each token stands in the (B, S) prompt with image.
    """

    states: dict[int, torch.Tensor]
    rows: torch.Tensor
    columns: torch.Tensor


class StopForward(Exception):
    """Ends a recording run after the last layer that is wanted."""


class LayerRecorder:
    """
    Stands in the place of a `PromptFusion` and keeps the layer inputs instead of changing them.

    Args:
        layers: layer indices to keep.
        rows, columns (`torch.Tensor` of shape (N,)): the tokens to keep.
        stop_early (`bool`): raise `StopForward` as soon as the last layer's input is kept.
    """

    def __init__(self, layers: Sequence[int], rows: torch.Tensor, columns: torch.Tensor, stop_early: bool):
        self.layers, self.rows, self.columns, self.stop_early = set(layers), rows, columns, stop_early
        self.states: dict[int, torch.Tensor] = {}

    def __call__(self, layer: int, hidden_states: torch.Tensor) -> torch.Tensor:
        if layer in self.layers:
            rows, columns = self.rows.to(hidden_states.device), self.columns.to(hidden_states.device)
            self.states[layer] = hidden_states[rows, columns]
            # a compiled run goes on to its end: leaving it would break its graph
            if self.stop_early and layer == max(self.layers) and not torch.compiler.is_compiling():
                raise StopForward
        return hidden_states


class PendingRun(NamedTuple):
    """A text run to come: `run()` gives its `TextStream`; the N tokens of it, and each row's first image column."""

    run: Callable
    rows: torch.Tensor
    columns: torch.Tensor
    first_image: torch.Tensor


@dataclass(frozen=True)
class PromptFusion:
    """
    What to write where, for one prompt (or a slice of it); called with each layer's input.

    Attributes:
        settings (`FusionSettings`): with alpha and beta as floats, or one for each row before expansion.
        text_states, image_states: layer index -> (N, D), unfused runs without and with image (h_q and h_vq).
            No text states yet: the run is pending.
        rows, columns (`torch.Tensor` of shape (M,)): positions to write in the (B, S) batch at hand.
        source (`torch.Tensor` of shape (M,)): which of the N states goes there.
        batch_size (`int`): B before any expansion for beams or return sequences.
        length (`int`): S, the tokens of the prompt.
        pending (`PendingRun`, *optional*): a text run that may be packed into the prefill.
        streams (`GrowingStreams`, *optional*): the text run of an answer that is fused too.
    """

    settings: FusionSettings
    text_states: dict[int, torch.Tensor]
    image_states: dict[int, torch.Tensor] | None
    rows: torch.Tensor
    columns: torch.Tensor
    source: torch.Tensor
    batch_size: int
    length: int = 0
    pending: PendingRun | None = None
    streams: object = None

    def at(self, batch_size: int, length: int, offset: int) -> "PromptFusion | None":
        """The part that falls on tokens offset ... offset + length - 1 of a batch expanded to `batch_size` rows."""
        expand = batch_size // self.batch_size
        inside = (self.columns >= offset) & (self.columns < offset + length)
        if not bool(inside.any()):
            return None
        rows, columns, source = self.rows[inside], self.columns[inside], self.source[inside]
        copies = torch.arange(expand, device=rows.device)
        return PromptFusion(
            self.settings,
            self.text_states,
            self.image_states,
            rows=(rows[:, None] * expand + copies).flatten(),
            columns=(columns - offset).repeat_interleave(expand),
            source=source.repeat_interleave(expand),
            batch_size=batch_size,
        )

    def __call__(self, layer: int, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states (B, S, D) at the input of `layer` -> the same with the fused tokens written (a new tensor)."""
        if layer not in self.text_states:
            return hidden_states
        device, dtype = hidden_states.device, torch.promote_types(hidden_states.dtype, torch.float32)
        index, source = (self.rows.to(device), self.columns.to(device)), self.source.to(device)

        def gather(states):
            return states.to(device)[source].to(dtype)

        def of_row(value):
            if not isinstance(value, torch.Tensor):
                return value
            return value.to(device, dtype)[index[0] // (self.batch_size // len(value)), None]

        alpha, beta = of_row(self.settings.alpha), of_row(self.settings.beta)
        x = hidden_states[index].to(dtype)
        fused = beta * gather(self.text_states[layer])
        if self.settings.rule == "independent":
            fused = alpha * gather(self.image_states[layer]) + fused
        elif self.settings.rule == "additive" and self.image_states is not None:
            fused = x + fused - (1 - alpha) * gather(self.image_states[layer])
        elif self.settings.rule == "additive":
            fused = x + fused
        else:
            fused = alpha * x + fused
        if self.settings.norm:
            fused = fused * (x.norm(dim=-1, keepdim=True) / fused.norm(dim=-1, keepdim=True).clamp_min(1e-12))
        return hidden_states.index_put(index, fused.to(hidden_states.dtype))


def is_one_of(input_ids, token_ids: Sequence[int]) -> torch.Tensor:
    return torch.isin(input_ids, torch.tensor(list(token_ids), device=input_ids.device))


def text_positions(input_ids, attention_mask, image_token_ids: Sequence[int], wrapper_ids: Sequence[int] = ()):
    """(rows, columns), each (N,): the text tokens of the prompts (B, S) that hold an image."""
    attended = attention_mask.bool()
    has_image = (is_one_of(input_ids, image_token_ids) & attended).any(dim=1, keepdim=True)
    dropped = is_one_of(input_ids, [*image_token_ids, *wrapper_ids])
    return (attended & ~dropped & has_image).nonzero(as_tuple=True)


def position_in_row(rows: torch.Tensor) -> torch.Tensor:
    """0, 1, 2 ... within each run of equal values of the sorted `rows`, (N,) -> (N,)."""
    counts = torch.bincount(rows)
    return torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]


def span_columns(span: str, input_ids, attention_mask, image_token_ids: Sequence[int], rows, columns) -> torch.Tensor:
    """Where each text token is written under `span`, (N,); -1 where it is not."""
    if span == "all":
        return columns
    attended = attention_mask.bool()
    if span == "after_image":
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        last_image = torch.where(is_one_of(input_ids, image_token_ids) & attended, positions, -1).amax(dim=1)
        return torch.where(columns > last_image[rows], columns, -1)
    num_text = torch.bincount(rows, minlength=len(input_ids))
    attended_first = (~attended).int().argsort(dim=1, stable=True)
    return attended_first[rows, (attended.sum(dim=1) - num_text)[rows] + position_in_row(rows)]
