"""The folder that is published: weights, config, code, processor, card; and the proof that it loads back."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from huggingface_hub import parse_eval_result_entries
from safetensors.torch import load_file
from transformers.dynamic_module_utils import get_relative_import_files

import modeling_vift
from modeling_vift import VIFTConfig, VIFTForConditionalGeneration

from . import card, roundtrip
from .convert import read, read_config

CODE = Path(modeling_vift.__file__).parent
# `load_custom_generate` follows relative imports inside its own folder only, so that one holds copies of all of them
GENERATE = CODE / "generate.py"
CUSTOM_GENERATE = {Path(file).name for file in (GENERATE, *get_relative_import_files(GENERATE))}


def load(source: Path):
    """
    (model, processor) of a VIFT folder.

    Raises:
        ValueError: not a VIFT, or weights missing, left over or of another shape; no chat template.
    """
    read_config(source, "vift", "not a VIFT: vift convert makes one")
    try:
        model, processor = read(VIFTForConditionalGeneration, source, VIFTConfig.from_pretrained(source))
    except Exception as error:  # whatever a file that is broken makes its reader raise
        raise ValueError(f"source={source} does not load: {error}") from error
    if not getattr(processor, "chat_template", None):
        raise ValueError(f"source={source} has no chat template in its processor")
    return model, processor


def score_files(source: Path, more: Path | None) -> list[Path]:
    """
    What goes into `.eval_results/`: the files that `source` has there (`vift card`), and `more`.

    Raises:
        ValueError: a file is not in the Hub's format, or two have one name.
    """
    files = sorted((source / ".eval_results").glob("*.y*ml")) + ([more] if more else [])
    for file in files:
        try:
            parse_eval_result_entries(yaml.safe_load(file.read_text(encoding="utf-8")))
        except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"eval_results={file} is not in the Hub's format: {error}") from error
    if more and more.name in (file.name for file in files[:-1] if not file.samefile(more)):
        raise ValueError(f"eval_results={more}: source={source} has a .eval_results/{more.name} too")
    return files


def write(folder: Path, model, processor, values: dict[str, str], scores: list[Path] | None, max_shard_size: str):
    """Everything that is published, into `folder`; a ValueError where the chat template is not the only one."""
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    processor.save_pretrained(folder)
    (folder / "custom_generate").mkdir()
    for name in CUSTOM_GENERATE:
        shutil.copyfile(CODE / name, folder / "custom_generate" / name)
    (folder / "README.md").write_text(card.fill(values), encoding="utf-8")
    for file in scores or ():
        (folder / ".eval_results").mkdir(exist_ok=True)
        shutil.copyfile(file, folder / ".eval_results" / file.name)
    templates = [str(f.relative_to(folder)) for f in folder.rglob("*") if f.suffix == ".jinja"]
    if templates != ["chat_template.jinja"]:
        raise ValueError(f"one chat template is published, but the processor saves {', '.join(templates) or 'none'}")


def check(folder: Path, model, processor) -> None:
    """A ValueError if `folder` does not load in a fresh offline process without this package, or answers otherwise."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "answers.safetensors"
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": scratch, "HF_MODULES_CACHE": str(Path(scratch) / "modules")}
        environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # the order of sums depends on it
        command = [sys.executable, roundtrip.__file__, str(folder), str(out)]
        ran = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
        if ran.returncode:
            last = ran.stderr.strip().splitlines()[-1]
            raise ValueError(f"the folder does not load back, so nothing is published: {last}")
        theirs = load_file(out)
    ours = roundtrip.answers(model, processor)
    for name, tensor in ours.items():
        if theirs[name].shape != tensor.shape or not torch.equal(theirs[name], tensor):
            raise ValueError(f"the folder loads back but gives other {name}, so nothing is published")
