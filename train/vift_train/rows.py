"""One row as people have it -> rows that the trainer takes, or a `BadRow` that says why not.

A column is known by its name, or by a mapping {what it is: its names} over `COLUMNS`. A column that is not known and
holds words, and two that say the same, are `BadColumns`: nothing is dropped unseen.
"""

import base64
import io
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image as PIL
from transformers.utils import logging

from vift_hub.pictures import open_stored

from .checks import PLACEHOLDER, row_problem

logger = logging.get_logger(__name__)

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
# what a column is -> the names it is known by
COLUMNS = {
    "id": ("id", "__key__"),
    "image": ("image", "images", "jpg", "jpeg", "png", "webp", "file_name"),
    "caption": ("caption", "captions", "text", "txt"),
    "question": ("question", "instruction", "prompt", "query"),
    "input": ("input", "context"),
    "answer": ("answer", "output", "response", "completion"),
    "system": ("system", "system_prompt"),
    "messages": ("messages",),
    "conversations": ("conversations",),
    "texts": ("texts",),
    "versions": ("versions",),  # conversations to choose from, as `load_rows` itself writes them
    "ignore": ("url", "__url__", "json", "modality", "source", "data_source", "model", "license", "licence", "sha256",
               "md5", "hash", "category", "filename", "split", "__index_level_0__"),
}  # fmt: skip
WORDS = ("question", "input", "answer", "system")
KINDS = ("messages", "conversations", "texts", "caption")  # or WORDS: one kind a row
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
IMAGE_PART = {"type": "image", "text": None}
FACT = re.compile(r"[-+.,:\deE]*\d[-+.,:\deE]*|true|false|https?://\S+", re.IGNORECASE)
MORE = "more than the columns"  # stands in a row whose reader found a key twice or values without a column


class BadRow(ValueError):
    """A row that can't be used; the message says why."""


class BadColumns(BadRow):
    """Columns that can't be told apart, whatever is in the rows."""


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


def text_of(message: dict) -> str:
    """The words of a message whose content is a string or typed parts."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text" and part["text"])


def caption_query(caption: str, row_id: str, seed: int, queries: Sequence[str] | None = None) -> str:
    """One of `queries`, or of the pool that fits the caption's length; the same for the same (seed, row)."""
    kind = "brief" if len(caption.split()) <= BRIEF_WORDS else "detailed"
    return random.Random(f"{seed}/{row_id}").choice(queries or CAPTION_QUERIES[kind])


def column_names(columns: Mapping | str | None) -> dict:
    """{name: what it is}, `columns` (a mapping or its JSON) included; under "*", the names that `columns` holds."""
    names = {name: what for what, known in COLUMNS.items() for name in known}
    advice = 'must be a mapping from what a column is to its name, such as {"caption": "NAME"}'
    try:
        columns = json.loads(columns) if isinstance(columns, str) else columns or {}
        mapped = {what: [known] if isinstance(known, str) else list(known) for what, known in columns.items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"columns={columns!r} {advice}") from None
    unknown = [what for what in mapped if names.get(what, what) not in COLUMNS]
    if unknown or not all(isinstance(name, str) for known in mapped.values() for name in known):
        raise ValueError(f"columns={columns!r} {advice}; known are {', '.join(COLUMNS)}")
    mapped = {name: what if what in COLUMNS else names[what] for what, known in mapped.items() for name in known}
    return names | mapped | {"*": tuple(mapped)}


def short(value) -> str:
    """A value in an error text: never a whole document, nor a picture in base64."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 64 else f"a text of {len(value)} characters"
    return (
        "null" if value is None else repr(value) if isinstance(value, (bool, float)) else f"a {type(value).__name__}"
    )


def words(value, name: str) -> str:
    """Text, or a number as text; nothing else has words that were meant."""
    number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if number and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise BadRow(f"{name} holds {short(value)}, no text")
    if re.search("[\ud800-\udfff]", value):
        raise BadRow(f"{name} holds half a character (a lone surrogate, or bytes that are not UTF-8)")
    return value


def items(value, name: str) -> list[dict]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise BadRow(f"{name} holds {short(value)}, not a list of objects")
    return value


def only(entry: dict, known: Sequence[str], name: str) -> dict:
    """`entry`, which says nothing beyond `known`."""
    more = [key for key, value in entry.items() if key not in known and has_words(value)]
    if more:
        raise BadRow(f"{name} has {', '.join(map(short, more))}, which would be lost; known: {', '.join(known)}")
    return entry


def is_nothing(value) -> bool:
    return value is None or (isinstance(value, (str, list, dict, bytes)) and not value)


def has_words(value) -> bool:
    """Words or pictures; numbers (as text too), dates and addresses are facts about the row."""
    if isinstance(value, str):
        return bool(value.strip()) and not FACT.fullmatch(value.strip())
    if isinstance(value, (list, dict)):
        return any(map(has_words, value.values() if isinstance(value, dict) else value))
    return isinstance(value, (bytes, PIL.Image)) and value != b""


def typed_parts(content, user: bool = True) -> list[dict]:
    """
    The content of a message as parts {"type", "text"}. In a user's string, `<image>` stands for an image; the line
    break that only sets it apart is dropped.
    """
    if isinstance(content, list):
        parts = [part for part in items(content, "content") if only(part, ("type", "text"), "a part")]
        kinds = [part.get("type") for part in parts]
        if unknown := [kind for kind in kinds if kind not in ("text", "image")]:
            raise BadRow(f"a part of type {short(unknown[0])}; known: text, image")
        if any(kind == "image" and has_words(part.get("text")) for kind, part in zip(kinds, parts)):
            raise BadRow("an image part has a text")
        return [text_part(words(p.get("text"), "text")) if p["type"] == "text" else IMAGE_PART for p in parts]
    content = words(content, "content")
    pieces = content.split(PLACEHOLDER) if user else [content]
    parts = []
    for number, piece in enumerate(pieces):
        if number:
            parts.append(IMAGE_PART)
            piece = piece.removeprefix("\n")
        if piece.strip():
            parts.append(text_part(piece.removesuffix("\n") if number == 0 and len(pieces) > 1 else piece))
    return parts


def picture_source(image, folder: Path | None = None) -> dict:
    """{"bytes", "path"} of what a picture is given as: a path, base64, bytes, an object of both, or a picture."""
    if isinstance(image, PIL.Image):
        buffer = io.BytesIO()
        image.save(buffer, format="TIFF" if image.mode == "F" else "PNG")
        image = buffer.getvalue()
    if isinstance(image, dict) and image.get("bytes") is None:
        image = image.get("path")
    if isinstance(image, str):
        data = image.partition(",")[2] if image.startswith("data:") else image
        long = len(image) > 255 and "." not in image
        if data is not image or long or image.startswith(("iVBORw0KGgo", "/9j/4", "R0lGOD", "UklGR")):
            try:
                image = base64.b64decode("".join(data.split()), validate=True)
            except ValueError:
                raise BadRow(f"image is a text of {len(image)} characters, neither a path nor base64") from None
        elif re.match("https?://", words(image, "image")):
            raise BadRow(f"image {short(image)} is an address: download the pictures first")
        else:
            return {"bytes": None, "path": image if folder is None else str(Path(folder) / image)}
    image = image["bytes"] if isinstance(image, dict) else image
    if not isinstance(image, bytes):
        raise BadRow(f"image holds {short(image)}, no picture")
    return {"bytes": image, "path": None}


def advice(row: dict) -> str:
    return (
        f'Columns: {", ".join(map(short, row))}. Say what they are, such as columns={{"caption": "NAME"}} or '
        f'{{"ignore": ["NAME"]}}; known are {", ".join(COLUMNS)}'
    )


def group(what: str) -> str:
    return "question and answer" if what in WORDS else what


def given(row: dict, names: dict) -> dict:
    """{what it is: value} of the columns that hold something. Where the user named those that hold the words of this
    row, others that hold words are ignored; that is said."""
    if MORE in row:
        raise BadRow(row[MORE])
    row = {name: value for name, value in row.items() if not is_nothing(value)}
    mine = [name for name in row if name in names["*"]]
    chosen = {group(names[name]) for name in mine} & {group(what) for what in (*KINDS, *WORDS)}
    found, called, ignored = {}, {}, []
    for name in (*mine, *(name for name in row if name not in mine)):
        what = names.get(name) or names.get(name.lower())
        if what is None and has_words(row[name]) and not name.lower().endswith("_id"):
            if not chosen:
                raise BadColumns(f"column {short(name)} is not known. {advice(row)}")
            ignored.append(name)
        elif what in found and what not in ("id", "ignore"):
            if called[what] not in mine or name in mine:
                raise BadColumns(f"columns {called[what]!r} and {name!r} both hold the {what}. {advice(row)}")
            ignored.append(name)
        elif what is not None and what != "ignore":
            found[what], called[what] = row[name], name
    kinds = {group(what): called[what] for what in (*KINDS, *WORDS) if what in found}
    if len(kinds) > 1 and len(chosen) == 1:
        other = [what for what in (*KINDS, *WORDS) if what in found and group(what) not in chosen]
        ignored += [called[what] for what in other]
        found = {what: value for what, value in found.items() if what not in other}
    elif len(kinds) != 1:
        which = f"columns {' and '.join(map(repr, kinds.values()))} are two kinds of row in one"
        raise (BadColumns if kinds else BadRow)(
            f"{which if kinds else 'no caption, question or messages'}. {advice(row)}"
        )
    for name in ignored:
        logger.warning_once(f"column {short(name)} is ignored: columns says that others hold the words")
    return found


def conversations(found: dict, images: int, query) -> list[list[tuple]]:
    """[(role, content)] of each conversation that the row holds: several only where a picture has several captions."""
    pictures = [IMAGE_PART] * images
    if "versions" in found:
        if not isinstance(found["versions"], list) or found.get("messages") not in found["versions"]:
            raise BadRow("versions is not a list of conversations of which messages is one")
        return [conversations({"messages": talk}, images, query)[0] for talk in found["versions"]]
    if "messages" in found:
        turns = [only(m, ("role", "content"), "a message") for m in items(found["messages"], "messages")]
        return [[(turn.get("role"), turn.get("content")) for turn in turns]]
    if "conversations" in found:
        turns = [only(turn, ("from", "value"), "a turn") for turn in items(found["conversations"], "conversations")]
        if unknown := [turn.get("from") for turn in turns if turn.get("from") not in [*SPEAKERS]]:
            raise BadRow(f"unknown speaker {short(unknown[0])}; known: {', '.join(SPEAKERS)}")
        return [[(SPEAKERS[turn["from"]], turn.get("value")) for turn in turns]]
    if "caption" in found:
        if not images:
            raise BadRow(f'a caption, but no picture: {", ".join(COLUMNS["image"])}, or columns={{"image": "NAME"}}')
        captions = found["caption"] if isinstance(found["caption"], list) else [found["caption"]]
        captions = [words(caption, "caption").strip() for caption in captions]
        asked = [[text_part(query(caption))] if query else [] for caption in captions]
        return [[("user", pictures + ask), ("assistant", caption)] for ask, caption in zip(asked, captions)]
    if "texts" in found:
        turns = [only(turn, ("user", "assistant", "source"), "a turn") for turn in items(found["texts"], "texts")]
        said = [("", turn.get("user"), turn.get("assistant")) for turn in turns]
    else:
        part = {name: words(found[name], name).strip() for name in WORDS if name in found}
        prompt = "\n".join(part[name] for name in ("question", "input") if part.get(name))
        said = [(part.get("system"), prompt, part.get("answer", ""))]
    talk = []
    for number, (system, prompt, answer) in enumerate(said):
        prompt = words(prompt, "question")
        if not prompt.strip():
            raise BadRow("a question is empty")
        if number == 0 and PLACEHOLDER not in prompt:
            prompt = [*pictures, text_part(prompt)]
        talk += [("system", system)] * bool(system) + [("user", prompt), ("assistant", answer)]
    return [talk]


def convert_row(row: dict, row_id: str, folder=None, seed: int = 0, plain: bool = False, queries=None, names=None,
                every_caption: bool = False, check_pictures: bool = True) -> list[dict]:  # fmt: skip
    """One row of any of the kinds in `vift_train.data` -> rows (several only with `every_caption`).

    Raises: BadRow.
    """
    found = given(row, names or column_names(None))
    images = found.get("image", [])
    images = [picture_source(image, folder) for image in (images if isinstance(images, list) else [images])]
    try:
        for image in images if check_pictures else ():
            open_stored(image)
    except ValueError as error:
        raise BadRow(str(error)) from None
    query = None if plain else lambda caption: caption_query(caption, row_id, seed, queries)
    talks = [
        [{"role": role, "content": typed_parts(content, role == "user")} for role, content in talk]
        for talk in conversations(found, len(images), query)
    ]
    common = {"images": images, "modality": "image" if images else "text"}
    rows = [{"id": row_id, "messages": talk, **common, "versions": []} for talk in talks]
    for problem in filter(None, map(row_problem, rows)):
        raise BadRow(problem)
    if len(rows) > 1 and every_caption:
        return [row | {"id": f"{row_id}/{number}"} for number, row in enumerate(rows)]
    return [rows[0] | {"versions": talks if len(talks) > 1 else []}]
