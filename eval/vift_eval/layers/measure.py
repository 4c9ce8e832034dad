"""All estimators on one layer of a capture, each with a 95 % interval over items.

Means of points (overlap, imbalance, cosine) are resampled over points; intrinsic dimension is fitted again on
resampled points (their neighbours stay); CKA is computed again on resampled items. `measure` gives one dict per
pooling ("last", "mean"), or None where the points coincide (the last tokens before the first layer are one and the
same word).
"""

import numpy as np

from vift_layers import geometry
from vift_layers.capture import POOLINGS, Capture
from vift_layers.probes import probe

from ..answers.bootstrap import interval

GRIDE_RANKS = (1, 2, 4, 8, 16)  # r_2k / r_k; 1 is TwoNN
RESAMPLES = 200  # of what has to be computed again


def mean(values: np.ndarray) -> dict:
    return {"value": round(float(values.mean()), 4), "ci95": interval(values)}


def dimension(nearest: geometry.Neighbors, k: int, seed: int = 0) -> dict:
    log_mu = geometry.gride_mu(nearest, k)
    generator = np.random.default_rng(seed)
    draws = [geometry.gride(log_mu[generator.integers(len(log_mu), size=len(log_mu))], k) for _ in range(RESAMPLES)]
    bounds = [round(float(bound), 3) for bound in np.nanpercentile(draws, [2.5, 97.5])]
    return {"value": round(geometry.gride(log_mu, k), 3), "ci95": bounds}


def cka(image: np.ndarray, text: np.ndarray, seed: int = 0) -> dict:
    count = len(image)
    picks = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES).T
    values = geometry.cka(image, text, np.concatenate([np.ones((count, 1)), picks], axis=1))
    return {
        "value": round(float(values[0]), 4),
        "ci95": [round(float(v), 4) for v in np.percentile(values[1:], [2.5, 97.5])],
    }


def measure(captured: Capture, layer: int, k: int, labels: dict[str, list] | None = None) -> dict:
    """
    Args:
        layer: representation 0 ... L. k: neighbours of the overlap. labels: name -> class of each item, to probe.

    Raises:
        ValueError: too few items for k.
    """
    return {pooling: measure_pooling(captured, pooling, layer, k, labels or {}) for pooling in POOLINGS}


def measure_pooling(captured: Capture, pooling: str, layer: int, k: int, labels: dict[str, list]) -> dict | None:
    image, text = captured.states("image", pooling, layer), captured.states("text", pooling, layer)
    ranks = [rank for rank in GRIDE_RANKS if 2 * rank <= captured.count - 1]
    most = max(k, 2 * ranks[-1])
    near = {"image": geometry.neighbors(image, most), "text": geometry.neighbors(text, most)}
    if any(one.degenerate for one in near.values()):
        return None
    result = {"overlap": mean(geometry.overlap(near["image"], near["text"], k))}
    if "control" in captured.forms:
        other = geometry.neighbors(captured.states("control", pooling, layer), k)
        result["overlap_chance"] = mean(geometry.overlap(near["image"], other, k))
    else:
        result["overlap_chance"] = {"value": round(k / (captured.count - 1), 4), "ci95": None}
    for form, nearest in near.items():
        result[f"dimension_{form}"] = {str(rank): dimension(nearest, rank) for rank in ranks}
    result["imbalance_image_to_text"] = mean(geometry.information_imbalance(near["image"], text))
    result["imbalance_text_to_image"] = mean(geometry.information_imbalance(near["text"], image))
    result["cka"] = cka(image, text)
    result["cosine"] = mean(geometry.paired_cosine(image, text))
    result["cosine_other"] = mean(geometry.paired_cosine(image, text, shift=captured.count // 2))
    result["probes"] = {
        name: {key: mean(value) if isinstance(value, np.ndarray) else value for key, value in scores.items()}
        for name, scores in ((name, probe(image, text, classes)) for name, classes in labels.items())
    }
    return result
