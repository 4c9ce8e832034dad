"""Choose alpha, dose and band for a model from unlabelled prompts, on the command line.

    vift-calibrate --model checkpoints/vift-micro --output runs/calibrated
    vift-calibrate --model my-model --prompts prompts.jsonl --output runs/calibrated

A line of `prompts.jsonl` is {"image": path, "question": words}, the path relative to the file; without `--prompts`,
the micro-world's validation split plays your prompts. `--output` is a copy of the model with the choice in its config.
The method: `modeling_vift/calibration_vift.py`; in Python, `model.calibrate(processor, images, questions)`.
"""

import argparse
import json
import sys
from pathlib import Path

from .cli import OneLineParser, UserError, first_line
from .images import ImageError, open_image
from .models import BUNDLED, load_model


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="vift-calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(BUNDLED), help="folder or Hub id of a VIFT model")
    parser.add_argument("--prompts", type=Path, help='JSON lines {"image", "question"}')
    parser.add_argument("--n", type=int, default=64, help="use so many prompts (default 64)")
    parser.add_argument("--caption-query", help="how to ask this model for a caption")
    parser.add_argument("--output", type=Path, help="folder for a copy of the model with the choice in its config")
    return parser


def read_prompts(file: Path, count: int) -> tuple[list, list[str]]:
    """(images, questions) of the first `count` lines."""
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()][:count]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts={file} can't be read ({first_line(error)})") from error
    images, questions = [], []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            path, question = Path(row["image"]), str(row["question"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'--prompts={file}, line {number}: not {{"image": ..., "question": ...}}') from error
        images.append(open_image(file.parent / path)[0])
        questions.append(question)
    return images, questions


def calibrate_model(args: argparse.Namespace) -> None:
    if args.n < 1:
        raise UserError(f"--n={args.n} must be at least 1")
    if args.output is not None and args.output.exists() and any(args.output.iterdir()):
        raise UserError(f"--output={args.output} exists and is not empty")
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
    model, processor = load_model(args.model)
    try:
        found = model.calibrate(processor, images, questions, **options)
    except ValueError as error:
        raise UserError(first_line(error)) from error
    print(f"{len(questions)} prompts, log-likelihood a token of the answers read from the model's own captions:")
    for row in sorted(found["table"], key=lambda row: -row["score"])[:5]:
        print(f"  layers {row['fusion_layers']}, dose {row['dose']}, alpha {row['alpha']}: {row['score']:.3f}")
    print(f"  without fusion: {found['unfused_score']:.3f}")
    if found["fusion_dose"]:
        chosen = ("fusion_layers", "fusion_dose", "fusion_alpha")
        print("chosen: " + ", ".join(f"{name} {found[name]}" for name in chosen))
    else:
        print("chosen: no fusion, nothing is better than without")
    if args.output is not None:
        import torch
        from transformers import PretrainedConfig

        stored = PretrainedConfig.get_config_dict(args.model)[0].get("dtype") or "float32"
        model.to(getattr(torch, stored)).save_pretrained(args.output)
        processor.save_pretrained(args.output)
        print(f"wrote {args.output}")


def main(argv: list[str] | None = None) -> int:
    try:
        calibrate_model(build_parser().parse_args(argv))
    except (UserError, ImageError) as error:
        print(f"vift-calibrate: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
