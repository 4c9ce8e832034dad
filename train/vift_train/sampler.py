"""Batches of one modality: every optimizer step is all image rows or all text rows, on all ranks.

Worked example, 8 image rows (0-7), 4 text rows (8-11), `batch_size` 2, `group` 2 (two ranks, say), seed 0:

>>> lengths = [30, 50, 40, 60, 20, 80, 70, 10, 300, 200, 900, 400]
>>> list(ModalityBatchSampler(["image"] * 8 + ["text"] * 4, batch_size=2, group=2, lengths=lengths))
[[5, 6], [3, 1], [10, 11], [8, 9], [2, 0], [4, 7]]

`group` consecutive batches make one optimizer step and have one modality: 5 6 | 3 1 are image rows (rank 0 and
rank 1), 10 11 | 8 9 text rows, 2 0 | 4 7 image rows. Inside a modality, rows are shuffled, cut into chunks of
`chunk_steps` steps, and sorted by length inside a chunk, so that the rows of a step, on all ranks, have like
lengths: little padding, little waiting. The steps are then shuffled, but the longest step of each modality comes
first: what does not fit into memory fails at once. Text steps are spread evenly over the epoch (`order="even"`)
or put in random order.

Rows that do not fill the last step are spread over all steps: none is lost, and none is repeated unless a
modality has fewer rows than its steps have micro-batches (one row and two ranks, or the last step of `batch_size` 1).
The plan is a pure function of
(seed, epoch), the same on every rank, with no communication; accelerate deals batch i to rank i % world.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

ORDERS = ("even", "random", "mixed")


class ModalityBatchSampler(Sampler[list[int]]):
    """
    Args:
        modalities: one name per row, such as "image" or "text".
        batch_size: most rows of a micro-batch.
        group: micro-batches per optimizer step: gradient accumulation steps x ranks.
        seed: the plan of an epoch depends on (seed, epoch) only.
        lengths: tokens of each row; None = no grouping by length.
        order: "even" or "random" order of the steps of different modalities; "mixed": steps of both modalities, the
            control that shows what pure steps are worth.
        chunk_steps: optimizer steps that are sorted by length together.
        weights: how often an epoch visits each row, by modality, default 1: with 0.5 it holds a random half of the
            rows, with 2 every row twice.

    Raises:
        ValueError: a size below 1, an unknown order, or another number of lengths than rows.
    """

    # accelerate's BatchSamplerShard holds back batches shorter than `batch_size` unless it is None
    batch_size = None
    drop_last = False

    def __init__(self, modalities: Sequence[str], batch_size: int, group: int = 1, seed: int = 0,
                 lengths: Sequence[int] | None = None, order: str = "even", chunk_steps: int = 16,
                 weights: dict[str, float] | None = None):  # fmt: skip
        for name, value in (("batch_size", batch_size), ("group", group), ("chunk_steps", chunk_steps)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if order not in ORDERS:
            raise ValueError(f"order={order!r} must be one of {', '.join(ORDERS)}")
        modalities = np.asarray(modalities if order != "mixed" else ["mixed"] * len(modalities))
        if lengths is not None and len(lengths) != len(modalities):
            raise ValueError(f"lengths has {len(lengths)} values, modalities {len(modalities)}")
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.group, self.seed, self.epoch, self.order = group, seed, 0, order
        self._chunk = chunk_steps * batch_size * group
        self._rows = {str(name): np.flatnonzero(modalities == name) for name in np.unique(modalities)}
        weights = weights or {}
        if order == "mixed" and any(weight != 1 for weight in weights.values()):
            raise ValueError(f"order='mixed' visits every row once, got weights={weights}")
        self._visits = {name: max(1, round(weights.get(name, 1) * len(rows))) for name, rows in self._rows.items()}
        # optimizer steps per epoch, by modality
        self.steps = {name: -(-visits // (batch_size * group)) for name, visits in self._visits.items()}

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        """Micro-batches per epoch."""
        return self.group * sum(self.steps.values())

    def _plan_modality(self, name: str, generator: np.random.Generator):
        """(rows, bounds, order): micro-batch i is rows[bounds[i] : bounds[i + 1]]; `order` is that of the steps."""
        rows = self._rows[name]
        steps = self.steps[name]
        parts = steps * self.group
        rounds = -(-self._visits[name] // len(rows))
        rows = np.concatenate([generator.permutation(rows) for _ in range(rounds)])[: self._visits[name]]
        rows = np.resize(rows, max(len(rows), parts))  # repeats rows only if there are too few
        small, larger = divmod(len(rows), parts)  # the first `larger` micro-batches hold one row more
        bounds = np.arange(parts + 1) * small + np.minimum(np.arange(parts + 1), larger)
        if self.lengths is None:
            return rows, bounds, np.arange(steps)
        chunk = np.arange(len(rows)) // self._chunk
        rows = rows[np.lexsort((-self.lengths[rows], chunk))]
        order = generator.permutation(steps)
        longest = np.maximum.reduceat(self.lengths[rows], bounds[: -1 : self.group])[order].argmax()
        order[[0, longest]] = order[[longest, 0]]
        return rows, bounds, order

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.Generator(np.random.PCG64([self.seed, self.epoch]))
        plans, times, modality, step = [], [], [], []
        for number, name in enumerate(self._rows):
            plans.append(self._plan_modality(name, generator))
            steps = self.steps[name]
            if self.order != "random":
                when = (np.arange(steps) + generator.random()) / steps
            else:
                when = np.sort(generator.random(steps))
            if self.lengths is not None:
                when[0] = -1.0  # the longest step of each modality
            times.append(when)
            modality.append(np.full(steps, number))
            step.append(plans[-1][2])
        if not plans:
            return
        times, modality, step = (np.concatenate(values) for values in (times, modality, step))
        for i in np.lexsort((modality, times)):
            rows, bounds, _ = plans[modality[i]]
            for batch in range(step[i] * self.group, (step[i] + 1) * self.group):
                yield rows[bounds[batch] : bounds[batch + 1]].tolist()
