"""The length of a row in tokens, without opening its images: what the steps are grouped by.

A row is as long as its rendered conversation, with `tokens_per_image` in place of each image.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset


def row_lengths(processor, conversations: list[list[dict]], images: list[int], tokens_per_image: int) -> list[int]:
    """Tokens of each conversation that shows so many images, as the trainer's collator will make them."""
    tokenizer = processor.tokenizer
    texts = [processor.apply_chat_template(messages) for messages in conversations]
    image_id = processor.image_token_id
    # a conversation of plain strings gets its placeholders only in the collator, so they are never counted here
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [len(row) - row.count(image_id) + count * tokens_per_image for row, count in zip(ids, images)]


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


def dataset_lengths(dataset: Dataset, processor, tokens_per_image: int, num_proc: int | None = None) -> np.ndarray:
    """`row_lengths` of a whole data set; kept in the cache of `datasets`, so that only the first run waits."""

    def measure(table):
        images = pc.list_value_length(table["images"]).to_pylist()
        return {"length": row_lengths(processor, table["messages"].to_pylist(), images, tokens_per_image)}

    rows = dataset.select_columns(["messages", "images"]).with_format("arrow")  # images stay encoded
    measured = rows.map(
        measure, batched=True, remove_columns=["messages", "images"], num_proc=num_proc, desc="lengths"
    )
    return column(measured, "length")
