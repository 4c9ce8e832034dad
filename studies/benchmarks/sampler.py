"""Padding and waiting of batch samplers on the paper's length profile, simulated; ratios side by side in one run.

    python studies/benchmarks/sampler.py [--rows 200000] [--world 8] [--json FILE]

Profile (arXiv 2502.11427, stage 2): 9 of 10.5 rows are captions with 729 image tokens and 50-150 tokens of text, the
rest text-only instructions of 200-1500 tokens. A micro-batch costs its rows times its longest row; ranks wait for each
other once an optimizer step. Efficiency = real tokens / (ranks x the slowest rank's cost), 1.0 = no padding, no
waiting. `padding` is the share of padded tokens alone. "mixed steps" is the share of optimizer steps with both kinds
of rows, which also cost a pass through the vision tower for every rank.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from vift_eval.files import command_line, made_by, write_json
from vift_train.sampler import ModalityBatchSampler
from vift_train.streaming import PureSteps


def profile(rows: int, seed: int = 0):
    generator = np.random.Generator(np.random.PCG64(seed))
    is_image = generator.random(rows) < 1.7 / 1.9
    lengths = np.where(is_image, 729 + generator.integers(50, 151, rows), generator.integers(200, 1501, rows))
    return np.where(is_image, "image", "text"), lengths


def chunked(order, size: int) -> list:
    order = np.asarray(order)
    return [order[i : i + size] for i in range(0, len(order) - size + 1, size)]


def plans(modalities, lengths, batch: int, world: int, accumulation: int) -> dict:
    """Name -> micro-batches in order; batch i goes to rank i % world."""
    group = world * accumulation
    generator = torch.Generator().manual_seed(0)
    stock = LengthGroupedSampler(batch * group, lengths=lengths.tolist(), generator=generator)
    shuffled = np.random.Generator(np.random.PCG64(0)).permutation(len(lengths))
    common = {"batch_size": batch, "group": group, "seed": 0}
    rows = [{"row": row, "modality": modalities[row]} for row in shuffled.tolist()]
    ranks = [
        list(PureSteps(rows, batch, group, rank, world, measure=lambda step: [lengths[one["row"]] for one in step]))
        for rank in range(world)
    ]
    stream = [micro for round_of_ranks in zip(*ranks) for micro in round_of_ranks]
    return {
        "random (TRL's stock sampler)": chunked(shuffled, batch),
        "length only (train_sampling_strategy=group_by_length)": chunked(list(stock), batch),
        "pure steps": list(ModalityBatchSampler(modalities, **common)),
        "pure steps, grouped by length (ours)": list(ModalityBatchSampler(modalities, lengths=lengths, **common)),
        "the same from a stream (ours)": [[one["row"] for one in micro] for micro in stream],
    }


def measure(batches: list, modalities, lengths, world: int, accumulation: int) -> dict:
    real = padded = waited = mixed = steps = 0
    group = world * accumulation
    for start in range(0, len(batches) - group + 1, group):
        step = batches[start : start + group]
        cost = np.array([len(b) * lengths[b].max() for b in step]).reshape(accumulation, world)
        real += sum(int(lengths[b].sum()) for b in step)
        padded += int(cost.sum())
        waited += world * int(cost.sum(axis=0).max())
        mixed += len({name for b in step for name in modalities[b]}) > 1
        steps += 1
    return {
        "efficiency": round(real / waited, 4),
        "padding": round(1 - real / padded, 4),
        "mixed_steps": round(mixed / steps, 4),
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=4, help="rows a micro-batch")
    parser.add_argument("--world", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    modalities, lengths = profile(args.rows)
    results = {}
    for name, batches in plans(modalities, lengths, args.batch, args.world, args.accumulation).items():
        results[name] = measure(batches, modalities, lengths, args.world, args.accumulation)
        row = results[name]
        print(f"{name:55s} efficiency {row['efficiency']:.3f}  padding {row['padding']:6.2%}  "
              f"mixed steps {row['mixed_steps']:4.0%}", flush=True)  # fmt: skip
    if args.json:
        shape = {name: value for name, value in vars(args).items() if name != "json"}
        write_json(args.json, {"made": made_by(command_line(__file__, argv)), **shape, "results": results})


if __name__ == "__main__":
    main()
