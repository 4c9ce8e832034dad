"""All estimators on one layer of a capture, each with a 95 % interval over items.

Means of independent items (cosine, probes) are bootstrapped; overlap, dimension, imbalance and CKA are made again
without each of 20 groups of items (`vift_layers.jackknife`). `measure` gives one dict per pooling ("last", "mean"), or
None where the points coincide (the last tokens before the first layer are one and the same word).
"""

import numpy as np

from vift_layers import geometry, jackknife
from vift_layers.capture import POOLINGS, Capture
from vift_layers.probes import probe

from ..answers.bootstrap import interval

GRIDE_RANKS = (1, 2, 4, 8, 16)  # r_2k / r_k; 1 is TwoNN


def mean(values: np.ndarray) -> dict:
    return {"value": round(float(values.mean()), 4), "ci95": interval(values)}


def estimate(value: float, without: np.ndarray, digits: int = 4) -> dict:
    """An estimate of all items with its interval, from those without each group."""
    bounds = jackknife.interval(float(value), without)
    return {"value": round(float(value), digits), "ci95": [round(bound, digits) for bound in bounds]}


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
    groups, spare = jackknife.groups_of(captured.count), jackknife.spare(captured.count)
    ranks = [rank for rank in GRIDE_RANKS if 2 * rank + spare <= captured.count - 1]
    most = max(k, 2 * ranks[-1]) + spare
    near = {"image": geometry.neighbors(image, most), "text": geometry.neighbors(text, most)}
    if any(one.degenerate for one in near.values()):
        return None

    def overlap(first, second) -> dict:
        whole = geometry.overlap(first, second, k).mean()
        return estimate(whole, jackknife.overlaps(first, second, k, groups))

    def cka(other) -> dict:
        values = jackknife.ckas(image, other, groups)
        return estimate(values[0], values[1:])

    result = {"overlap": overlap(near["image"], near["text"]), "cka": cka(text)}
    if "control" in captured.forms:
        other = captured.states("control", pooling, layer)
        result["overlap_chance"] = overlap(near["image"], geometry.neighbors(other, k + spare))
        result["cka_chance"] = cka(other)
    else:
        result["overlap_chance"] = {"value": round(k / (captured.count - 1), 4), "ci95": None}
        result["cka_chance"] = {"value": 0.0, "ci95": None}
    for form, nearest in near.items():
        result[f"dimension_{form}"] = {
            str(rank): estimate(
                geometry.gride(geometry.gride_mu(nearest, rank), rank), jackknife.dimensions(nearest, rank, groups), 3
            )
            for rank in ranks
        }
    for name, nearest, other in (("image_to_text", near["image"], text), ("text_to_image", near["text"], image)):
        whole = geometry.information_imbalance(nearest, other).mean()
        result[f"imbalance_{name}"] = estimate(whole, jackknife.imbalances(nearest, other, groups))
    result["cosine"] = mean(geometry.paired_cosine(image, text))
    result["cosine_other"] = mean(geometry.paired_cosine(image, text, shift=captured.count // 2))
    result["probes"] = {
        name: {key: mean(value) if isinstance(value, np.ndarray) else value for key, value in scores.items()}
        for name, scores in ((name, probe(image, text, classes)) for name, classes in labels.items())
    }
    return result
