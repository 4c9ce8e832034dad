"""Seconds of CPU before the first optimizer step, by stage and number of rows, with lengths stored and counted.

    OMP_NUM_THREADS=1 python studies/benchmarks/startup.py [--rows 20000 50000 200000] [--json FILE]

Rows are those of the micro-world, repeated under other ids and written to disk in the trainer's columns (about 1 kB a
row; pictures are opened when they are trained on). "columns" are `modality` and `length` as arrays, "digest" is the
record of all rows that resuming compares (main process), "plan" the sampler up to its first micro-batch, "trainer" all
of `VIFTTrainer(...)`, which includes the first two, "step" `train()` with one step. The first step comes after open +
trainer + step. "at 2 M" is the line through the last two sizes. Counting lengths is measured at the smallest size, in
one process (`--num_proc` divides it); `datasets` keeps them for the next run.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, Value, concatenate_datasets, load_from_disk
from datasets.table import InMemoryTable
from transformers import AutoProcessor

from modeling_vift import VIFTForConditionalGeneration
from vift_eval.files import command_line, made_by, write_json
from vift_microworld import detailed_captions, text_instructions
from vift_train.lengths import column, dataset_lengths
from vift_train.runs import digest_rows
from vift_train.sampler import ModalityBatchSampler
from vift_train.trainer import VIFTTrainer, VIFTTrainingConfig

GOAL = 2_000_000


def write_rows(count: int, folder: Path) -> None:
    base = concatenate_datasets([detailed_captions(900), text_instructions(100)])
    lengths = np.random.Generator(np.random.PCG64(0)).integers(50, 1500, len(base))
    base = base.add_column("length", lengths)
    table = pa.concat_tables([base.data.table] * (count // len(base)))
    table = table.append_column("id", pa.array(np.arange(len(table))).cast(pa.string()))
    info = DatasetInfo(features=Features(base.features | {"id": Value("string")}))
    Dataset(InMemoryTable(table), info=info).save_to_disk(folder)


def measure(count: int, model_name: str) -> dict:
    """Seconds of the process's CPU time of each stage, and of the clock in all."""
    seconds = {}

    def timed(name: str, work):
        start = time.process_time()
        value = work()
        seconds[name] = round(time.process_time() - start, 3)
        return value

    with tempfile.TemporaryDirectory() as scratch:
        write_rows(count, Path(scratch) / "rows")
        began = time.monotonic()
        rows = timed("open", lambda: load_from_disk(Path(scratch) / "rows"))
        modalities, lengths = timed("columns", lambda: [column(rows, name) for name in ("modality", "length")])
        timed("digest", lambda: digest_rows(rows))
        sampler = ModalityBatchSampler(modalities, batch_size=4, group=32, lengths=lengths)
        timed("plan", lambda: next(iter(sampler)))
        model = VIFTForConditionalGeneration.from_pretrained(model_name)
        processor = AutoProcessor.from_pretrained(model_name, trust_remote_code=True)
        args = VIFTTrainingConfig(
            output_dir=f"{scratch}/out", max_steps=1, save_strategy="no", report_to=[], use_cpu=True, bf16=False,
            per_device_train_batch_size=4, disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = timed("trainer", lambda: VIFTTrainer(model, args, rows, processing_class=processor))
        timed("step", trainer.train)
    seconds["first step"] = round(sum(seconds[name] for name in ("open", "trainer", "step")), 3)
    return seconds | {"clock, all of it": round(time.monotonic() - began, 1)}


def count_lengths(count: int, model_name: str) -> float:
    """Microseconds of CPU a row."""
    processor = AutoProcessor.from_pretrained(model_name, trust_remote_code=True)
    with tempfile.TemporaryDirectory() as scratch:
        write_rows(count, Path(scratch) / "rows")
        rows, start = load_from_disk(Path(scratch) / "rows"), time.process_time()
        dataset_lengths(rows, processor, 9)
        return round((time.process_time() - start) / count * 1e6, 1)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="checkpoints/vift-micro")
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 50_000, 200_000], help="each at least 1000")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    measure(1000, args.model)  # warms up
    results = {count: measure(count, args.model) for count in args.rows}
    (less, before), (more, last) = list(results.items())[-2:]
    ahead = {name: last[name] + (last[name] - before[name]) / (more - less) * (GOAL - more) for name in last}
    ahead = {name: round(max(value, last[name]), 1) for name, value in ahead.items()}
    counted = count_lengths(min(args.rows), args.model)
    print(f"{'':>18s}{''.join(f'{count:>12,}' for count in results)}{'at 2 M':>12s}")
    for name in last:
        print(f"{name:>18s}{''.join(f'{one[name]:12.2f}' for one in results.values())}{ahead[name]:12.1f}")
    print(f"lengths that are not stored: {counted} microseconds a row, {counted * GOAL / 6e7:.1f} min at 2 M, once")
    if args.json:
        made = made_by(command_line(__file__, argv), args.model)
        found = {"seconds": results, "seconds_at_2M": ahead, "microseconds_to_count_a_length": counted}
        write_json(args.json, {"made": made, **found})


if __name__ == "__main__":
    main()
