"""The micro recipe, from nothing to a complete checkpoint, on two CPU cores.

    python -m vift_train.micro --seed 0 --output checkpoints/vift-micro

Phase 0 trains a vision tower and a text LLM, side by side in two one-thread processes; stages 1 and 2 are
`VIFTTrainer` on `train/recipes/micro/stage1.yaml` and `stage2.yaml`. Everything depends on the seed.
"""

import argparse
import multiprocessing
import os
import shutil
import tempfile
import time
from pathlib import Path

import torch
import yaml
from datasets import concatenate_datasets
from transformers import PrinterCallback, Qwen2ForCausalLM, SiglipVisionModel, TrainerCallback, set_seed

from modeling_vift import VIFTConfig, VIFTForConditionalGeneration
from vift_microworld import build_processor, data

from . import phase0
from .trainer import VIFTTrainer, VIFTTrainingConfig

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "train" / "recipes" / "micro"
CHAT_TEMPLATE = ROOT / "modeling_vift" / "chat_template.jinja"


def load_recipe(name: str, recipes: Path = RECIPES) -> dict:
    return yaml.safe_load((recipes / f"{name}.yaml").read_text(encoding="utf-8"))


def run_phase0(part: str, settings: dict, seed: int, output: str) -> None:
    """Trains one half of phase 0 into `output/<part>`; a process of its own."""
    torch.set_num_threads(1)
    if part == "tower":
        model = phase0.train_tower(settings, seed)
    else:
        tokenizer = build_processor(CHAT_TEMPLATE).tokenizer
        model = phase0.train_language_model(settings, seed, tokenizer)
    part_dir = Path(output) / f"{part}.part"  # a half that is there is whole, whenever the run was stopped
    model.save_pretrained(part_dir)
    part_dir.rename(Path(output) / part)


def _portable(config) -> dict:
    """The config without the path that it was loaded from."""
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


def assemble(tower: SiglipVisionModel, language_model: Qwen2ForCausalLM, processor, seed: int):
    """VIFT from the two halves of phase 0, with a fresh connector."""
    set_seed(seed)
    config = VIFTConfig(
        vision_config=_portable(tower.config),
        text_config=_portable(language_model.config),
        image_token_index=processor.tokenizer.convert_tokens_to_ids(processor.image_token),
        image_seq_length=(tower.config.image_size // tower.config.patch_size) ** 2,
        vision_feature_layer=phase0.VISION_FEATURE_LAYER,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
        **load_recipe("fusion"),
    )
    config._attn_implementation = "eager"  # at this size faster than sdpa on a CPU
    model = VIFTForConditionalGeneration(config)
    vision = {name.removeprefix("vision_model."): p for name, p in tower.state_dict().items()}
    own_vision = model.model.vision_tower
    prefix = "vision_model." if any(n.startswith("vision_model.") for n in own_vision.state_dict()) else ""
    own_vision.load_state_dict({prefix + name: p for name, p in vision.items()})
    model.model.language_model.load_state_dict(language_model.model.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model


class _PrintProgress(TrainerCallback):
    def __init__(self, name: str):
        self.name, self.progress = name, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.progress = phase0.Progress(self.name, state.max_steps)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.progress.update(state.global_step, float(logs["loss"]))


def run_stage(name: str, model, processor, dataset, recipe: dict, seed: int) -> None:
    """One stage with `VIFTTrainer`, in place."""
    with tempfile.TemporaryDirectory() as scratch:
        args = VIFTTrainingConfig(
            output_dir=scratch,
            seed=seed,
            use_cpu=True,
            bf16=torch.ops.mkldnn._is_mkldnn_bf16_supported(),
            logging_steps=10,
            disable_tqdm=True,
            report_to="none",
            save_strategy="no",
            **recipe,
        )
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
    model.to(torch.bfloat16).save_pretrained(output)
    processor.save_pretrained(output)


def keep(model, processor, folder: Path) -> None:
    """A checkpoint in the precision it has, for other runs to start from; whole or not there."""
    part = folder.with_name(folder.name + ".part")
    model.save_pretrained(part)
    processor.save_pretrained(part)
    part.rename(folder)


def train(seed: int, output: Path, phase0_dir: Path | None = None, stages_dir: Path | None = None) -> None:
    """Everything; `phase0_dir` reuses (or keeps) the two halves of phase 0 there, `stages_dir` keeps `start` (before
    stage 1) and `stage1` there, in fp32."""
    start = time.monotonic()
    processor = build_processor(CHAT_TEMPLATE)
    halves = Path(phase0_dir or tempfile.mkdtemp())
    recipe = load_recipe("phase0")
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=run_phase0, args=(part, recipe[part], seed, str(halves)))
        for part in ("tower", "language_model")
        if not (halves / part / "config.json").exists()
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise RuntimeError(f"phase 0 failed with exit code {worker.exitcode}, see above")
    print(f"phase 0 done after {time.monotonic() - start:.0f} s", flush=True)

    model = assemble(
        SiglipVisionModel.from_pretrained(halves / "tower"),
        Qwen2ForCausalLM.from_pretrained(halves / "language_model"),
        processor,
        seed,
    )
    if stages_dir is not None and not (stages_dir / "start").exists():
        keep(model, processor, stages_dir / "start")

    recipe = load_recipe("stage1")
    captions = data.web_captions(recipe.pop("rows"), seed=seed)
    run_stage("stage 1", model, processor, captions, recipe, seed)
    if stages_dir is not None and not (stages_dir / "stage1").exists():
        keep(model, processor, stages_dir / "stage1")

    recipe = load_recipe("stage2")
    mixture = concatenate_datasets(
        [
            data.detailed_captions(recipe.pop("caption_rows"), seed=seed, no_query_share=recipe.pop("no_query_share")),
            data.text_instructions(recipe.pop("text_rows"), seed=seed + 1, turns=recipe.pop("text_turns")),
        ]
    )
    run_stage("stage 2", model, processor, mixture, recipe, seed)
    save_checkpoint(model, processor, output)
    if phase0_dir is None:
        shutil.rmtree(halves)
    print(f"wrote {output} after {(time.monotonic() - start) / 60:.1f} min", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="folder of the new checkpoint")
    parser.add_argument("--phase0", type=Path, help="keep or reuse the halves of phase 0 in this folder")
    parser.add_argument("--stages", type=Path, help="keep the checkpoints before and after stage 1 in this folder")
    args = parser.parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    train(args.seed, args.output, args.phase0, args.stages)


if __name__ == "__main__":
    main()
