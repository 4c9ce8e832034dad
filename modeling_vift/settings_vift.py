"""Settings of ability fusion: which values there are, and what the config, a preset and a call add up to.

`h'(v,q) = alpha * h(v,q) + beta * h(q)` (arXiv 2502.11427). Layer l, counted from 0, means its *input*. B: prompts.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real

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
    "reference": "the last tokens, as many as the prompt has without image: the authors' released code, where the "
    "header lands on the last image tokens; for reproduction only",
}
STRENGTHS, SWITCHES = ("alpha", "beta", "dose"), ("fusion_norm", "fusion_answer", "fusion_skip_first")
OVERRIDES = (*STRENGTHS, "fusion_layers", "fusion_rule", "fusion_span", *SWITCHES)
_FIELDS = {f"fusion_{name}": name for name in STRENGTHS}  # the config's names for the first three


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
    skip_first: bool = False

    @property
    def needs_image_run(self) -> bool:
        """Whether the rule reads h_vq, the unfused run with image."""
        needed = isinstance(self.alpha, torch.Tensor) or self.alpha != 1.0
        return self.rule == "independent" or (self.rule == "additive" and needed)


def resolve_fusion(config, fusion=None, **overrides) -> FusionSettings | None:
    """
    Settings of a run: the config's fusion fields, then a preset, then the keywords that are not None.

    `fusion`: on, off, a preset's name, a dict of overrides or None; `overrides`: any of `OVERRIDES`. None when off.

    Raises:
        ValueError: unknown names, values out of range, contradictions; names the argument and the range.
    """
    given = _named(fusion, "unknown fusion argument") if isinstance(fusion, dict) else {}
    given |= _named({name: value for name, value in overrides.items() if value is not None}, "unknown fusion argument")
    preset = {}
    if isinstance(fusion, str):
        if fusion not in config.fusion_presets:
            names = list(config.fusion_presets)
            raise ValueError(f"unknown preset fusion={fusion!r}; config.fusion_presets has {names}")
        preset = _named(config.fusion_presets[fusion], f"fusion_presets[{fusion!r}]: unknown")
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
        if not isinstance(value[name], str) or value[name] not in known:
            raise ValueError(f"{name}={value[name]!r} is unknown; known: {', '.join(known)}")
    for name in SWITCHES:
        if not isinstance(value[name], bool):
            raise ValueError(f"{name}={value[name]!r} must be True or False")
    if "dose" in value:
        beta = _coefficient("dose", value["dose"], -64.0, 64.0) / len(layers)
        beta = _coefficient(f"beta (dose={value['dose']} over {len(layers)} layers)", beta, -2.0, 2.0)
    else:
        beta = _coefficient("beta", value["beta"], -2.0, 2.0)
    alpha = _coefficient("alpha", value["alpha"], 0.0, 2.0)
    settings = FusionSettings(alpha, beta, layers, *(value[name] for name in OVERRIDES[4:]))
    if settings.answer and settings.needs_image_run:
        rule = settings.rule
        raise ValueError(f"fusion_answer=True needs the rule 'cascade', or 'additive' with alpha=1, not {rule!r}")
    return settings


def _named(given: dict, what: str) -> dict:
    """`given` under the names of `OVERRIDES`; the config's names of the same (`fusion_alpha`) mean the same."""
    named = {_FIELDS.get(name, name): value for name, value in given.items()}
    if unknown := sorted(str(name) for name in named if name not in OVERRIDES):
        raise ValueError(f"{what} {unknown[0]!r}; known: {', '.join(OVERRIDES)}")
    if len(named) < len(given):
        twice = next(name for field, name in _FIELDS.items() if {field, name} <= set(given))
        raise ValueError(f"{twice} and fusion_{twice} are one setting: give one")
    return named


def _plain(value):
    """Numbers of numpy and tensors of one number as Python's own; other collections, generators too, as a list."""
    if isinstance(value, str | dict):
        return value
    value = value.tolist() if hasattr(value, "tolist") else value
    return list(value) if isinstance(value, Iterable) else value


def _coefficient(name: str, value, low: float, high: float) -> float | torch.Tensor:
    """A float, or a float tensor of shape (B,), inside [low, high]."""
    plain = _plain(value)
    if isinstance(plain, list):
        numbers = [isinstance(one, Real) and not isinstance(one, bool) and low <= one <= high for one in plain]
        if not numbers or not all(numbers):
            raise ValueError(f"{name}={plain} must be one number, or one a row, in [{low}, {high}]")
        value = value if isinstance(value, torch.Tensor) else torch.tensor(plain, dtype=torch.float32)
        return value if value.is_floating_point() else value.float()
    if isinstance(plain, bool) or not isinstance(plain, Real) or not isfinite(plain) or not low <= plain <= high:
        raise ValueError(f"{name}={plain!r} must be a finite number in [{low}, {high}]")
    return float(plain)


def _resolve_layers(layers, num_layers: int) -> tuple[int, ...]:
    """Layer indices from a fraction of the top, a half-open band "a:b", or a sequence of indices."""
    described = f"fusion_layers={layers!r}"
    layers = _plain(layers)
    if isinstance(layers, float):
        if not 0.0 < layers <= 1.0:
            raise ValueError(f"{described}: a fraction of the top must be in (0, 1]")
        return tuple(range(num_layers - max(1, round(layers * num_layers)), num_layers))
    if isinstance(layers, str):
        start, colon, stop = layers.partition(":")
        try:
            layers = list(range(int(start or 0), int(stop or num_layers))) if colon else []
        except ValueError:
            layers = []
    integers = isinstance(layers, list) and all(isinstance(x, Integral) and not isinstance(x, bool) for x in layers)
    if not integers or not layers:
        raise ValueError(f"{described} must be a fraction in (0, 1], a band 'first:stop' with first < stop, or layers")
    if outside := [layer for layer in (min(layers), max(layers)) if not 0 <= layer < num_layers]:
        raise ValueError(f"{described} reaches layer {outside[0]}, but the model has layers 0 to {num_layers - 1}")
    if len(set(layers)) != len(layers):
        raise ValueError(f"{described} names a layer twice")
    return tuple(sorted(int(layer) for layer in layers))
