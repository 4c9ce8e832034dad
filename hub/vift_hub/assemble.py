"""A checkpoint published as what was trained, a connector and a LoRA; put together with its base parts.

    vift init --trained checkpoints/vift-smol --output runs/vift-smol

The folder holds PEFT's two files and `parts.json`: the options of `vift init` that make the base, and the config's
fields of fusion. Nothing of it is run.
"""

import json
from inspect import signature
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from modeling_vift import VIFTConfig, resolve_fusion

from .cli import UserError, hide_bars
from .init import build
from .original import merge_adapter
from .output import new_folder

PARTS, WEIGHTS, LORA = "parts.json", "adapter_model.safetensors", "adapter_config.json"


def read_parts(folder: Path) -> dict:
    """`{"base": options of build, "fusion": fields of the config}`.

    Raises:
        UserError: a file is missing or is not what it should be; it is named.
    """
    for name in (PARTS, WEIGHTS, LORA):
        if not (folder / name).is_file():
            raise UserError(f"--trained={folder} has no {name}: it is a folder of a connector and a LoRA")
    try:
        parts = json.loads((folder / PARTS).read_text(encoding="utf-8"))
        parts = {"base": dict(parts["base"]), "fusion": dict(parts["fusion"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / PARTS} does not hold two objects, base and fusion ({error!r})") from error
    known = {"base": set(signature(build).parameters) - {"dtype"}}
    known["fusion"] = {name for name in signature(VIFTConfig.__init__).parameters if name.startswith("fusion_")}
    for part, names in known.items():
        if wrong := sorted(set(parts[part]) - names):
            raise UserError(f"{folder / PARTS}: {part} has {wrong[0]!r}; known are {', '.join(sorted(names))}")
    return parts


def load_trained(model, folder: Path):
    """
    `model`, in float32, with the connector and the LoRA of `folder` (PEFT's two files) merged in.

    Raises:
        ValueError: the folder's weights do not fit, by name.
    """
    named = load_file(folder / WEIGHTS)
    there = {name.split("multi_modal_projector.")[1] for name in named if "multi_modal_projector." in name}
    needed = set(model.model.multi_modal_projector.state_dict())
    if there != needed:
        raise ValueError(f"{folder / WEIGHTS} holds {sorted(there)} of the connector, the model has {sorted(needed)}")
    config = json.loads((folder / LORA).read_text(encoding="utf-8"))
    model.load_state_dict(merge_adapter(dict(model.float().state_dict()), config, folder))
    return model.eval()


def assemble(folder: Path, dtype=torch.bfloat16):
    """
    (model, processor) of the base parts with what was trained: merged in float32, then in `dtype`.

    Raises:
        ValueError: a part can't be used, or the weights do not fit the parts, by name.
    """
    parts = read_parts(folder)
    model, processor = build(**parts["base"], dtype=torch.bfloat16)
    model = load_trained(model, folder).to(dtype)
    for name, value in parts["fusion"].items():
        setattr(model.config, name, value)
    resolve_fusion(model.config, True)  # says now, not at the first question, what is out of range
    return model, processor


def write(folder: Path, output: Path, dtype: str) -> None:
    """`assemble` into a new folder."""
    hide_bars()
    model, processor = assemble(folder, getattr(torch, dtype))
    with new_folder(output) as part:
        model.save_pretrained(part)
        processor.save_pretrained(part)


def pack(run: Path, output: Path, base: dict, fusion: dict) -> None:
    """What `vift train --use-peft` left in `run` as a folder for `assemble`, in bfloat16."""
    config = json.loads((run / LORA).read_text(encoding="utf-8"))
    config["base_model_name_or_path"], config["inference_mode"] = None, True
    output.mkdir(parents=True, exist_ok=True)
    (output / LORA).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in load_file(run / WEIGHTS).items()}
    save_file(weights, output / WEIGHTS, metadata={"format": "pt"})
    parts = {"base": base, "fusion": fusion}
    (output / PARTS).write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
