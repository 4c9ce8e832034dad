"""Your captions and your text instructions, as rows that the trainer takes.

    rows = load_rows("captions.jsonl", image_folder="pictures")   # JSON, JSONL, Parquet, a folder, a hub id
    rows = load_rows("instructions.jsonl")

A row that comes out has `id`, `messages`, `images` ([] for text), `modality`. What goes in may be

    messages        {"messages": [{"role", "content"}], "images": [...]}: content a string or typed parts
    LLaVA           {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nDescribe ..."}, ...]}
    caption         {"image" or "jpg"/"png"/"webp": picture, "text"/"caption"/"txt": words}: an image folder with
                    `metadata.jsonl`, a hub data set of captions, WebDataset shards
    instruction     {"instruction" or "prompt": words, "output" or "response" or "completion": words}

A caption becomes an instruction with a query from `CAPTION_QUERIES`, drawn by (seed, row): a brief one where the
caption is short, a detailed one where it is long; with `plain=True` it has no query (stage 1 of the paper drops it).
A row that can't be used (corrupt image, empty caption, placeholders that don't match the images) is left out and
counted, with its id, or ends the run (`on_bad_row="raise"`); it is never turned into something else.
"""

import io
import logging
import random
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, Features, Image, IterableDataset, List, Value, load_dataset
from PIL import Image as PIL

logger = logging.getLogger(__name__)

# Length-matched, as captions differ: paraphrases of "describe the image", brief and in detail.
CAPTION_QUERIES = {
    "brief": (
        "Describe the image briefly.",
        "Give a short description of the image.",
        "What is shown in this picture?",
        "Write a one-sentence caption for this image.",
        "Summarize the visual content of the image.",
        "Provide a brief caption.",
    ),
    "detailed": (
        "Describe the image in detail.",
        "Give a thorough description of what can be seen in the image.",
        "Write a detailed caption for this picture.",
        "What can be seen in this image? Be comprehensive.",
        "Explain everything that is visible in the picture.",
        "Provide a rich and complete description of the image.",
    ),
}
BRIEF_WORDS = 30  # a caption of at most so many words gets a brief query
PART = {"type": Value("string"), "text": Value("string")}
FEATURES = Features(
    {
        "id": Value("string"),
        "messages": List({"role": Value("string"), "content": List(PART)}),
        "images": List(Image()),
        "modality": Value("string"),
    }
)
KINDS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".tar": "webdataset"}
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp")
CAPTION_COLUMNS = ("caption", "text", "txt")
PROMPT_COLUMNS, ANSWER_COLUMNS = ("instruction", "prompt", "question"), ("output", "response", "completion", "answer")
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PLACEHOLDER = "<image>"


class BadRow(ValueError):
    """A row that can't be used; the message says why."""


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


def text_of(message: dict) -> str:
    """The words of a message whose content is a string or typed parts."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text" and part["text"])


def typed_parts(content: str | list[dict]) -> list[dict]:
    """
    The content of a message as parts {"type", "text"}. In a string, `<image>` stands for an image; the line break that
    only sets it apart is dropped.
    """
    if not isinstance(content, str):
        return [{"type": part["type"], "text": part.get("text")} for part in content]
    parts = []
    for number, piece in enumerate(content.split(PLACEHOLDER)):
        if number:
            parts.append({"type": "image", "text": None})
            piece = piece.removeprefix("\n")
        if piece.strip():
            parts.append(text_part(piece.removesuffix("\n") if number == 0 and PLACEHOLDER in content else piece))
    return parts


def caption_query(caption: str, row_id: str, seed: int, queries: Sequence[str] | None = None) -> str:
    """One of `queries`, or of the pool that fits the caption's length; the same for the same (seed, row)."""
    kind = "brief" if len(caption.split()) <= BRIEF_WORDS else "detailed"
    return random.Random(f"{seed}/{row_id}").choice(queries or CAPTION_QUERIES[kind])


def _first(row: dict, names) -> object:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _open(image, folder: Path | None) -> dict:
    """{"bytes", "path"} of a picture that decodes; corrupt, truncated, missing and empty ones are bad rows."""
    if isinstance(image, PIL.Image):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return {"bytes": buffer.getvalue(), "path": None}
    image = {"bytes": None, "path": image} if isinstance(image, str) else dict(image)
    if image.get("bytes") is None:
        path = Path(image["path"])
        image = {"bytes": None, "path": str(path if folder is None or path.is_absolute() else folder / path)}
    try:
        with PIL.open(io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]) as picture:
            picture.load()
    except Exception as error:  # decoders raise whatever they like
        raise BadRow(f"image {image.get('path') or ''} can't be read ({type(error).__name__}: {error})") from error
    return {"bytes": image["bytes"], "path": image["path"]}


def convert_row(row: dict, row_id: str, folder=None, seed: int = 0, plain: bool = False, queries=None) -> dict:
    """One row of any of the kinds above -> `id`, `messages`, `images`, `modality`; raises `BadRow`."""
    images = row.get("images")
    if images is None:
        one = _first(row, IMAGE_COLUMNS)
        images = [] if one is None else one if isinstance(one, list) else [one]
    images = [_open(image, folder) for image in images]
    if row.get("messages"):
        turns = [(message["role"], message["content"]) for message in row["messages"]]
    elif row.get("conversations"):
        unknown = [turn["from"] for turn in row["conversations"] if turn["from"] not in SPEAKERS]
        if unknown:
            raise BadRow(f"unknown speaker {unknown[0]!r}; known: {', '.join(SPEAKERS)}")
        turns = [(SPEAKERS[turn["from"]], turn["value"]) for turn in row["conversations"]]
    else:
        if images:
            answer = str(_first(row, CAPTION_COLUMNS) or "").strip()
            prompt = None if plain else caption_query(answer, row_id, seed, queries)
        else:
            prompt, answer = (str(_first(row, names) or "").strip() for names in (PROMPT_COLUMNS, ANSWER_COLUMNS))
            if not prompt:
                raise BadRow(f"no known kind of row: its columns are {', '.join(row)}")
        user = [{"type": "image", "text": None}] * len(images) + ([text_part(prompt)] if prompt else [])
        turns = [("user", user), ("assistant", [text_part(answer)] if answer else [])]
    messages = [{"role": role, "content": typed_parts(content)} for role, content in turns]
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRow("the last message is not the assistant's")
    if not all(text_of(message).strip() for message in messages if message["role"] == "assistant"):
        raise BadRow("an answer or caption is empty")
    placeholders = sum(part["type"] == "image" for message in messages for part in message["content"])
    if placeholders != len(images):
        raise BadRow(f"{placeholders} image placeholders but {len(images)} images")
    return {"id": row_id, "messages": messages, "images": images, "modality": "image" if images else "text"}


def _raw_rows(source: str, split: str, streaming: bool):
    path = Path(source)
    kind, files = KINDS.get(path.suffix.lower()), {"data_files": str(path)}
    if path.is_dir():
        kind = "webdataset" if any(path.glob("*.tar")) else "imagefolder"
        files = {"data_files": str(path / "*.tar")} if kind == "webdataset" else {"data_dir": str(path)}
    elif kind is None:
        return load_dataset(source, split=split, streaming=streaming)
    elif not path.is_file():
        raise ValueError(f"source={source!r}: there is no such file")
    return load_dataset(kind, split="train", streaming=streaming, **files)


def load_rows(source: str, *, split: str = "train", image_folder: str | Path | None = None, streaming: bool = False,
              plain: bool = False, queries: Sequence[str] | None = None, seed: int = 0, on_bad_row: str = "skip",
              num_proc: int | None = None) -> Dataset | IterableDataset:  # fmt: skip
    """
    Args:
        source: a .json, .jsonl, .parquet or .tar file, a folder of pictures or of .tar shards, or a hub data set.
        split: of a hub data set.
        image_folder: where relative image paths start (default: the folder of `source`).
        streaming: return an `IterableDataset` that reads as it goes.
        plain: captions without a query.
        queries: caption queries of your own instead of `CAPTION_QUERIES`.
        seed: of the caption queries.
        on_bad_row: "skip" (counted, named in the log) or "raise".
        num_proc: processes that convert.

    Returns:
        Rows with `FEATURES`; `.info.description` says how many were left out.

    Raises:
        ValueError: `source` does not exist, a bad row with `on_bad_row="raise"`, or no row is left.
    """
    if on_bad_row not in ("skip", "raise"):
        raise ValueError(f"on_bad_row={on_bad_row!r} must be 'skip' or 'raise'")
    raw = _raw_rows(str(source), split, streaming)
    for name, feature in (raw.features or {}).items():
        if isinstance(feature, Image):
            raw = raw.cast_column(name, Image(decode=False))  # the bytes are kept as they are
    folder = Path(source).parent if Path(source).is_file() else None
    folder = folder if image_folder is None else Path(image_folder)

    def convert(batch: dict, indices: list[int]) -> dict:
        columns = {name: [] for name in (*FEATURES, "problem")}
        for position, index in enumerate(indices):
            row = {name: values[position] for name, values in batch.items()}
            row_id = str(_first(row, ("id", "__key__")) or index)
            try:
                good, problem = convert_row(row, row_id, folder, seed, plain, queries), None
            except BadRow as error:
                if on_bad_row == "raise":
                    raise ValueError(f"row {row_id!r}: {error}") from error
                good, problem = {"id": row_id, "messages": [], "images": [], "modality": "text"}, str(error)
                if streaming:
                    logger.warning("row %r is left out: %s", row_id, problem)
                    continue
            for name, value in (good | {"problem": problem}).items():
                columns[name].append(value)
        return columns

    features = Features({**FEATURES, "problem": Value("string")})
    options = {} if streaming else {"num_proc": num_proc, "desc": "rows"}
    rows = raw.map(
        convert, with_indices=True, batched=True, batch_size=64, remove_columns=raw.column_names, features=features,
        **options,
    )  # fmt: skip
    if streaming:
        return rows.remove_columns("problem")
    problems = [(row_id, why) for row_id, why in zip(rows["id"], rows["problem"]) if why is not None]
    for row_id, why in problems[:20]:
        logger.warning("row %r is left out: %s", row_id, why)
    if problems:
        logger.warning("%d of %d rows of %s are left out", len(problems), len(rows), source)
    rows = rows.select([i for i, why in enumerate(rows["problem"]) if why is None]).remove_columns("problem")
    if not len(rows):
        raise ValueError(f"source={source!r}: no usable row; the first problem: {problems[0] if problems else 'none'}")
    rows.info.description = f"{len(rows)} rows, {len(problems)} left out"
    return rows
