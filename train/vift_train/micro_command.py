"""Train the bundled model again, from nothing, on two CPU cores.

    vift micro --output runs/vift-micro
    vift micro --output runs/other --seed 1 --set stage2.learning_rate=1e-3

Phase 0 trains a vision tower and a text LLM, side by side; stages 1 and 2 follow. The values are those of a recipe, a
folder of YAML files.
"""

import argparse
import os
import sys
from pathlib import Path

from vift_hub.cli import OneLineParser, UserError, run
from vift_hub.output import lock

from . import RECIPES


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser("vift micro", __doc__)
    parser.add_argument("--seed", type=int, default=0, help="of everything (default 0)")
    parser.add_argument(
        "--output", type=Path, help="folder of the new checkpoint; without it, end after the last stage that is kept"
    )
    parser.add_argument("--overwrite-output-dir", action="store_true", help="replace the model that lies in --output")
    recipe = RECIPES / "micro"
    parser.add_argument(
        "--recipe", type=Path, default=recipe, help="folder of YAML files (default: the bundled model's)"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME.KEY=VALUE", help="changes, such as stage2.learning_rate=1e-3"
    )
    parser.add_argument("--phase0", type=Path, help="keep or reuse the pretrained parts (tower, language model) here")
    parser.add_argument("--stage1", type=Path, help="keep or reuse the model after stage 1 in this folder")
    parser.add_argument("--start", type=Path, help="keep the model before stage 1 in this folder")
    return parser


def train_all(args: argparse.Namespace) -> None:
    kept = [folder for folder in (args.output, args.phase0, args.stage1, args.start) if folder]
    if not kept:
        raise UserError("name --output, or what to keep: --phase0, --start, --stage1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from . import micro

    recipe = micro.load_recipe(args.recipe, args.set)
    if micro.is_kept(args.output) and not args.overwrite_output_dir:
        raise UserError(f"output={args.output} holds a model: name a new folder, or say --overwrite-output-dir")
    held = [lock(folder) for folder in kept]
    micro.train(args.seed, args.output, recipe, args.phase0, args.stage1, args.start)
    for one in held:
        one.release()
    if args.output:
        print(f"next: vift demo --model {args.output} asks it")
    else:
        print(f"kept {', '.join(map(str, kept))}; the same command with --output goes on from here")


def main(argv: list[str] | None = None) -> int:
    stopped = "stopped; parts that are kept are used again"
    return run("vift micro", train_all, build_parser().parse_args(argv), extra="train", stopped=stopped)


if __name__ == "__main__":
    sys.exit(main())
