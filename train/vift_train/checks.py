"""What is checked before the first step, so that a run fails in seconds and not after a night."""

from collections import Counter

import numpy as np
from datasets import IterableDataset

COLUMNS = ("messages", "images", "modality")
ROLES = ("system", "user", "assistant")
PLACEHOLDER = "<image>"


def check_stream(args) -> None:
    """Settings that a stream has no meaning for."""
    if args.text_weight != 1.0:
        raise ValueError(
            f"text_weight={args.text_weight}: a stream's mixture is made where its sources are joined "
            "(datasets.interleave_datasets, probabilities=...), not here: leave it at 1.0"
        )
    if "epoch" in (args.save_strategy, args.eval_strategy):
        raise ValueError(
            "save_strategy and eval_strategy: a stream has no epochs but max_steps steps: 'steps' or 'no'"
        )


def check_columns(dataset) -> None:
    """The row schema: `messages`, `images` ([] for text), `modality`."""
    columns = dataset.column_names
    if isinstance(dataset, IterableDataset):
        first = next(iter(dataset), None)
        if first is None:
            raise ValueError("train_dataset: the stream holds no usable row")
        columns = columns or list(first)  # of a stream without declared features
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise ValueError(f"train_dataset lacks the columns {', '.join(missing)}; it has {', '.join(columns)}")


def row_name(row: dict, number: int) -> str:
    return f"row {row['id']!r}" if row.get("id") is not None else f"row {number} of the batch"


def row_problem(row: dict, image_token: str = PLACEHOLDER) -> str | None:
    """Why a row can't be trained on, whatever the model; None if it can. The loader leaves out what is refused here,
    the collator raises it."""
    images, messages = row["images"], row["messages"]
    if images is None:
        return "images is None; a text row has []"
    if "modality" in row and (row["modality"] == "image") != bool(images):
        return f"modality={row['modality']!r} but {len(images)} images"
    placeholders, has_parts = 0, False
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            return f"role {str(role)[:40]!r} must be one of {', '.join(ROLES)}"
        has_parts |= not isinstance(content, str)
        said, shown = "", 0
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content or []:
            if part["type"] == "image" and role == "user":
                shown += 1
            elif part["type"] == "text" and isinstance(part.get("text"), str):
                said += part["text"]
            else:
                return f"a part of type {part['type']!r} without text, or not the user's, in a message of the {role}"
        placeholders += shown
        if PLACEHOLDER in said or image_token in said:
            return f"the words of the {role} hold the placeholder {image_token}"
        if "data:image/" in said and ";base64," in said:
            return f"the words of the {role} hold a picture in base64"
        if not said.strip() and not shown:
            return "an answer or caption is empty" if role == "assistant" else f"a message of the {role} is empty"
    if not messages or messages[-1]["role"] != "assistant":
        return "no token to learn from: the last message is not the assistant's"
    if placeholders != len(images) and (placeholders or has_parts):  # plain strings get theirs from the collator
        return f"{placeholders} image placeholders but {len(images)} images"
    return None


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
