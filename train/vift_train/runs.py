"""Which run it is: what decides its steps, compared before it is resumed, and its newest checkpoint."""

import hashlib
import json
import warnings
from contextlib import suppress
from pathlib import Path

import torch
from datasets import Dataset
from torch.distributed.tensor import DTensor

# the arguments that decide which rows make a step
PLAN = ("gradient_accumulation_steps", "per_device_train_batch_size", "modality_order", "group_by_length",
        "chunk_steps", "text_weight")  # fmt: skip
# the arguments that decide what a step does
STEP = """stage train_vision_tower train_connector train_language_model train_layers
learning_rate connector_lr vision_tower_lr lr_scheduler_type lr_scheduler_kwargs warmup_steps max_grad_norm
weight_decay optim optim_args optim_target_modules adam_beta1 adam_beta2 adam_epsilon max_length truncation_mode
packing padding_free loss_type label_smoothing_factor neftune_noise_alpha bf16 fp16""".split()
LENGTH = ("max_steps", "num_train_epochs")  # a finished run may be made longer


def _digest(values) -> str:
    return hashlib.sha256("\n".join(map(str, values)).encode()).hexdigest()[:16]


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
    names, digest = [name for name in ("id", "messages") if name in dataset.column_names], hashlib.sha256()
    for table in dataset.select_columns(names).with_format("arrow").iter(10_000):
        for batch in table.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()[:16]


def fingerprint(args, world: int, modalities=None, lengths=None, **known) -> dict:
    """What must be equal for a resumed run to go on as the one that stopped; `known` beside the arguments."""
    record = {"world_size": world, "seed": args.seed, "data_seed": args.data_seed}
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


def newest_checkpoint(output_dir: str) -> str:
    """The checkpoint that was written last, of those written to their end (the trainer's state is written last)."""
    paths = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    state = "trainer_state.json"
    written = {path: (path / state if (path / state).exists() else path).stat().st_mtime_ns for path in paths}
    for path in sorted(paths, key=lambda path: (-written[path], -int(path.name.split("-")[1]))):
        with suppress(OSError, ValueError):
            json.loads((path / state).read_text(encoding="utf-8"))
            return str(path)
        warnings.warn(f"{path} is incomplete, as if the run stopped while it was written: skipped", stacklevel=2)
    raise ValueError(f"resume_from_checkpoint=True, but {output_dir} holds no checkpoint")
