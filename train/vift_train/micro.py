"""The micro recipe, from nothing to a complete checkpoint, on two CPU cores: what `vift micro` does.

Phase 0 trains a vision tower and a text LLM, side by side in two one-thread processes; stages 1 and 2 are
`VIFTTrainer` on `train/recipes/micro/stage1.yaml` and `stage2.yaml`. Everything depends on the seed.
"""

import multiprocessing
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

import torch
import yaml
from datasets import Dataset, concatenate_datasets
from transformers import PrinterCallback, Qwen2ForCausalLM, SiglipVisionModel, TrainerCallback

from modeling_vift import VIFTForConditionalGeneration
from vift_hub.cli import hide_bars, quietly
from vift_hub.join import CHAT_TEMPLATE, join
from vift_microworld import build_processor, data

from . import RECIPES as ALL_RECIPES
from . import phase0
from .runs import told, written_aside
from .trainer import VIFTTrainer, VIFTTrainingConfig

RECIPES = ALL_RECIPES / "micro"
PARTS = ("phase0", "stage1", "stage2", "fusion")
# keys of a stage's settings that say which rows it has; the others are fields of VIFTTrainingConfig
ROW_KEYS = ("rows", "caption_rows", "no_query_share", "queries", "text_rows", "text_turns")
_BAND = re.compile(r"\d*:\d*")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?e[+-]?\d+")


def load_recipe(folder: Path = RECIPES, changes: tuple[str, ...] = ()) -> dict[str, dict]:
    """The recipe's files by name, with changes such as "stage2.learning_rate=1e-3" (the value is read as YAML).

    Raises:
        ValueError: a change that is not of this form, or names a file or a section that the recipe lacks.
    """
    if missing := [name for name in PARTS if not (folder / f"{name}.yaml").is_file()]:
        raise ValueError(f"recipe={str(folder)!r} lacks {missing[0]}.yaml; a recipe has {', '.join(PARTS)}")
    recipe = {name: yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8")) for name in PARTS}
    for change in changes:
        path, equals, value = change.partition("=")
        *sections, key = path.split(".")
        place = recipe
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if not equals or not sections or not isinstance(place, dict):
            raise ValueError(f"set={change!r} must be NAME.KEY=VALUE, where NAME is one of {', '.join(PARTS)}")
        # two traps of YAML 1.1: 1e-3 (without a point) is a string, and 5:8 is a number of base 60
        read = float if _NUMBER.fullmatch(value) else str if _BAND.fullmatch(value) else yaml.safe_load
        try:
            place[key] = read(value)
        except yaml.YAMLError as error:
            raise ValueError(f"set={change!r}: {' '.join(str(error).split())}") from error
    cycles = {name: recipe["phase0"]["language_model"][name] for name in ("steps", "learning_rate")}
    if not all(isinstance(value, list) for value in cycles.values()) or len({len(v) for v in cycles.values()}) > 1:
        raise ValueError(
            "phase0.language_model.steps and learning_rate must be lists of equal length, one value per cycle, not "
            f"{cycles['steps']} and {cycles['learning_rate']}"
        )
    return recipe


def run_phase0(part: str, settings: dict, seed: int, output: str) -> None:
    """Trains one of the pretrained parts into `output/<part>`; a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches every process: one of them speaks
    torch.set_num_threads(1)
    if part == "tower":
        model = phase0.train_tower(settings, seed)
    else:
        tokenizer = build_processor(CHAT_TEMPLATE).tokenizer
        model = phase0.train_language_model(settings, seed, tokenizer)
    keep(model, None, Path(output) / part)


def join_parts(folder: Path, processor, seed: int, fusion: dict):
    """VIFT from the pretrained parts in `folder`, with a fresh connector."""
    tower = SiglipVisionModel.from_pretrained(folder / "tower")
    language_model = Qwen2ForCausalLM.from_pretrained(folder / "language_model")
    layer = phase0.VISION_FEATURE_LAYER
    model = join(tower, language_model, processor, seed, vision_feature_layer=layer, **fusion)
    model.set_attn_implementation("eager")  # at this size faster than sdpa on a CPU
    return model


class _PrintProgress(TrainerCallback):
    def __init__(self, name: str):
        self.name, self.progress = name, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.progress = phase0.Progress(self.name, state.max_steps)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.progress.update(state.global_step, float(logs["loss"]))


def training_fields(settings: dict) -> dict:
    """The fields of `VIFTTrainingConfig` in a stage's settings, for a run on a CPU that keeps nothing on its way."""
    fields = {name: value for name, value in settings.items() if name not in ROW_KEYS}
    return fields | {
        "use_cpu": True,
        "bf16": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 10,
    }


def run_stage(name: str, model, processor, dataset, recipe: dict, seed: int) -> None:
    """One stage with `VIFTTrainer`, in place."""
    with tempfile.TemporaryDirectory() as scratch:
        args = VIFTTrainingConfig(output_dir=scratch, seed=seed, **training_fields(recipe))
        trainer = VIFTTrainer(model, args, dataset, processing_class=processor)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_PrintProgress(name))
        trainer.train()
    # the trainer patches forward for its fused loss head; the class's own comes back
    model.__dict__.pop("forward", None)
    model.eval()


def save_checkpoint(model, processor, output: Path) -> None:
    """Complete and small: bf16 weights, config, processor, chat template, code."""
    for parameter in model.parameters():
        parameter.requires_grad = True
    model.config._attn_implementation = "sdpa"
    model.config.use_cache = True  # TRL turns it off for training
    keep(model.to(torch.bfloat16), processor, output)


def keep(model, processor, folder: Path | None) -> None:
    if folder is not None:
        with told(folder), written_aside(folder) as part:
            model.save_pretrained(part)
            if processor is not None:
                processor.save_pretrained(part)


def is_kept(folder: Path | None) -> bool:
    """Whether a model lies there, whole, whenever the run was stopped: its weights take their place last."""
    return folder is not None and (folder / "model.safetensors").is_file()


def pretrain_parts(recipe: dict, seed: int, folder: Path) -> None:
    """Phase 0: the tower and the text LLM, side by side, whichever is not in `folder` yet."""
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=quietly, args=(__name__, run_phase0.__name__, part, recipe[part], seed, str(folder)))
        for part in ("tower", "language_model")
        if not is_kept(folder / part)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise ChildProcessError(f"phase 0 failed with exit code {worker.exitcode}, see above")


def queries_of(settings: dict) -> dict:
    """How a stage's captions are asked for: keywords of the caption data of `vift_microworld`."""
    return {name: settings[name] for name in ("no_query_share", "queries")}


def stage2_mixture(settings: dict, seed: int) -> Dataset:
    """Captions and text instructions of stage 2."""
    parts = [data.detailed_captions(settings["caption_rows"], seed=seed, **queries_of(settings))]
    if settings["text_rows"]:
        parts.append(data.text_instructions(settings["text_rows"], seed=seed + 1, turns=settings["text_turns"]))
    return concatenate_datasets(parts)


def train(seed: int, output: Path | None, recipe: dict, phase0_dir: Path | None = None,
          stage1_dir: Path | None = None, start_dir: Path | None = None) -> None:  # fmt: skip
    """Everything; `phase0_dir` and `stage1_dir` keep what those stages made, or reuse what lies there already.

    `start_dir` keeps the model before stage 1. Without `output`, the run ends after the last stage that is kept. What
    is reused is not compared with `recipe`: give each variant of an earlier stage a folder of its own.
    """
    hide_bars()
    start = time.monotonic()
    processor = build_processor(CHAT_TEMPLATE)
    if is_kept(stage1_dir):
        model = VIFTForConditionalGeneration.from_pretrained(
            stage1_dir, dtype=torch.float32, attn_implementation="eager"
        )
        for name, value in recipe["fusion"].items():
            setattr(model.config, name, value)
    else:
        pretrained_parts = Path(phase0_dir or tempfile.mkdtemp())
        pretrain_parts(recipe["phase0"], seed, pretrained_parts)
        print(f"phase 0 done after {time.monotonic() - start:.0f} s", flush=True)
        model = join_parts(pretrained_parts, processor, seed, recipe["fusion"])
        if phase0_dir is None:
            shutil.rmtree(pretrained_parts)
        keep(model, processor, start_dir)
        if output is None and stage1_dir is None:
            return
        settings = recipe["stage1"]
        captions = data.web_captions(settings["rows"], seed, **queries_of(settings))
        run_stage("stage 1", model, processor, captions, settings, seed)
        keep(model, processor, stage1_dir)  # fp32, so that stage 2 goes on from the same weights

    if output is None:
        return
    mixture = stage2_mixture(recipe["stage2"], seed)
    if len(mixture):
        run_stage("stage 2", model, processor, mixture, recipe["stage2"], seed)
    save_checkpoint(model, processor, output)
    print(f"wrote {output} after {(time.monotonic() - start) / 60:.1f} min", flush=True)
