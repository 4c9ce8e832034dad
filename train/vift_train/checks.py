"""What is checked before the first step, so that a run fails in seconds and not after a night."""

from collections import Counter

import numpy as np

COLUMNS = ("messages", "images", "modality")


def check_columns(dataset) -> None:
    """The row schema: `messages`, `images` ([] for text), `modality`."""
    columns = dataset.column_names
    if columns is None:  # a stream without declared features
        columns = list(next(iter(dataset)))
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise ValueError(f"train_dataset lacks the columns {', '.join(missing)}; it has {', '.join(columns)}")


def row_name(row: dict, number: int) -> str:
    return f"row {row['id']!r}" if row.get("id") is not None else f"row {number} of the batch"


def check_row(row: dict, number: int = 0) -> None:
    """Placeholders and images agree, and the modality, where known, says which of the two kinds the row is."""
    images = row["images"]
    if images is None:
        raise ValueError(f"{row_name(row, number)}: images is None; a text row has []")
    if "modality" in row and (row["modality"] == "image") != bool(images):
        raise ValueError(f"{row_name(row, number)}: modality={row['modality']!r} but {len(images)} images")
    parts = [part for m in row["messages"] if not isinstance(m["content"], str) for part in m["content"]]
    placeholders = sum(part["type"] == "image" for part in parts)
    if placeholders and placeholders != len(images):
        raise ValueError(f"{row_name(row, number)}: {placeholders} image placeholders but {len(images)} images")


def check_batch(rows: list[dict], batch: dict, image_token_id: int, tokens_per_image: int) -> None:
    """Of a collated batch: every image is whole, no image token is a label, every row has something to learn."""
    is_image = batch["input_ids"] == image_token_id
    image_tokens, supervised = is_image.sum(dim=1).tolist(), (batch["labels"] != -100).sum(dim=1).tolist()
    if (batch["labels"] == image_token_id).any():
        raise ValueError("image tokens are among the labels: the chat template must mark the assistant's tokens")
    for number, row in enumerate(rows):
        expected = len(row["images"]) * tokens_per_image
        if image_tokens[number] != expected:
            raise ValueError(
                f"{row_name(row, number)}: {image_tokens[number]} image tokens, but {len(row['images'])} images take "
                f"{expected}: max_length cuts into an image, or the text holds a placeholder of its own"
            )
        if supervised[number] == 0:
            raise ValueError(
                f"{row_name(row, number)}: no token to learn from: an empty answer, no assistant turn, or max_length "
                "cuts the answer off"
            )


def check_groups(groups: list[dict], parameters: dict) -> None:
    """Every trainable parameter is in exactly one group of the optimizer."""
    count = Counter(id(parameter) for group in groups for parameter in group["params"])
    wrong = [name for name, p in parameters.items() if count[id(p)] != 1]
    if wrong or len(count) != len({id(p) for p in parameters.values()}):
        raise ValueError(f"not in exactly one group of the optimizer: {', '.join(wrong[:3]) or 'a frozen parameter'}")


def small_modalities(modalities, micro_batches: int) -> list[str]:
    """Warnings for modalities with fewer rows than one step has micro-batches: their rows are repeated in it."""
    names, counts = np.unique(np.asarray(modalities), return_counts=True)
    return [
        f"{count} rows of modality '{name}' for a step of {micro_batches} micro-batches: rows are repeated inside it"
        for name, count in zip(names, counts)
        if count < micro_batches
    ]
