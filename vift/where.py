"""Where the data of this package lie: lmms-eval's tasks, training recipes, the bundled model.

    lmms_eval --model vift --model_args pretrained=$(vift where --model) --tasks vift_micro \\
        --include_path $(vift where --tasks) --output_path results
    accelerate launch --config_file $(vift where --recipes)/accelerate/fsdp2.yaml -m vift_train ...
"""

import argparse

from vift_hub.cli import OneLineParser, run


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser("vift where", __doc__)
    parser.add_argument("--tasks", action="store_true", help="print the folder of lmms-eval's tasks only")
    parser.add_argument("--recipes", action="store_true", help="print the folder of training recipes only")
    parser.add_argument("--model", action="store_true", help="print the folder of the bundled model only")
    return parser


def tell(args: argparse.Namespace) -> None:
    from vift_eval.models import TASKS
    from vift_hub.models import BUNDLED
    from vift_train import RECIPES

    places = {"tasks": TASKS, "recipes": RECIPES, "model": BUNDLED}
    asked = [name for name in places if getattr(args, name)]
    for name in asked or places:
        print(places[name] if asked else f"{name:8s}{places[name]}")


def main(argv: list[str] | None = None) -> int:
    return run("vift where", tell, build_parser().parse_args(argv))
