"""The band rule: which layers to train, from the profile of neighbourhood overlap over the layers.

Representation l is the input of decoder layer l, so that representation l + 1 is what layer l wrote. The band is the
smallest contiguous range of layers around the one after which overlap of image form and text form (last token) peaks,
in which it holds at least half of its rise over the first value. Where it does not rise, the band is 0.2 L to 0.5 L,
the relative depth that arXiv 2606.03871 reports for LLaVA. Overlap above chance only: what the wording of the
question alone explains (the control of `capture`) is taken off first.
"""

from dataclasses import asdict, dataclass

import numpy as np

from .capture import Capture, capture
from .geometry import neighbors, overlap

SHARE = 0.5  # of the rise
MIN_RISE = 0.02  # a smaller rise of overlap is noise
FALLBACK = (0.2, 0.5)
NEIGHBORS = 30


@dataclass(frozen=True)
class Band:
    """
    Attributes:
        first, stop (`int`): half-open range of layers.
        profile (`list[float | None]`): overlap above chance of representations 0 ... L; None where it has no meaning.
        reason (`str`): how the rule came to it.
    """

    first: int
    stop: int
    profile: list
    reason: str

    def __str__(self) -> str:
        return f"{self.first}:{self.stop}"

    def to_dict(self) -> dict:
        return asdict(self) | {"band": str(self)}


def band_rule(profile) -> Band:
    """
    Args:
        profile: overlap of representations 0 ... L, nan or None where the points coincide.

    Raises:
        ValueError: fewer than two representations.
    """
    values = np.array([np.nan if value is None else value for value in profile], dtype=float)
    num_layers = len(values) - 1
    if num_layers < 1:
        raise ValueError(f"profile has {len(values)} values: one before the first layer and one after each is needed")
    clean = [None if np.isnan(value) else round(float(value), 4) for value in values]
    known = np.flatnonzero(~np.isnan(values))
    written = values[1:]  # by layer
    rise = np.nanmax(written) - values[known[0]] if len(known) and not np.isnan(written).all() else 0.0
    if rise < MIN_RISE:
        first, stop = round(FALLBACK[0] * num_layers), max(1, round(FALLBACK[1] * num_layers))
        first = min(first, stop - 1)
        reason = f"overlap rises by {rise:.3f} only (under {MIN_RISE}): 0.2 to 0.5 of the depth"
        return Band(first, stop, clean, reason)
    peak = int(np.nanargmax(written))
    least = values[known[0]] + SHARE * rise
    first, stop = around(written, peak, least)
    start = f"{values[known[0]]:.3f} at representation {known[0]}"
    reason = f"overlap {start}, peak {written[peak]:.3f} after layer {peak}, half at {least:.3f}"
    return Band(first, stop, clean, reason)


def around(values: np.ndarray, peak: int, least: float) -> tuple[int, int]:
    """The longest half-open range around `peak` in which no value is below `least` (or nan)."""
    high = np.nan_to_num(values, nan=-np.inf) >= least
    first, stop = peak, peak + 1
    while first > 0 and high[first - 1]:
        first -= 1
    while stop < len(values) and high[stop]:
        stop += 1
    return first, stop


def overlap_profile(captured: Capture, k: int | None = None, pooling: str = "last") -> list[float]:
    """Mean overlap of the two forms above chance, one value per representation; nan where points coincide."""
    k = min(NEIGHBORS, max(1, captured.count // 10)) if k is None else k
    profile = []
    for layer in range(captured.num_layers + 1):
        image, text = (neighbors(captured.states(form, pooling, layer), k) for form in ("image", "text"))
        if image.degenerate or text.degenerate:
            profile.append(float("nan"))
            continue
        chance = k / (captured.count - 1)
        if "control" in captured.forms:
            chance = float(overlap(image, neighbors(captured.states("control", pooling, layer), k), k).mean())
        profile.append(float(overlap(image, text, k).mean()) - chance)
    return profile


def choose_band(model, processor, pairs: list[dict], batch_size: int = 16) -> Band:
    """
    Runs the rule on pairs of image and caption (rows as `capture` takes them).

    Args:
        model, processor: any vision-language model that `capture` takes.
        pairs: at least 40 rows.

    Raises:
        ValueError: too few pairs, or what `capture` refuses.
    """
    if len(pairs) < 40:
        raise ValueError(f"{len(pairs)} pairs of image and caption are too few for the band rule: give 40 or more")
    return band_rule(overlap_profile(capture(model, processor, pairs, batch_size=batch_size)))
