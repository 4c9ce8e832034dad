"""Where a training step's time goes on a CPU, on the real parts of `train/recipes/smol`; ways take turns in one run.

    OMP_NUM_THREADS=2 python studies/benchmarks/step.py --model START --json docs/results/training/step.json

START is what `vift init` makes of SmolLM2-135M and EfficientNet-Lite0. A step is stage 1's: 16 captions, forward and
backward of the trainer, without the optimizer (a connector of 1 M parameters). Two ways take turns, medians of five:

    all         TRL scores every position, as it does on devices without Triton
    labelled    `vift_train.labelled`: only positions that have a label
"""

import argparse
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from datasets import disable_progress_bars

from vift_eval.files import command_line, made_by, write_json
from vift_eval.models import load_model
from vift_pictures import web_captions
from vift_train import trainer as module
from vift_train.config import VIFTTrainingConfig
from vift_train.data import load_rows
from vift_train.labelled import labelled_only

ROUNDS = 5
PARTS = {  # kernels of torch -> what they are part of; the first that fits
    "matrix products": ("mm", "addmm", "bmm", "addmm_", "linear"),
    "vision tower": ("convolution", "batch_norm", "clamp"),
    "attention": ("scaled_dot_product",),
    "exponentials and softmax": ("exp", "softmax", "logsumexp"),
    "copies and fills": ("copy_", "fill_", "zero_", "cat"),
}


def part_of(kernel: str) -> str:
    name = kernel.removeprefix("aten::").lstrip("_")
    for part, words in PARTS.items():
        if name in words or any(len(word) > 6 and word in name for word in words):
            return part
    return "other elementwise work"


def trainer_of(model, processor, folder: str):
    rows = [{"image": row["image"], "captions": row["captions"]} for row in web_captions(16)]
    for number, row in enumerate(rows):
        row["image"].save(Path(folder) / f"{number}.png")
        row["image"] = f"{number}.png"
    lines = Path(folder) / "web.json"
    write_json(lines, rows)
    args = VIFTTrainingConfig(
        output_dir=folder, stage=1, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        per_device_train_batch_size=16, max_steps=1, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    return module.VIFTTrainer(model, args, load_rows(str(lines), plain=True), processing_class=processor)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    disable_progress_bars()
    model, processor = load_model(str(args.model))
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(model, processor, folder)
        batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(16)]))

        def step(way) -> float:
            module.labelled_only = way
            trainer.model.train()
            start = time.perf_counter()
            trainer.compute_loss(trainer.model, dict(batch)).backward()
            return time.perf_counter() - start

        ways = {"all": nullcontext, "labelled": labelled_only}
        for way in ways.values():
            step(way)
        seconds = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                seconds[name].append(step(way))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            step(labelled_only)
    shares: dict[str, float] = {}
    for event in profile.key_averages():
        shares[part_of(event.key)] = shares.get(part_of(event.key), 0.0) + event.self_cpu_time_total
    total = sum(shares.values())
    medians = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
    results = {
        "made": made_by(command_line("studies/benchmarks/step.py", argv), args.model),
        "threads": torch.get_num_threads(), "rows": 16, "tokens": int(batch["attention_mask"].sum()),
        "labelled_tokens": int((batch["labels"][:, 1:] != -100).sum()), "seconds": medians,
        "all_over_labelled": round(medians["all"] / medians["labelled"], 3),
        "shares": {part: round(share / total, 4) for part, share in sorted(shares.items(), key=lambda one: -one[1])},
    }  # fmt: skip
    print(results)
    if args.json:
        write_json(args.json, results)


if __name__ == "__main__":
    main()
