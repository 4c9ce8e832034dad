"""Batches of one modality: every optimizer step is all image rows or all text rows, on all ranks.

Worked example, 5 image rows (0-4), 3 text rows (5-7), `batch_size` 2, `group` 1:

    image: shuffled 3 0 4 1 2 -> dealt into 3 batches of sizes 2, 2, 1
    text:  shuffled 7 5 6     -> dealt into 2 batches of sizes 2, 1
    order: image text image text image (the text share stays steady over the epoch)

`group` consecutive batches have one modality: gradient accumulation steps x ranks. Rows that do not fill
the last step are spread over all steps; none is lost, and none is repeated unless a modality has fewer rows
than batches (one row and two ranks, say). The plan is a pure function of (seed, epoch), the same on every rank.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class ModalityBatchSampler(Sampler[list[int]]):
    """
    Args:
        modalities: one name a row, such as "image" or "text".
        batch_size: rows a micro-batch at most.
        group: micro-batches an optimizer step, over all ranks.
        seed: the order of an epoch depends on (seed, epoch) only.
    """

    def __init__(self, modalities: Sequence[str], batch_size: int, group: int = 1, seed: int = 0):
        if batch_size < 1 or group < 1:
            raise ValueError(f"batch_size={batch_size} and group={group} must be at least 1")
        self.batch_size, self.group, self.seed, self.epoch = batch_size, group, seed, 0
        modalities = np.asarray(modalities)
        self._rows = {name: np.flatnonzero(modalities == name) for name in np.unique(modalities)}
        step = batch_size * group
        self._steps = {name: -(-len(rows) // step) for name, rows in self._rows.items()}

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        """Micro-batches an epoch."""
        return self.group * sum(self._steps.values())

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.Generator(np.random.PCG64([self.seed, self.epoch]))
        steps = []
        for name, rows in self._rows.items():
            order = generator.permutation(rows)
            parts = self._steps[name] * self.group
            order = np.resize(order, max(len(order), parts))  # repeats rows only if there are too few
            batches = [part.tolist() for part in np.array_split(order, parts)]
            offset = generator.random()
            for i in range(self._steps[name]):
                when = (i + offset) / self._steps[name]  # evenly over the epoch
                steps.append((when, name, batches[i * self.group : (i + 1) * self.group]))
        for _, _, batches in sorted(steps, key=lambda step: step[:2]):
            yield from batches
