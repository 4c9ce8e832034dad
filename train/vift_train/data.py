"""Your captions and your text instructions, as rows that the trainer takes.

    rows = load_rows("captions.jsonl", image_folder="pictures")   # JSON, JSONL, CSV, Parquet, a folder, a hub id
    rows = load_rows("instructions.jsonl")

A row that comes out has `id`, `messages`, `images` ([] for text), `modality`, `versions`. What goes in may be

    messages        {"messages": [{"role", "content"}], "images": [...]}: content a string or typed parts
    LLaVA           {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nDescribe ..."}, ...]}
    caption         {"image" or "jpg"/"png"/"webp": picture, "text"/"caption"/"txt": words, or a list of captions}: an
                    image folder with `metadata.jsonl`, a hub data set of captions, WebDataset shards
    instruction     {"instruction" or "prompt"/"question": words, "input": words, "output" or "response"/"completion"/
                    "answer": words, "system": words}, with or without a picture
    the Cauldron    {"images": [...], "texts": [{"user", "assistant"}, ...]}

or has columns of other names, which `columns` says (`vift_train.rows.COLUMNS` lists what is known). A picture is a
path, bytes, base64 or a data URI.

A caption becomes an instruction with a query from `CAPTION_QUERIES`, drawn by (seed, row): a brief one where the
caption is short, a detailed one where it is long; with `plain=True` it has no query (stage 1 of the paper drops it).
Of several captions of a picture the collator draws one, `versions`, by (seed, epoch, row).
A row that can't be used (corrupt image, empty caption, placeholders that don't match the images) is left out and
counted, with its id, or ends the run (`on_bad_row="raise"`); it is never turned into something else.
"""

import contextlib
import csv
import gzip
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, IterableDataset, List, Value, load_dataset, load_from_disk
from datasets.data_files import DataFilesList, get_data_patterns

from vift_hub import pictures

from . import checks
from . import rows as row_code
from .rows import (
    CAPTION_QUERIES,
    MORE,
    BadColumns,
    BadRow,
    column_names,
    convert_row,
    is_nothing,
    picture_source,
    text_of,
    typed_parts,
)

__all__ = ["CAPTION_QUERIES", "FEATURES", "load_rows", "text_of", "typed_parts"]
logger = logging.getLogger(__name__)

MESSAGES = List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})})
FEATURES = Features(
    {
        "id": Value("string"),
        "messages": MESSAGES,
        "images": List(Image()),
        "modality": Value("string"),
        "versions": List(MESSAGES),
    }
)
LINES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")  # read row by row here, so that a bad row is only a bad row
KINDS = {".parquet": "parquet", ".tar": "webdataset"}
CODE = [module.__file__ for module in (row_code, checks, pictures)] + [__file__]
LINE = "line of a file"  # the column of what is read here: a row as JSON


def kind_of(file: str) -> str:
    return Path(file.lower().removesuffix(".gz")).suffix


def marked(pairs: list[tuple]) -> dict:
    """A JSON object; one that says a key twice, of which the first would vanish, is marked."""
    found = dict(pairs)
    return found if len(found) == len(pairs) else found | {MORE: "a key stands twice in an object"}


def read_lines(files: list[str], state: str) -> Iterator[dict]:
    """The rows of text files as JSON; `state` (the files' sizes and times) names them anew in the cache."""
    csv.field_size_limit(2**31 - 1)  # pictures in base64
    for file in files:
        try:
            for line in read_file(file, kind_of(file)):
                yield {LINE: line, "folder": str(Path(file).parent)}
        except (OSError, EOFError, ValueError, csv.Error, RecursionError) as error:
            raise ValueError(f"{file} can't be read: {error}") from None


def read_file(file: str, kind: str) -> Iterator[bytes]:
    opened = gzip.open if file.lower().endswith(".gz") else open
    if kind in (".csv", ".tsv"):
        with opened(file, "rt", encoding="utf-8-sig", newline="", errors="surrogateescape") as text:
            for row in csv.DictReader(text, delimiter="\t" if kind == ".tsv" else ","):
                more = {MORE: "it has more values than the file has columns"} if row.pop(None, None) else {}
                yield json.dumps(row | more).encode()
        return
    with opened(file, "rb") as lines:
        if kind == ".json" and lines.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            lines.seek(0)
            yield from (json.dumps(row).encode() for row in json.load(lines, object_pairs_hook=marked))
            return
        lines.seek(0)
        if kind == ".json":
            try:
                yield json.dumps(json.load(lines, object_pairs_hook=marked)).encode()
                return
            except ValueError:  # one object a line
                lines.seek(0)
        yield from (line for line in lines if line.strip())


def row_of(line: bytes) -> dict:
    try:
        row = json.loads(line, object_pairs_hook=marked)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"not JSON ({getattr(error, 'msg', type(error).__name__)})") from None
    if not isinstance(row, dict):
        raise BadRow(f"JSON of {row_code.short(row)}, not of an object")
    return row


def file_state(paths) -> str:
    """A digest of the sizes and times of files: another one when a file has come, gone or changed."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            found = os.stat(path)
            digest.update(f"{path}/{found.st_size}/{found.st_mtime_ns}\n".encode(errors="replace"))
        except (OSError, ValueError):
            digest.update(b"none\n")
    return digest.hexdigest()


def _raw_rows(source: str, split: str, streaming: bool):
    path = Path(source)
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        saved = load_from_disk(source)
        if isinstance(saved, dict) and split not in saved:
            raise ValueError(f"split={split!r}: it has {', '.join(saved)}")
        saved = saved[split] if isinstance(saved, dict) else saved
        return saved.to_iterable_dataset() if streaming else saved
    if path.is_dir():
        patterns = get_data_patterns(str(path.absolute()))
        if split not in map(str, patterns):
            raise ValueError(f"split={split!r}: the folder has {', '.join(map(str, patterns))}")
        found = DataFilesList.from_patterns(patterns[split], str(path.absolute()))
        files = sorted(file for file in map(str, found) if kind_of(file) in (*LINES, *KINDS))
        files = [file for file in files if Path(file).name.startswith("metadata.")] or files
    elif path.is_file() or kind_of(source) in (*LINES, *KINDS):
        files = [str(path.absolute())]
        if not path.is_file():
            raise ValueError("there is no such file")
    else:
        return load_dataset(source, split=split, streaming=streaming)
    kinds = sorted({kind_of(file) for file in files})
    if len(kinds) != 1 or kinds[0] not in (*LINES, *KINDS):
        raise ValueError(f"one kind of {', '.join((*LINES, *KINDS))} is read; here is {', '.join(kinds) or 'none'}")
    if kinds[0] in KINDS:
        return load_dataset(KINDS[kinds[0]], data_files=files, split="train", streaming=streaming)
    make = IterableDataset if streaming else Dataset
    options = {"features": Features({LINE: Value("binary"), "folder": Value("string")})}
    return make.from_generator(read_lines, gen_kwargs={"files": files, "state": file_state(files)}, **options)


def load_rows(source: str, *, split: str = "train", image_folder: str | Path | None = None, streaming: bool = False,
              plain: bool = False, queries: Sequence[str] | None = None, seed: int = 0, on_bad_row: str = "skip",
              num_proc: int | None = None, columns: Mapping | str | None = None, every_caption: bool = False,
              check_pictures: str = "load") -> Dataset | IterableDataset:  # fmt: skip
    """
    Args:
        source: a .json, .jsonl, .ndjson, .csv, .tsv (each also .gz), .parquet or .tar file, a folder of such files (of
            pictures: with metadata.jsonl), what `save_to_disk` wrote, or a hub data set.
        split: of a hub data set, or of a folder whose files are named after splits.
        image_folder: where relative image paths start (default: the folder of the file that names them).
        streaming: return an `IterableDataset` that reads as it goes.
        plain: captions without a query.
        queries: caption queries of your own instead of `CAPTION_QUERIES`.
        seed: of the caption queries.
        on_bad_row: "skip" (counted, named in the log) or "raise".
        num_proc: processes that convert.
        columns: what a column is -> its name or names, such as {"caption": "alt", "ignore": ["title"]}, or this as
            JSON; where it says which columns hold the words, others are ignored.
        every_caption: a row for each of several captions of a picture, instead of one an epoch.
        check_pictures: "load" (each is opened here) or "training" (only by the collator).

    Returns:
        Rows with `FEATURES`; `.info.description` says how many were left out.

    Raises:
        ValueError: `source` does not exist or can't be read, a column that is not known or stands beside another that
            says the same, a bad row with `on_bad_row="raise"`, or no row is left.
    """
    for name, value, known in (
        ("on_bad_row", on_bad_row, ("skip", "raise")),
        ("check_pictures", check_pictures, ("load", "training")),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r} must be {' or '.join(map(repr, known))}")
    names, source = column_names(columns), str(source)
    try:
        raw = _raw_rows(source, split, streaming)
    except Exception as error:  # readers of files raise whatever they like
        reason = str(error.__cause__ or error).strip().split("\n")[0][:300]
        raise ValueError(f"source={source!r}: {reason or type(error).__name__}") from error
    home = Path(source) if Path(source).is_dir() else Path(source).parent if Path(source).is_file() else None
    if streaming and raw.features:
        raw = raw.decode(False)
    checked = check_pictures == "load"

    def rows_in(batch) -> Iterator[tuple[dict, Path | None, BadRow | None]]:
        """(row, folder of its pictures, what is wrong with it)"""
        table = batch if isinstance(batch, dict) else batch.to_pydict()  # arrow: pictures as they are stored
        for values in zip(*table.values()):
            row, folder, problem = dict(zip(table, values)), home, None
            if LINE in row:
                folder = row["folder"]
                try:
                    row = row_of(row[LINE])
                except BadRow as error:
                    row, problem = {}, error
            yield row, image_folder or folder, problem

    def picture_files(batch) -> dict:
        """The paths in the columns that can hold a picture."""
        found = []
        for row, folder, _ in rows_in(batch):
            values = [value for name, value in row.items() if names.get(name, names.get(name.lower())) == "image"]
            paths = []
            for image in (image for value in values for image in (value if isinstance(value, list) else [value])):
                with contextlib.suppress(BadRow):
                    paths.append(picture_source(image, folder)["path"])
            found.append([path for path in paths if path is not None])
        return {"paths": found}

    left_out = made_before = 0

    def convert(batch, indices: list[int], state: str = "") -> dict:
        nonlocal left_out, made_before
        made = []
        for (row, folder, problem), index in zip(rows_in(batch), indices):
            ids = [value for name, value in row.items() if names.get(name) == "id" and not is_nothing(value)]
            row_id = str(ids[0] if ids else index)[:200].encode(errors="replace").decode()
            try:
                if problem:
                    raise problem
                good = convert_row(row, row_id, folder, seed, plain, queries, names, every_caption, checked)
                made += [one | {"problem": None} for one in good]
            except BadRow as error:
                unclear = isinstance(error, BadColumns) and not (streaming and left_out + made_before + len(made))
                if on_bad_row == "raise" or unclear:
                    raise ValueError(f"source={source!r}, row {row_id!r}: {error}") from None
                if not streaming:
                    nothing = {name: [] for name in ("messages", "images", "versions")}
                    made.append({"id": row_id, "modality": "text", "problem": str(error), **nothing})
                    continue
                left_out += 1
                if left_out <= 20 or left_out % 1000 == 0:
                    logger.warning("row %r is left out (%d of %s so far): %s", row_id, left_out, source, error)
        made_before += len(made)
        return {name: [row[name] for row in made] for name in (*FEATURES, "problem")}

    features = Features({**FEATURES, "problem": Value("string")})
    options = {"batched": True, "batch_size": 64, "remove_columns": raw.column_names}
    if streaming:
        rows = raw.map(convert, with_indices=True, features=features, **options).remove_columns("problem")
        if next(iter(rows), None) is None:
            raise ValueError(f"source={source!r}: no usable row")
        left_out = 0
        return rows
    raw, options, files = raw.with_format("arrow"), options | {"num_proc": num_proc}, []
    if checked:
        paths = raw.map(picture_files, features=Features({"paths": List(Value("string"))}), desc="files", **options)
        files = (path for row in paths.with_format(None)["paths"] for path in row)
    state = {"state": file_state([*CODE, *files])}  # what `map` keeps is of this code and of these pictures
    rows = raw.map(convert, with_indices=True, features=features, fn_kwargs=state, desc="rows", **options)
    rows = rows.with_format(None)
    fine = rows.data.column("problem").is_null().to_numpy()  # at once: there may be millions
    bad, count = np.flatnonzero(~fine), len(rows)
    problems = [(row["id"], row["problem"]) for row in (rows[int(i)] for i in bad[:20])]
    for row_id, why in problems:
        logger.warning("row %r is left out: %s", row_id, why)
    if len(bad):
        logger.warning("%d of %d rows of %s are left out", len(bad), count, source)
        rows = rows.select(np.flatnonzero(fine))
    if not len(rows):
        raise ValueError(f"source={source!r}: no usable row; the first problem: {problems[0] if problems else 'none'}")
    rows = rows.remove_columns("problem")
    rows.info.description = f"{len(rows)} rows, {len(bad)} left out"
    return rows
