"""Train one stage from a recipe, with TRL's command-line conventions.

    vift-train --config train/recipes/vift-7b/stage1.yaml --model START --captions pictures/ --output_dir runs/stage1
    accelerate launch -m vift_train --config train/recipes/vift-7b/stage2.yaml --model runs/stage1 \\
        --captions captions.jsonl --instructions instructions.jsonl --output_dir runs/stage2

Any field of `VIFTTrainingConfig`, of TRL's `ModelConfig` (`--use_peft --lora_r 16`, `--dtype`,
`--attn_implementation`) and of `RunArguments` below may stand in the YAML file or on the command line, which wins.
Weights are trained in float32 (with `bf16: true`: computed in bfloat16) whatever the checkpoint's dtype, unless
`--dtype` says otherwise. A run that was interrupted goes on with `--resume_from_checkpoint true` (the newest
checkpoint in `output_dir`) or a path.
"""

from dataclasses import dataclass

from datasets import concatenate_datasets, interleave_datasets
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from .callbacks import AnswersCallback
from .config import VIFTTrainingConfig, option
from .data import load_rows
from .lengths import undecoded
from .trainer import VIFTTrainer


@dataclass
class RunArguments:
    """What is trained on what; see `vift_train.data` for the kinds of rows."""

    model: str | None = option(None, "VIFT checkpoint to start from (vift-init makes one): a folder or hub id")
    captions: list[str] = option([], "sources of caption rows")
    instructions: list[str] = option([], "sources of text-only rows")
    image_folder: str | None = option(None, "where relative image paths start")
    plain_captions: bool | None = option(None, "captions without a query; None: in stage 1")
    caption_queries: list[str] | None = option(None, "instead of the pool in vift_train.data")
    eval_captions: list[str] = option([], "held-out caption rows: eval_image_loss")
    eval_instructions: list[str] = option([], "held-out text rows: eval_text_loss")
    answers: int = option(4, "at every evaluation, answer about so many pictures of eval_captions")
    ask: list[str] | None = option(None, "questions about these pictures; None: the captions' own queries")
    streaming: bool = option(False, "read rows as they are needed; needs --max_steps")
    on_bad_row: str = option("skip", "skip (counted and named) or raise")
    num_proc: int | None = option(None, "processes that convert rows and count lengths")
    columns: str | None = option(None, """what your columns are, such as '{"caption": "alt", "ignore": ["title"]}'""")
    every_caption: bool = option(False, "a row for each of several captions of a picture, instead of one an epoch")
    check_pictures: str = option("load", "load (each is opened before the run) or training (opened when it is due)")


class Parser(TrlParser):
    """A mistake is one line; an unknown option is told before the values of the others are looked at."""

    def error(self, message):
        self.exit(2, f"vift-train: error: {message} (--help shows the options)\n")

    def parse_args_into_dataclasses(self, args=None, **kwargs):
        if unknown := self.parse_known_args(args)[1]:
            self.error(f"no such option: {' '.join(unknown)}")
        return super().parse_args_into_dataclasses(args=args, **kwargs)

    def set_defaults_with_config(self, **kwargs):
        if unknown := super().set_defaults_with_config(**kwargs):
            self.error(f"config: no such option: {' '.join(unknown)}")
        return []


def load_sources(run: RunArguments, args: VIFTTrainingConfig, captions, instructions, streaming: bool) -> list:
    """One data set per source."""
    plain = args.stage == 1 if run.plain_captions is None else run.plain_captions
    names = ("image_folder", "on_bad_row", "num_proc", "columns", "every_caption", "check_pictures")
    common = {name: getattr(run, name) for name in names} | {"streaming": streaming, "seed": args.seed}
    parts = [load_rows(source, plain=plain, queries=run.caption_queries, **common) for source in captions]
    return parts + [load_rows(source, **common) for source in instructions]


def load_mixture(run: RunArguments, args: VIFTTrainingConfig):
    """All rows of the run; a stream visits its sources in turn."""
    parts = load_sources(run, args, run.captions, run.instructions, run.streaming)
    if not parts:
        raise ValueError("captions and instructions are both empty: name at least one source")
    if run.streaming:
        return interleave_datasets(parts, stopping_strategy="all_exhausted_without_replacement")
    return concatenate_datasets(parts)


def load_evaluation(run: RunArguments, args: VIFTTrainingConfig) -> dict | None:
    """{"image": rows, "text": rows}, of what is given."""
    if (run.eval_captions or run.eval_instructions) and args.eval_strategy == "no":
        raise ValueError("eval_captions or eval_instructions given, but eval_strategy='no': set it to steps or epoch")
    named = {"image": (run.eval_captions, []), "text": ([], run.eval_instructions)}
    parts = {name: load_sources(run, args, *sources, streaming=False) for name, sources in named.items()}
    return {name: concatenate_datasets(rows) for name, rows in parts.items() if rows} or None


def answers_callback(run: RunArguments, processor, rows) -> AnswersCallback:
    """Asks about the first pictures of `rows`, one question each, in turn."""
    rows = undecoded(rows)
    rows = [rows[i] for i in range(min(run.answers, len(rows)))]
    for number, row in enumerate(rows):
        if run.ask:
            content = [{"type": "image"}, {"type": "text", "text": run.ask[number % len(run.ask)]}]
            row["messages"] = [{"role": "user", "content": content}]
    return AnswersCallback(processor, rows)


def load_model(run: RunArguments, model_args: ModelConfig):
    """(model, processor) in the dtype of `model_args`."""
    name = run.model or model_args.model_name_or_path
    if name is None:
        raise ValueError("model is missing: the checkpoint to start from; vift-init makes one")
    common = {"revision": model_args.model_revision, "trust_remote_code": True}
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            name, dtype=model_args.dtype, attn_implementation=model_args.attn_implementation,
            quantization_config=get_quantization_config(model_args), **common,
        )  # fmt: skip
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"model={name}: {error}") from error
    if model.config.model_type != "vift":
        raise ValueError(f"model={name} is a {model.config.model_type}, not a VIFT model; vift-init makes one")
    return model, AutoProcessor.from_pretrained(name, **common)


def main(argv: list[str] | None = None) -> None:
    parser = Parser((RunArguments, VIFTTrainingConfig, ModelConfig), description=__doc__.split("\n")[0])
    try:
        run, args, model_args = parser.parse_args_and_config(argv)
        args.dataset_num_proc = run.num_proc = run.num_proc or args.dataset_num_proc
        evaluation, rows = load_evaluation(run, args), load_mixture(run, args)
        model, processor = load_model(run, model_args)
        common = {"processing_class": processor, "peft_config": get_peft_config(model_args)}
        trainer = VIFTTrainer(model, args, rows, eval_dataset=evaluation, **common)
        if run.answers and "image" in (evaluation or {}):
            trainer.add_callback(answers_callback(run, processor, evaluation["image"]))
        resume = args.resume_from_checkpoint
        trainer.train(resume_from_checkpoint={"true": True, "false": None}.get(str(resume).lower(), resume))
        trainer.save_model(args.output_dir)
        if args.push_to_hub:
            trainer.push_to_hub()
        trainer.accelerator.end_training()  # or a thread of gloo may abort while Python shuts down
    except KeyboardInterrupt:
        parser.exit(130, "vift-train: stopped; --resume_from_checkpoint true goes on from the newest checkpoint\n")
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
        error = f"hub_model_id={args.hub_model_id}: {' '.join(str(error).split())}"
        parser.exit(2, f"vift-train: error: {error}; what was trained lies in output_dir\n")
    except (ValueError, OSError, ImportError, SafetensorError) as error:
        parser.exit(2, f"vift-train: error: {' '.join(str(error).split())}\n")


if __name__ == "__main__":
    main()
