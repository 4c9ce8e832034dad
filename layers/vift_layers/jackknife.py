"""95 % intervals over items of estimators that are no means of independent items: the delete-a-group jackknife.

The N items are dealt to G groups, the estimate is made again without each group, and

    error^2 = (G - 1) / G * sum_g (estimate_g - mean)^2,    interval = estimate -/+ t(0.975, G - 1) * error

A bootstrap would not do: an item that is drawn twice is its own nearest neighbour, and its own most similar item,
which lifts overlap, dimension and CKA (at width D >= N beyond their own value). Busing et al. 1999 (doi
10.1023/A:1008800423698). Shapes: x, y (N, D); groups (N,), a number 0 ... G - 1 for each item.
"""

import numpy as np
from scipy.stats import t

from .geometry import Neighbors, cka, gride, gride_mu, overlap, ranks

GROUPS = 20


def groups_of(count: int, seed: int = 0) -> np.ndarray:
    """Which group each of `count` items is in: (count,)."""
    return np.random.default_rng(seed).permutation(count) % min(GROUPS, count)


def spare(count: int) -> int:
    """Neighbours beyond the k that are needed, so that k are left without any group."""
    return -(-count // min(GROUPS, count))


def interval(value: float, without: np.ndarray) -> list[float]:
    """[low, high] around `value`, from the estimates without each group, (G,)."""
    count = len(without)
    error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    reach = float(t.ppf(0.975, count - 1) * error)
    return [value - reach, value + reach]


def without(nearest: Neighbors, groups: np.ndarray, group: int, k: int) -> Neighbors:
    """The k nearest neighbours among the items outside `group`, of those items."""
    outside = groups != group
    index, distance = nearest.index[outside], nearest.distance[outside]
    there = groups[index] != group
    if there.sum(axis=1).min() < k:
        raise ValueError(f"k={k} neighbours without a group need {k + spare(len(groups))}, {index.shape[1]} are known")
    order = np.argsort(~there, axis=1, kind="stable")[:, :k]
    return Neighbors(np.take_along_axis(index, order, axis=1), np.take_along_axis(distance, order, axis=1))


def overlaps(first: Neighbors, second: Neighbors, k: int, groups: np.ndarray) -> np.ndarray:
    """Mean neighbourhood overlap without each group: (G,)."""
    numbers = range(groups.max() + 1)
    return np.array([overlap(without(first, groups, g, k), without(second, groups, g, k), k).mean() for g in numbers])


def dimensions(nearest: Neighbors, k: int, groups: np.ndarray) -> np.ndarray:
    """Gride without each group: (G,)."""
    numbers = range(groups.max() + 1)
    return np.array([gride(gride_mu(without(nearest, groups, g, 2 * k), k), k) for g in numbers])


def imbalances(nearest: Neighbors, y: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Information imbalance from the set of `nearest` to y without each group: (G,)."""
    first = nearest.index[:, 0]
    others = groups[nearest.index] != groups[first][:, None]  # the nearest that is in another group than the first
    if not others.any(axis=1).all():
        raise ValueError(
            f"an imbalance without a group needs {1 + spare(len(y))} neighbours, {others.shape[1]} are known"
        )
    second = np.take_along_axis(nearest.index, others.argmax(axis=1)[:, None], axis=1)[:, 0]
    members = np.eye(groups.max() + 1, dtype=np.float32)[groups]
    rank = np.stack([ranks(y, target, members=members) for target in (first, second)])  # (2, N, G), without each group
    values = []
    for group in range(groups.max() + 1):
        outside = groups != group
        own = np.where(groups[first] != group, rank[0, :, group], rank[1, :, group])[outside]
        values.append(2 / outside.sum() * own.mean())
    return np.array(values)


def ckas(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Debiased linear CKA of all items, and without each group: (1 + G,)."""
    kept = groups[:, None] != np.arange(groups.max() + 1)
    return cka(x, y, np.concatenate([np.ones((len(x), 1), dtype=bool), kept], axis=1))
