"""Choose alpha, dose and band for a model from unlabelled prompts: the model's own caption is the teacher.

    vift calibrate --output runs/calibrated                                 # the bundled model and the micro-world
    vift calibrate --model my-model --prompts prompts.jsonl --output runs/calibrated

A line of `prompts.jsonl` is {"image": path, "question": words}, the path relative to the file; without `--prompts`,
the micro-world's validation split plays your prompts. `--output` is a copy of the model with the choice in its config.
In Python: `vift.calibrate(model, processor, images, questions)`.
"""

import argparse
import sys
from pathlib import Path

from vift_hub.cli import OneLineParser, UserError, add_model, run
from vift_hub.output import check_new, new_folder

from .files import json_rows
from .images import open_image
from .models import BUNDLED, config_of, load_model


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser("vift calibrate", __doc__)
    add_model(parser, str(BUNDLED), help="folder or Hub id of a VIFT model (default: the bundled one)")
    parser.add_argument("--prompts", type=Path, help='JSON lines {"image", "question"}')
    parser.add_argument("--n", type=int, default=64, help="use so many prompts (default 64)")
    parser.add_argument("--lens", action="store_true", help="only the layers of the logit-lens rule: much quicker")
    parser.add_argument("--caption-query", help="how to ask this model for a caption")
    parser.add_argument("--output", type=Path, help="folder for a copy of the model with the choice in its config")
    return parser


def read_prompts(file: Path, count: int) -> tuple[list, list[str]]:
    """(images, questions) of the first `count` lines."""
    images, questions = [], []
    for number, row in json_rows(file, count, f"--prompts={file}"):
        if not isinstance(row, dict) or not {"image", "question"} <= set(row):
            raise UserError(f'--prompts={file}, line {number}: not {{"image": ..., "question": ...}}')
        images.append(open_image(file.parent / str(row["image"]))[0])
        questions.append(str(row["question"]))
    return images, questions


def calibrate_model(args: argparse.Namespace) -> None:
    if args.n < 1:
        raise UserError(f"--n={args.n} must be at least 1")
    if args.output is not None:
        check_new(args.output)
    config = config_of(args.model)
    options = {}
    if args.prompts is not None:
        images, questions = read_prompts(args.prompts, args.n)
    else:
        from vift_microworld import language, visual_questions

        from .answers.conditions import read_back

        rows = visual_questions(args.n, seed=12, split="validation")
        images, questions = [row[0] for row in rows["images"]], list(rows["question"])
        options = {"caption_query": language.DETAILED_QUERIES[0], "caption_tokens": 48, "read_back": read_back}
    if args.caption_query:
        options["caption_query"] = args.caption_query
    if args.lens:
        options["bands"] = "lens"
    model, processor = load_model(args.model, trust_remote_code=args.trust_remote_code)
    import torch

    from .calibrate import SINK, calibrate

    result = calibrate(model, processor, images, questions, **options)
    print(f"{len(questions)} prompts, log-likelihood per token of the answers read from the model's own captions:")
    for row in sorted(result["table"], key=lambda row: -row["score"])[:5]:
        skipped = ", without the first token" if row.get("fusion_skip_first") else ""
        print(
            f"  layers {row['fusion_layers']}, dose {row['dose']}, alpha {row['alpha']}{skipped}: {row['score']:.3f}"
        )
    print(f"  without fusion: {result['unfused_score']:.3f}")
    if args.lens:
        print(f"logit lens, entering each layer and at the end: {' '.join(map('{:.2f}'.format, result['lens']))}")
    if result["sink"] > SINK:
        print(f"the first token is an attention sink: its state is {result['sink']:.0f} times as long (docs/span.md)")
    if result["fusion_dose"]:
        chosen = ["fusion_layers", "fusion_dose", "fusion_alpha", *["fusion_skip_first"] * result["fusion_skip_first"]]
        print("chosen: " + ", ".join(f"{name} {result[name]}" for name in chosen))
    else:
        print("chosen: no fusion, nothing is better than without")
    if args.output is None:
        print("nothing was written; --output FOLDER keeps a copy of the model with this choice in its config")
        return
    with new_folder(args.output) as folder:
        model.to(getattr(torch, config.get("dtype") or "float32")).save_pretrained(folder)
        processor.save_pretrained(folder)
    print(f"wrote {args.output}; vift demo --model {args.output} asks it")


def main(argv: list[str] | None = None) -> int:
    return run("vift calibrate", calibrate_model, build_parser().parse_args(argv), extra="microworld")


if __name__ == "__main__":
    sys.exit(main())
