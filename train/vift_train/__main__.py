"""Train one stage on captions and on text instructions, with TRL.

    vift train --stage 1 --model START --captions pictures/ --output-dir runs/stage1
    accelerate launch -m vift_train --config stage2.yaml --model runs/stage1 \\
        --captions captions.jsonl --instructions instructions.jsonl --output-dir runs/stage2

Any field of `VIFTTrainingConfig`, of TRL's `ModelConfig` (`--use-peft --lora-r 16`, `--dtype`,
`--attn-implementation`) and of `RunArguments` may stand in the YAML file, with underscores, or on the command line,
which wins. Weights are trained in float32 (with `bf16: true`: computed in bfloat16) whatever the checkpoint's dtype,
unless `--dtype` says otherwise. A run that was interrupted goes on with `--resume-from-checkpoint true` (the newest
checkpoint in `output_dir`) or a path. `vift where --recipes` prints the folder of recipes; `--config
vift-7b/stage1.yaml` finds one of them by its name.
"""

import sys

from vift_hub.cli import UserError, run
from vift_hub.models import config_of

from .options import build_parser


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(arguments):
        parser = build_parser()
        parser.description = __doc__
        parser.print_help()
        return 0

    def train() -> None:
        if not arguments:
            raise UserError("name --model, --output-dir and --captions or --instructions, or --config (--help)")
        if "--model" in arguments[:-1]:  # before the seconds that the imports take
            config_of(arguments[arguments.index("--model") + 1])
        from . import launch

        if {"--help-all", "--help_all"} & set(arguments):
            launch.make_parser().print_help()
        else:
            launch.train(arguments)

    stopped = "stopped; --resume-from-checkpoint true goes on from the newest checkpoint"
    return run("vift train", train, extra="train", stopped=stopped)


if __name__ == "__main__":
    sys.exit(main())
