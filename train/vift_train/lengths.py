"""The length of a row in tokens, without opening its images: what steps are grouped by, and what `max_length` cuts.

A row is as long as its rendered conversation, with `tokens_per_image` in place of each image; where it has several
conversations to choose from, as the longest.
"""

import copy
import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Image, IterableDataset, List
from PIL import Image as PIL

from vift_hub import join

logger = logging.getLogger(__name__)


def image_tokens(processor) -> int:
    """Tokens of an image: all are resized to one size."""
    blank = processor.image_processor(PIL.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
    return join.tokens_per_image(processor, *blank.shape[-2:])


def row_lengths(processor, conversations: list[list[dict]], images: list[int], tokens_per_image: int) -> list[int]:
    """Tokens of each conversation that shows so many images, as the trainer's collator will make them."""
    tokenizer = processor.tokenizer
    texts = [processor.apply_chat_template(messages) for messages in conversations]
    image_id = processor.image_token_id
    # a conversation of plain strings gets its placeholders only in the collator, so they are never counted here
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [len(row) - row.count(image_id) + count * tokens_per_image for row, count in zip(ids, images)]


def needed_lengths(processor, conversations: list[list[dict]], images: list[int], tokens_per_image: int) -> list[int]:
    """Tokens of each conversation up to its last image and the first token to learn: less than these must not be left
    by truncation."""
    tokenizer, needed = processor.tokenizer, []
    if tokenizer.truncation_side == "left":
        return row_lengths(processor, conversations, images, tokens_per_image)
    coded = tokenizer.apply_chat_template(
        conversations, chat_template=processor.chat_template, return_dict=True, return_assistant_tokens_mask=True
    )
    for ids, mask, count in zip(coded["input_ids"], coded["assistant_masks"], images):
        shown = np.flatnonzero(np.equal(ids, processor.image_token_id))
        learnt = np.flatnonzero(mask)[:1]
        ends = [place + 1 + (tokens_per_image - 1) * int((shown <= place).sum()) for place in (*shown[-1:], *learnt)]
        needed.append(int(max(ends, default=0)) + (0 if len(shown) else count * tokens_per_image))
    return needed


def of_longest(measure, processor, batch: dict, tokens_per_image: int) -> list[int]:
    """`measure` of each row's longest conversation; `batch`: lists of `messages`, `images` and perhaps `versions`."""
    versions = batch.get("versions") or [None] * len(batch["messages"])
    talks = [several or [messages] for messages, several in zip(batch["messages"], versions)]
    images = [len(images or ()) for images in batch["images"]]
    counts = [count for count, several in zip(images, talks) for _ in several]
    found = iter(measure(processor, [talk for several in talks for talk in several], counts, tokens_per_image))
    return [max(next(found) for _ in several) for several in talks]


def column(dataset: Dataset, name: str) -> np.ndarray:
    """A whole column, read once: numbers (N,) int64, or words (N,), with no Python object a row."""
    values, rows = dataset.data.column(name), dataset._indices
    words = not pa.types.is_integer(values.type)
    values = values.dictionary_encode().unify_dictionaries().combine_chunks() if words else values
    values = values if rows is None else values.take(rows.column(0).combine_chunks())  # datasets takes row by row
    if values.null_count:
        raise ValueError(f"column {name!r} has no value in {values.null_count} of {len(values)} rows")
    if words:
        return np.asarray(values.dictionary.to_pylist())[values.indices.to_numpy()]
    return values.to_numpy().astype(np.int64, copy=False)


def dataset_lengths(dataset: Dataset, processor, tokens_per_image: int, num_proc: int | None = None,
                    measure=row_lengths) -> np.ndarray:  # fmt: skip
    """`measure` of a whole data set; kept in the cache of `datasets`, so that only the first run waits."""

    def measured(table):
        batch = {name: table[name].to_pylist() for name in table.column_names if name != "images"}
        batch["images"] = [range(count or 0) for count in pc.list_value_length(table["images"]).to_pylist()]
        return {"length": of_longest(measure, processor, batch, tokens_per_image)}

    names = [name for name in ("messages", "versions", "images") if name in dataset.column_names]
    rows = dataset.select_columns(names).with_format("arrow")  # images stay encoded
    rows = rows.map(measured, batched=True, remove_columns=names, num_proc=num_proc, desc="lengths")
    return column(rows, "length")


def undecoded(dataset):
    """The same rows with pictures as they are stored: the collator opens them, in its workers and whole ones only."""
    if isinstance(dataset, dict):
        return {name: undecoded(one) for name, one in dataset.items()}
    images = (getattr(dataset, "features", None) or {}).get("images")
    if not isinstance(getattr(images, "feature", None), Image) or not images.feature.decode:
        return dataset
    if isinstance(dataset, IterableDataset):
        return dataset.cast_column("images", List(Image(decode=False)))
    dataset = copy.deepcopy(dataset)  # as `cast_column` does for a column that is one image; for lists it copies all
    dataset.info.features["images"] = List(Image(decode=False))
    return dataset


def fitting(dataset, processor, tokens_per_image: int, max_length: int | None, name: str, num_proc: int | None = None):
    """The rows of which truncation to `max_length` tokens leaves every image and something to learn; says how many it
    leaves out."""
    if isinstance(dataset, dict):
        parts = {key: (one, f"{name}[{key!r}]") for key, one in dataset.items()}
        return {key: fitting(one, processor, tokens_per_image, max_length, said, num_proc)
                for key, (one, said) in parts.items()}  # fmt: skip
    if max_length is None or not hasattr(dataset, "column_names"):
        return dataset
    why = f"their prompts don't fit into max_length={max_length}"
    if isinstance(dataset, IterableDataset):
        count = 0

        def fits(batch: dict) -> list[bool]:
            nonlocal count
            good = [n <= max_length for n in of_longest(needed_lengths, processor, batch, tokens_per_image)]
            if bad := [number for number, one in enumerate(good) if not one]:
                count += len(bad)
                ids = [batch["id"][number] if "id" in batch else "?" for number in bad]
                logger.warning("%d rows of %s are left out so far, now %s: %s", count, name, ids[:5], why)
            return good

        return dataset.filter(fits, batched=True, batch_size=16)
    numbers = np.arange(len(dataset))
    if "length" in dataset.column_names:  # believed, as in grouping
        numbers = numbers[column(dataset, "length") > max_length]
    long = dataset if len(numbers) == len(dataset) else dataset.select(numbers)
    needed = dataset_lengths(long, processor, tokens_per_image, num_proc, needed_lengths) if len(numbers) else []
    bad = numbers[np.asarray(needed, dtype=int) > max_length]
    if not len(bad):
        return dataset
    ids = [dataset[int(i)].get("id", int(i)) for i in bad[:5]]
    logger.warning("%d of %d rows of %s are left out: %s; the first: %s", len(bad), len(dataset), name, why, ids)
    if len(bad) == len(dataset):
        raise ValueError(f"max_length={max_length} is too short for every row of {name}: raise it")
    return dataset.select(np.setdiff1d(np.arange(len(dataset)), bad))
