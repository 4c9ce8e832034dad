"""Which run it is: what decides its steps, compared before it is resumed, and the folder that it alone writes into."""

import hashlib
import json
import re
import shutil
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from torch.distributed.tensor import DTensor

from .config import STATE_FILE

# the arguments that decide which rows make a step
PLAN = ("gradient_accumulation_steps", "per_device_train_batch_size", "modality_order", "group_by_length",
        "chunk_steps", "text_weight")  # fmt: skip
# the arguments that decide what a step does
STEP = """stage train_vision_tower train_connector train_language_model train_layers
learning_rate connector_lr vision_tower_lr lr_scheduler_type lr_scheduler_kwargs warmup_steps max_grad_norm
weight_decay optim optim_args optim_target_modules adam_beta1 adam_beta2 adam_epsilon max_length truncation_mode
packing padding_free loss_type label_smoothing_factor neftune_noise_alpha bf16 fp16""".split()
# of a checkpoint: one of each is needed to go on, whichever way the model was sharded
WEIGHTS = ("*.safetensors", "pytorch_model*", "global_step*")
OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*")
STATE = "trainer_state.json"
SHARDS = re.compile(r"(adapter_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
LENGTH = ("max_steps", "num_train_epochs")  # a finished run may be made longer


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).view(np.uint8)).hexdigest()[:16]


def digest_weights(model) -> str:
    """Of up to 128 values of each weight that is no adapter: training another model moves some of them."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = getattr(parameter, "ds_tensor", parameter).detach()  # ZeRO-3's part
        values = values.to_local() if isinstance(values, DTensor) else values
        digest.update(f"{name} {tuple(values.shape)}".encode() if "lora_" not in name else b"")
        if "lora_" not in name and not values.is_meta and values.numel():
            sample = values.reshape(-1)[:: max(1, values.numel() // 64)]
            digest.update(sample.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def digest_rows(dataset: Dataset) -> str:
    """Of all ids and messages; pictures count by their rows."""
    names, digest = [name for name in ("id", "messages", "versions") if name in dataset.column_names], hashlib.sha256()
    for table in dataset.select_columns(names).with_format("arrow").iter(10_000):
        for batch in table.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()[:16]


def fingerprint(args, modalities=None, lengths=None, **known) -> dict:
    """What must be equal for a resumed run to go on as the one that stopped; `known` beside the arguments."""
    record = {"seed": args.seed, "data_seed": args.data_seed}
    record |= {name: getattr(args, name) for name in (*PLAN, *STEP, *LENGTH)} | known
    if modalities is not None:
        record |= {"rows": len(modalities), "modalities_sha256": _digest(modalities)}
    if lengths is not None:
        record["lengths_sha256"] = _digest(lengths)
    return json.loads(
        json.dumps(record, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    )


def check_fingerprint(saved: dict, current: dict, checkpoint: str) -> None:
    different = {
        name: f"{name} was {saved.get(name, 'not recorded')}, is {value}"
        for name, value in current.items() if name not in saved or saved[name] != value
    }  # fmt: skip
    if longer := [different.pop(name) for name in LENGTH if name in different]:
        warnings.warn(f"resuming from {checkpoint}: {'; '.join(longer)}: rates follow the new length", stacklevel=3)
    if different:
        what = "; ".join(different.values())
        raise ValueError(f"cannot resume from {checkpoint}: {what}. Restore these, or start from its weights anew")


def unwritten(checkpoint: str | Path, world: int = 1) -> str | None:
    """What a run of `world` processes can't resume without and the folder lacks, or None: a save that was stopped, or
    one of the model only. The trainer's state is written last."""
    folder, rng = Path(checkpoint), ["rng_state.pth"] if world == 1 else [f"rng_state_{i}.pth" for i in range(world)]
    for names in (WEIGHTS, OPTIMIZER, *([name] for name in rng)):
        if not any(any(folder.glob(name)) for name in names):
            return names[0]
    try:
        json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return STATE
    return None


def newest_checkpoint(output_dir: str, world: int = 1) -> str | None:
    """The checkpoint that was written last, of those written to their end; None where only the first was begun."""
    paths = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    if not paths:
        raise ValueError(f"resume_from_checkpoint=True, but {output_dir} holds no checkpoint")
    written = {path: (path / STATE if (path / STATE).exists() else path).stat().st_mtime_ns for path in paths}
    for path in sorted(paths, key=lambda path: (-written[path], -int(path.name.split("-")[1]))):
        if (missing := unwritten(path, world)) is None:
            return str(path)
        why = f"without a whole {missing}, as if the run stopped while it was written"
        warnings.warn(f"{path} is incomplete ({why}): skipped", stacklevel=2)
    return None


def make_room(output_dir: str, overwrite: bool, start: str | None, resumed: bool = False) -> None:
    """Refuses a folder that holds a run or a model, or, where `overwrite` says so, clears it of them; what a run
    that is `resumed` from its beginning did not write to the end is no matter."""
    folder = Path(output_dir)
    kept = [*(() if resumed else folder.glob("checkpoint-*")), *folder.glob("*.safetensors*")]
    kept += [folder / name for name in ("config.json", "adapter_config.json", STATE_FILE) if (folder / name).exists()]
    if not kept:
        return
    if not overwrite:
        raise ValueError(
            f"output_dir={output_dir} holds {kept[0].name} of another run: name a new folder, go on with "
            "resume_from_checkpoint, or delete what is there with overwrite_output_dir"
        )
    if start and folder.resolve() in (Path(start).resolve(), *Path(start).resolve().parents):
        raise ValueError(f"output_dir={output_dir} holds the model that the run starts from: name a new folder")
    for path in kept:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def told(output_dir: str | Path):
    """What the system or a library says of a write that failed, as one OSError that names the folder."""
    try:
        yield
    except HfHubHTTPError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, RuntimeError) and not any("torch/serialization" in frame.filename for frame in frames):
            raise  # of torch.save alone it is a write that failed
        why = " ".join(str(error).split())
        known = why.startswith("output_dir=")
        raise OSError(
            why if known else f"output_dir={output_dir} can't be written ({why}); what was saved there before is whole"
        ) from error


@contextmanager
def written_aside(folder: Path):
    """A folder to save into; then its files take their places, what makes a model loadable last."""
    part = folder / ".saving"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)  # a full disk gets its room back
        raise
    (folder / STATE).unlink(missing_ok=True)  # a checkpoint that is written anew is not whole
    paths = sorted(part.iterdir(), key=lambda path: ("safetensors" in path.name, "index" in path.name, path.name))
    names = {path.name for path in paths}
    # one file takes the old one's place at once; of several, new and old must not be taken for one model
    several = any("index" in name for name in names)
    old = [path for path in folder.iterdir() if SHARDS.fullmatch(path.name) and (several or path.name not in names)]
    old = sorted(old, key=lambda path: "index" not in path.name)
    for path in old if several else ():
        path.unlink()
    for path in paths:
        if path.is_dir():
            shutil.rmtree(folder / path.name, ignore_errors=True)
        path.replace(folder / path.name)
    for path in () if several else old:
        path.unlink()
    part.rmdir()
