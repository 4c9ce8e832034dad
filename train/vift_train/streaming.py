"""Pure steps from a stream: the counterpart of `ModalityBatchSampler` for an `IterableDataset`.

Rows wait in one buffer per modality until it holds an optimizer step (`batch_size` x `group`); the step is then dealt
out as `group` micro-batches, micro-batch i to rank i % world. What is left at the end of the stream makes one
smaller step per modality; no row is lost or repeated (unless fewer rows are left than micro-batches).

With `endless` one pass follows the other, each with the stream's `set_epoch`. Every rank reads the whole stream and
keeps its part: no communication, all ranks agree, and a resumed run sees the same next batch, of any pass, by
skipping. The price is that each rank reads `world` times the rows it uses; shuffle when the shards are written, not
with a shuffle buffer.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import count

import numpy as np
import torch
from torch.utils.data import IterableDataset


class PureSteps(IterableDataset):
    """
    Yields micro-batches (lists of rows) of this rank.

    Args:
        rows: an iterable of rows with `modality`.
        batch_size: most rows of a micro-batch.
        group: micro-batches per optimizer step, over all ranks.
        rank, world: this process and the number of processes; `group` must be a multiple of `world`.
        measure: rows -> their lengths in tokens, so that micro-batches hold rows of like length; None = as they come.
        endless: begin anew at the end of the stream, unless it is empty.
    """

    def __init__(self, rows: Iterable[dict], batch_size: int, group: int, rank: int = 0, world: int = 1,
                 measure: Callable[[list[dict]], list[int]] | None = None, endless: bool = False):  # fmt: skip
        if batch_size < 1 or group < 1 or group % world or not 0 <= rank < world:
            raise ValueError(f"batch_size={batch_size}, group={group}, rank={rank}, world={world} do not fit together")
        self.rows, self.batch_size, self.group, self.rank, self.world = rows, batch_size, group, rank, world
        self.measure, self.endless = measure, endless
        self.epoch = torch.zeros((), dtype=torch.long)  # of the pass; the trainer's collator reads it

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)

    def _deal(self, step: list[dict]) -> Iterator[list[dict]]:
        order = np.arange(len(step))
        if self.measure is not None:
            order = np.argsort(np.negative(self.measure(step)), kind="stable")
        order = np.resize(order, max(len(step), self.group))
        parts = np.array_split(order, self.group)
        for number, start in enumerate(range(0, self.group, self.world)):
            # every other round is dealt from the other end: the long ones take turns
            place = self.rank if number % 2 == 0 else self.world - 1 - self.rank
            yield [step[i] for i in parts[start + place]]

    def __iter__(self) -> Iterator[list[dict]]:
        for number in count() if self.endless else range(1):
            if self.endless:
                self.set_epoch(number)
            empty = True
            for batch in self._one_pass():
                yield batch
                empty = False
            if empty:
                return

    def _one_pass(self) -> Iterator[list[dict]]:
        buffers: dict[str, list[dict]] = {}
        for row in self.rows:
            buffer = buffers.setdefault(row["modality"], [])
            buffer.append(row)
            if len(buffer) == self.batch_size * self.group:
                yield from self._deal(buffer)
                buffers[row["modality"]] = []
        for _, buffer in sorted(buffers.items()):
            if buffer:
                yield from self._deal(buffer)
