"""Tokens per second of real training steps, by how rows are put into batches; ratios side by side in one run.

    OMP_NUM_THREADS=1 python studies/benchmarks/throughput.py [--steps 48] [--json FILE]

The rows have the paper's length profile (arXiv 2502.11427, stage 2; see `sampler.py`) at 1/9: captions of 81 image
tokens and 5-16 words, instructions of 22-166 words. Micro-batches are drawn from three plans over the same rows and
trained on in turn, so that the machine's drift hits all alike:

    stock   random rows, as TRL's `SFTTrainer` takes them
    pure    `ModalityBatchSampler`: pure steps, grouped by length (one rank, accumulation 16)
    limit   no padding: every row has the mean length of its modality

A step is the trainer's collator, forward, backward and AdamW on a model with random weights. Seconds are the process's
CPU time; tokens are real ones, without padding.
"""

import argparse
import io
import random
import time
from pathlib import Path

import numpy as np
import torch
from band import build  # beside this file, as is `sampler`
from datasets import Dataset
from PIL import Image
from sampler import profile
from transformers import LlavaProcessor, SiglipImageProcessorPil

import vift_hub
from vift_eval.files import command_line, made_by, write_json
from vift_microworld import build_tokenizer
from vift_microworld.data import TRAINING_FEATURES, assistant_turn, user_turn
from vift_train.collator import CheckedCollator
from vift_train.lengths import dataset_lengths
from vift_train.sampler import ModalityBatchSampler

IMAGE_SIZE, PATCH, SCALE = 72, 8, 9  # the patch is that of `build`
IMAGE_TOKENS = (IMAGE_SIZE // PATCH) ** 2  # 81 = 729 / 9
TEMPLATE = Path(vift_hub.__file__).with_name("chat_template.jinja")


def build_processor() -> LlavaProcessor:
    template = TEMPLATE.read_text(encoding="utf-8")
    image_processor = SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return LlavaProcessor(
        image_processor, build_tokenizer(template), PATCH, "full", chat_template=template, image_token="<image>"
    )


def build_rows(modalities, words) -> Dataset:
    """Rows whose answers have so many words, one token each; the chat template's few tokens come on top."""
    buffer = io.BytesIO()
    Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (90, 120, 30)).save(buffer, format="PNG")
    picture = {"bytes": buffer.getvalue(), "path": None}
    is_image = [name == "image" for name in modalities]
    question = {True: user_turn(None, image=True), False: user_turn("count .", image=False)}
    rows = {
        "messages": [[question[image], assistant_turn("digit " * int(n))] for image, n in zip(is_image, words)],
        "images": [[picture] if image else [] for image in is_image],
        "modality": list(modalities),
    }
    return Dataset.from_dict(rows, features=TRAINING_FEATURES)


def plans(modalities, words, processor, batch: int) -> dict:
    """Name -> (data set, micro-batches)."""
    rows = build_rows(modalities, words)
    lengths = dataset_lengths(rows, processor, IMAGE_TOKENS)
    shuffled = np.random.Generator(np.random.PCG64(0)).permutation(len(rows))
    stock = [shuffled[i : i + batch].tolist() for i in range(0, len(rows) - batch + 1, batch)]
    pure = list(ModalityBatchSampler(modalities, batch, group=16, lengths=lengths))
    mean = {name: round(np.mean(words[modalities == name])) for name in ("image", "text")}
    even = build_rows(modalities, [mean[name] for name in modalities])
    return {"stock": (rows, stock), "pure": (rows, pure), "limit": (even, pure)}


def measure(steps: int, rows: int, batch: int, layers: int, width: int) -> dict:
    processor = build_processor()
    modalities, lengths = profile(rows)
    words = np.maximum(1, (lengths - np.where(modalities == "image", 729, 0)) // SCALE)
    planned = plans(modalities, words, processor, batch)
    model = build(layers, width, len(processor.tokenizer), processor.image_token_id, IMAGE_SIZE, tower_layers=4)
    model.model.vision_tower.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    collate = CheckedCollator(processor, max_length=None, assistant_only_loss=True)
    drawn = {name: random.Random(0).sample(batches, steps + 1) for name, (_, batches) in planned.items()}
    total = {name: {"tokens": 0, "places": 0, "seconds": 0.0} for name in planned}
    for step in range(steps + 1):
        for name, (dataset, _) in planned.items():
            examples = [dataset[i] for i in drawn[name][step]]
            start = time.process_time()
            inputs = collate(examples)
            model(**inputs, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step:  # the first one warms up
                total[name]["seconds"] += time.process_time() - start
                total[name]["tokens"] += int(inputs["attention_mask"].sum())
                total[name]["places"] += inputs["attention_mask"].numel()
    speed = {name: t["tokens"] / t["seconds"] for name, t in total.items()}
    return {
        name: {
            "tokens_per_second": round(speed[name], 1),
            "of_limit": round(speed[name] / speed["limit"], 4),
            "of_stock": round(speed[name] / speed["stock"], 4),
            "padding": round(1 - t["tokens"] / t["places"], 4),
        }
        for name, t in total.items()
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=48, help="micro-batches of each plan")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    options = {name: getattr(args, name) for name in ("steps", "rows", "batch", "layers", "width")}
    results = measure(**options)
    for name, row in results.items():
        print(f"{name:6s} {row['tokens_per_second']:8.0f} tokens/s   {row['of_limit']:.3f} of the limit   "
              f"{row['of_stock']:.3f} of stock   padding {row['padding']:6.2%}")  # fmt: skip
    if args.json:
        shape = options | {"threads": torch.get_num_threads()}
        write_json(args.json, {"made": made_by(command_line(__file__, argv)), **shape, "results": results})


if __name__ == "__main__":
    main()
