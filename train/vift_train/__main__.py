"""Train one stage from a recipe, with TRL's command-line conventions.

    vift-train --config train/recipes/vift-7b/stage1.yaml --model START --captions pictures/ --output_dir runs/stage1
    accelerate launch -m vift_train --config train/recipes/vift-7b/stage2.yaml --model runs/stage1 \\
        --captions captions.jsonl --instructions instructions.jsonl --output_dir runs/stage2

Any field of `VIFTTrainingConfig` may stand in the YAML file or on the command line, which wins. A run that was
interrupted goes on with `--resume_from_checkpoint true` (the newest checkpoint in `output_dir`) or a path.
"""

import sys
from dataclasses import dataclass, field

from datasets import concatenate_datasets, interleave_datasets
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import TrlParser

from .config import VIFTTrainingConfig
from .data import load_rows
from .trainer import VIFTTrainer


@dataclass
class RunArguments:
    """What is trained on what; see `vift_train.data` for the kinds of rows."""

    model: str = field(metadata={"help": "VIFT checkpoint to start from (vift-init makes one): a folder or hub id"})
    captions: list[str] = field(default_factory=list, metadata={"help": "sources of caption rows"})
    instructions: list[str] = field(default_factory=list, metadata={"help": "sources of text-only rows"})
    image_folder: str | None = field(default=None, metadata={"help": "where relative image paths start"})
    plain_captions: bool | None = field(default=None, metadata={"help": "captions without a query; None: in stage 1"})
    caption_queries: list[str] | None = field(
        default=None, metadata={"help": "instead of the pool in vift_train.data"}
    )
    streaming: bool = field(default=False, metadata={"help": "read rows as they are needed; needs --max_steps"})
    on_bad_row: str = field(default="skip", metadata={"help": "skip (counted and named) or raise"})
    num_proc: int | None = field(default=None, metadata={"help": "processes that convert rows"})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa, ...; eager is the fastest for tiny models on a CPU"}
    )


def load_mixture(run: RunArguments, args: VIFTTrainingConfig):
    """All rows of the run; a stream visits its sources in turn."""
    plain = args.stage == 1 if run.plain_captions is None else run.plain_captions
    common = {
        "image_folder": run.image_folder,
        "streaming": run.streaming,
        "seed": args.seed,
        "on_bad_row": run.on_bad_row,
        "num_proc": run.num_proc,
    }
    parts = [load_rows(source, plain=plain, queries=run.caption_queries, **common) for source in run.captions]
    parts += [load_rows(source, **common) for source in run.instructions]
    if not parts:
        raise ValueError("captions and instructions are both empty: name at least one source")
    if run.streaming:
        return interleave_datasets(parts, stopping_strategy="all_exhausted_without_replacement")
    return concatenate_datasets(parts)


def main(argv: list[str] | None = None) -> None:
    parser = TrlParser((RunArguments, VIFTTrainingConfig), description=__doc__.split("\n")[0])
    run, args = parser.parse_args_and_config(argv)
    try:
        rows = load_mixture(run, args)
        model = AutoModelForImageTextToText.from_pretrained(
            run.model, trust_remote_code=True, attn_implementation=run.attn_implementation
        )
        if model.config.model_type != "vift":
            raise ValueError(
                f"model={run.model} is a {model.config.model_type}, not a VIFT model; vift-init makes one"
            )
        processor = AutoProcessor.from_pretrained(run.model, trust_remote_code=True)
        trainer = VIFTTrainer(model, args, rows, processing_class=processor)
        resume = {"true": True, "false": None}.get(
            str(args.resume_from_checkpoint).lower(), args.resume_from_checkpoint
        )
        trainer.train(resume_from_checkpoint=resume)
    except ValueError as error:
        print(f"vift-train: error: {error}", file=sys.stderr)
        sys.exit(2)
    trainer.save_model(args.output_dir)
    if args.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
