"""`train_layers: auto`: the band of layers to train, from a sample of the caption rows (arXiv 2606.03871).

Each sampled picture is shown to the model as it is and as its caption, with one and the same query, that of the first
row; the rule of `vift_layers.band` takes the layers in which the two come to be arranged alike. The band that it
chose, with the profile, is written to `<output_dir>/band.json`, and stands as `train_layers` in `vift_training.json`.
"""

import json
import random
from pathlib import Path

from accelerate.utils import broadcast_object_list
from datasets import IterableDataset
from transformers import AutoProcessor

from vift_hub.pictures import open_stored
from vift_layers.band import Band, choose_band

from .data import text_of

AUTO, BAND_FILE = "auto", "band.json"
SAMPLE = 512  # caption rows
SHORTEST = 3  # words; a shorter answer is no caption


def caption_pair(row: dict) -> dict | None:
    """{"image", "caption", "query"} of a row with one image whose first answer is a caption, else None."""
    turns = {}
    for message in row["messages"]:
        turns.setdefault(message["role"], text_of(message).strip())
    if len(row["images"]) != 1 or len(turns.get("assistant", "").split()) < SHORTEST:
        return None
    try:
        image = open_stored(row["images"][0])
    except ValueError:  # the collator says so
        return None
    return {"image": image, "caption": turns["assistant"], "query": turns.get("user", "")}


def sample_pairs(dataset, seed: int, count: int = SAMPLE) -> list[dict]:
    """Up to `count` pairs with different captions (a stream: from its first rows), all with the first one's query."""
    if isinstance(dataset, IterableDataset):
        rows = iter(dataset.take(8 * count))
    else:
        numbers = [i for i, modality in enumerate(dataset["modality"]) if modality == "image"]
        random.Random(seed).shuffle(numbers)
        rows = (dataset[i] for i in numbers[: 8 * count])
    by_caption = {}
    for pair in filter(None, map(caption_pair, rows)):
        by_caption.setdefault(pair["caption"], pair)
        if len(by_caption) == count:
            break
    pairs = list(by_caption.values())
    return [pair | {"query": pairs[0]["query"]} for pair in pairs]


def auto_band(model, processor, dataset, args) -> Band:
    """
    Args:
        args: of the run; `seed` draws the sample, `output_dir` gets `band.json`, the model is run on `device`.

    Raises:
        ValueError: too few caption rows, or a model that is sharded already.
    """
    if getattr(args, "hf_deepspeed_config", None) is not None and args.hf_deepspeed_config.is_zero3():
        raise ValueError("train_layers='auto' needs the whole model on each rank, not ZeRO-3: run vift analyze first")
    pairs = sample_pairs(dataset, args.seed)
    if len(pairs) < 40:
        raise ValueError(
            f"train_layers='auto' needs 40 image rows with different captions of {SHORTEST} words or more, the "
            f"training data has {len(pairs)}: name a band (vift analyze finds one on other data)"
        )
    processor = processor or AutoProcessor.from_pretrained(model.name_or_path, trust_remote_code=True)
    training, home = model.training, model.device
    movable = not getattr(model, "is_quantized", False) and not hasattr(model, "hf_device_map")
    if movable:
        model.to(args.device)
    model.eval()
    chosen = [choose_band(model, processor, pairs)]
    broadcast_object_list(chosen)  # ranks must agree, whatever their last bits are
    model.train(training)
    if movable:
        model.to(home)
    if args.should_save:
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        record = chosen[0].to_dict() | {"pairs": len(pairs), "query": pairs[0]["query"], "seed": args.seed}
        (folder / BAND_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return chosen[0]
