"""95 % bootstrap intervals over questions: of means, of paired differences, of ratios of gaps.

Arrays of hits are (questions,) or (seeds, questions). The bootstrap draws questions and keeps the seeds: its intervals
speak of other questions, not of other training runs, whose spread is shown seed by seed.
"""

import numpy as np

RESAMPLES = 2000


def _resample(values: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Means of `resamples` draws with replacement over the last axis, earlier axes averaged: (resamples,)."""
    values = np.asarray(values, dtype=float)
    per_question = values.reshape(-1, values.shape[-1]).mean(axis=0)
    generator = np.random.Generator(np.random.PCG64(seed))
    picks = generator.integers(len(per_question), size=(resamples, len(per_question)))
    return per_question[picks].mean(axis=1)


def _bounds(draws: np.ndarray) -> list[float]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return [round(float(low), 4), round(float(high), 4)]


def interval(values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> list[float]:
    """95 % bootstrap interval of the mean over the last axis (questions); earlier axes are averaged."""
    return _bounds(_resample(values, seed, resamples))


def difference(first: np.ndarray, second: np.ndarray) -> dict:
    """Paired difference of two arrays of hits, (questions,) or (seeds, questions)."""
    delta = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    return {"difference": round(float(delta.mean()), 4), "ci95": interval(delta)}


def gap_closed(fused, unfused, reached, seed: int = 0, resamples: int = RESAMPLES) -> dict:
    """
    (fused - unfused) / (reached - unfused), the share of the distance to `reached` that fusion closes.

    Returns:
        {"value", "ci95"}: None where `reached` is not above `unfused` (value), or not so in all draws (ci95).
    """
    # the same seed: the same questions are drawn for both differences
    gain = _resample(np.asarray(fused, float) - np.asarray(unfused, float), seed, resamples)
    gap = _resample(np.asarray(reached, float) - np.asarray(unfused, float), seed, resamples)
    mean_gap = float(np.mean(reached) - np.mean(unfused))
    if mean_gap <= 0:
        return {"value": None, "ci95": None}
    value = round(float(np.mean(fused) - np.mean(unfused)) / mean_gap, 4)
    return {"value": value, "ci95": _bounds(gain / gap) if (gap > 0).all() else None}
