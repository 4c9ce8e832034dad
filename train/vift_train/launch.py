"""One run of `vift train`: the command line or YAML, data, model, trainer."""

from pathlib import Path

from datasets import concatenate_datasets, interleave_datasets
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from transformers import AutoProcessor
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from vift_hub.cli import UserError, hide_bars, one_line
from vift_hub.models import config_of, loader_of

from . import RECIPES
from .callbacks import AnswersCallback
from .config import VIFTTrainingConfig
from .data import load_rows
from .lengths import undecoded
from .options import RunArguments
from .trainer import VIFTTrainer


class Parser(TrlParser):
    """A mistake is one line; an unknown option is told before the values of the others are looked at."""

    def error(self, message):
        self.exit(2, f"vift train: error: {message} (--help shows the options)\n")

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


def load_model(name: str, config: dict, args: VIFTTrainingConfig, model_args: ModelConfig):
    """(model, processor) in the dtype of `model_args`."""
    loader, trusted = loader_of(name, config, args.trust_remote_code)
    common = {"revision": model_args.model_revision, "trust_remote_code": trusted}
    try:
        model = loader.from_pretrained(
            name, dtype=model_args.dtype, attn_implementation=model_args.attn_implementation,
            quantization_config=get_quantization_config(model_args), **common,
        )  # fmt: skip
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"model={name}: {error}") from error
    return model, AutoProcessor.from_pretrained(name, **common)


def make_parser() -> Parser:
    return Parser((RunArguments, VIFTTrainingConfig, ModelConfig), prog="vift train", add_help=False)


def train(argv: list[str]) -> None:
    argv = list(argv)
    if "--config" in argv[:-1]:  # the name of a recipe of ours, such as vift-7b/stage1.yaml
        place = argv.index("--config") + 1
        if not Path(argv[place]).exists() and (RECIPES / argv[place]).is_file():
            argv[place] = str(RECIPES / argv[place])
    run, args, model_args = make_parser().parse_args_and_config(argv)
    args.dataset_num_proc = run.num_proc = run.num_proc or args.dataset_num_proc
    hide_bars()
    name = run.model or model_args.model_name_or_path
    if name is None:
        raise UserError("--model is missing: the checkpoint to start from; vift init makes one")
    config = config_of(name, model_args.model_revision)
    evaluation, rows = load_evaluation(run, args), load_mixture(run, args)
    model, processor = load_model(name, config, args, model_args)
    common = {"processing_class": processor, "peft_config": get_peft_config(model_args)}
    try:
        trainer = VIFTTrainer(model, args, rows, eval_dataset=evaluation, **common)
        if run.answers and "image" in (evaluation or {}):
            trainer.add_callback(answers_callback(run, processor, evaluation["image"]))
        resume = args.resume_from_checkpoint
        trainer.train(resume_from_checkpoint={"true": True, "false": None}.get(str(resume).lower(), resume))
        trainer.save_model(args.output_dir)
        if args.push_to_hub:
            trainer.push_to_hub()
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
        told = f"hub_model_id={args.hub_model_id}: {one_line(error)}"
        raise UserError(f"{told}; what was trained lies in output_dir") from error
    trainer.accelerator.end_training()  # or a thread of gloo may abort while Python shuts down
    if trainer.is_world_process_zero():
        then = {1: f"vift train --stage 2 --model {args.output_dir} --captions ... --instructions ..."}
        print(f"wrote {args.output_dir}; next: {then.get(args.stage, f'vift demo --model {args.output_dir}')}")
