"""Random rows and files: what comes out is recognisable as what went in, and what can't be used is refused by name.

    VIFT_FUZZ_ROUNDS=5000 pytest tests/train/test_rows_fuzz.py      # longer than the default

Each round makes a file of rows, most of them of a known kind with a random fault, and loads it.
"""

import base64
import json
import math
import os
import random
import re

import pytest
from datasets import Dataset, disable_progress_bars

from tests.train.test_rows import png
from vift_train.data import load_rows
from vift_train.rows import CAPTION_QUERIES, COLUMNS, FACT, IMAGE_PART, text_part

ROUNDS = int(os.environ.get("VIFT_FUZZ_ROUNDS", 450))
QUERIES = {query for pool in CAPTION_QUERIES.values() for query in pool}
PNG = png()
SILENT = {*COLUMNS["id"], *COLUMNS["ignore"], *COLUMNS["image"]}  # what these hold is not trained as text
LABELS = {"role", "from", "type", "source"}


def words(rng) -> str:
    """Words that come nowhere else, sometimes strange ones."""
    unique = " ".join(f"w{rng.getrandbits(40):x}q" for _ in range(rng.randint(1, 5)))
    strange = ["", "", "", " ", "é漢🙂", "<|im_end|>", "{}", "\\n", "null", "a,b", '"', "\t", "\x00", "​"]
    return unique + rng.choice(strange) + rng.choice(["", "", "\n" + unique])


def picture(rng):
    data = base64.b64encode(PNG).decode()
    return rng.choice(["a.png"] * 6 + [data, f"data:image/png;base64,{data}", "no.png", "cut.png", "", None])


def junk(rng, depth=0):
    """A value of any type that JSON has."""
    plain = [None, True, 0, -3.5, 10**400, math.nan, math.inf, "", " ", "0", "<image>", "a <image> b", "\ud83d", "https://x.y/z",
             words(rng), json.dumps([{"role": "user", "content": words(rng)}]),
             base64.b64encode(rng.randbytes(99)).decode()]  # fmt: skip
    if depth < 2 and rng.random() < 0.3:
        some = [junk(rng, depth + 1) for _ in range(rng.randint(0, 3))]
        return some if rng.random() < 0.5 else dict(zip(("text", "type", "role"), some))
    return rng.choice(plain)


def turns(rng, image, role, content, speakers, parts=False):
    talk = []
    for number in range(rng.randint(1, 3)):
        asked = words(rng)
        if parts:
            asked = ([IMAGE_PART] if image and number == 0 else []) + [text_part(asked)]
        elif image and number == 0:
            asked = "<image>\n" + asked
        talk += [{role: speakers[0], content: asked}, {role: speakers[1], content: words(rng)}]
    return talk


def good_row(rng) -> dict:
    """A row of some kind."""
    image = rng.random() < 0.6
    pictured = {rng.choice(COLUMNS["image"]): "a.png"} if image else {}
    kind = rng.randrange(6)
    if kind == 0:
        return pictured | {"messages": turns(rng, image, "role", "content", ("user", "assistant"), rng.random() < 0.5)}
    if kind == 1:
        return pictured | {"conversations": turns(rng, image, "from", "value", ("human", "gpt"))}
    if kind == 2:
        return {"images": ["a.png"] * image, "texts": [{"user": words(rng), "assistant": words(rng), "source": "s"}]}
    if kind == 3:
        captions = [words(rng) for _ in range(rng.randint(1, 4))]
        return {"image": "a.png", rng.choice(COLUMNS["caption"]): captions if len(captions) > 1 else captions[0]}
    row = pictured | {rng.choice(COLUMNS["question"]): words(rng), rng.choice(COLUMNS["answer"]): words(rng)}
    more = {"input": words(rng), "system": words(rng), "url": "https://x.y/z", "width": 8, "bbox": [1, 2]}
    return row | {name: more[name] for name in rng.sample([*more], rng.randint(0, 2))}


def spoil(rng, row):
    """One fault somewhere in the row."""
    place = row
    while True:
        key = rng.choice([*place] if isinstance(place, dict) else range(len(place)))
        if isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.7:
            place = place[key]
            continue
        break
    fault = rng.randrange(4)
    if fault == 0 and place is row:
        row[rng.choice([*sum(map(list, COLUMNS.values()), []), "title", "Foo"])] = junk(rng)
    elif fault == 1 and isinstance(place, dict):
        del place[key]
    elif fault == 2 and place is row and key in COLUMNS["image"]:
        place[key] = picture(rng)
    else:
        place[key] = junk(rng)


def make(rng) -> dict:
    row = json.loads(json.dumps(good_row(rng)))
    for _ in range(rng.choice([0, 1, 1, 2])):
        if row:
            spoil(rng, row)
    return row


def leaves(value, kinds=(str, int, float)) -> list[str]:
    if isinstance(value, dict):
        return [leaf for key, one in value.items() if key not in LABELS for leaf in leaves(one, kinds)]
    if isinstance(value, list):
        return [leaf for one in value for leaf in leaves(one, kinds)]
    return [str(value)] if isinstance(value, kinds) and not isinstance(value, bool) else []


def spoken(talk) -> list[tuple]:
    return [(message["role"], " ".join(p["text"] for p in message["content"] if p["text"])) for message in talk]


def check(row: dict, out: list[dict]) -> None:
    """`out`, the rows that `row` became, is `row`."""
    given = {name: value for name, value in row.items() if name.lower() not in SILENT}
    texts = leaves(given)
    known = set(" ".join(texts).replace("<image>", " ").split())
    talks = [talk for one in out for talk in one["versions"] or [one["messages"]]]
    shown = set()
    for talk in talks:
        for role, text in spoken(talk):
            new = set(text.split()) - known
            assert not new or (role == "user" and text in QUERIES), f"{new} is trained and was not given"
            if role == "assistant":
                assert any(text.strip() == leaf.strip() for leaf in texts), "an answer is not the one given"
            shown |= set(text.split())
    said = [leaf.replace("<image>", " ") for leaf in leaves(given, str) if not FACT.fullmatch(leaf.strip())]
    lost = set(" ".join(said).split())
    assert not lost - shown, f"{lost - shown} was given and vanished"
    for one in out:
        images = next((row[name] for name in row if name.lower() in COLUMNS["image"] and row[name]), [])
        images = images if isinstance(images, list) else [images]
        assert (
            len(one["images"])
            == len(images)
            == sum(p["type"] == "image" for m in one["messages"] for p in m["content"])
        )
        for image, stored in zip(images, one["images"]):
            assert stored.convert("RGB").size == (8, 8) and stored.convert("RGB").getpixel((0, 0)) == (200, 30, 30), (
                image
            )


def write(rng, rows, folder) -> tuple[str, list[dict]]:
    """A file of some kind, and the rows as it holds them."""
    kind = rng.choice(["jsonl", "jsonl", "json", "csv", "parquet"])
    path = folder / f"{rng.getrandbits(64):x}.{kind}"
    if kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "csv":
        import csv

        names = [*dict.fromkeys(name for row in rows for name in row)]
        with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
            table = csv.DictWriter(file, names)
            table.writeheader()
            table.writerows(rows)
        with path.open(newline="", encoding="utf-8") as file:
            rows = [*csv.DictReader(file)]
    elif kind == "parquet":
        try:
            Dataset.from_list(rows).to_parquet(path)
            rows = Dataset.from_parquet(str(path), cache_dir=str(folder / "cache")).to_list()
        except (
            ValueError,
            TypeError,
            OverflowError,
            KeyError,
            NotImplementedError,
        ):  # columns of several types are no table
            return write(rng, rows, folder)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return str(path), rows


@pytest.mark.parametrize("part", range(3))
def test_every_row_is_recognisable_or_refused(part, tmp_path):
    disable_progress_bars()
    rng = random.Random(part)
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "cut.png").write_bytes(PNG[:40])
    taken = 0
    for _ in range(ROUNDS // 3):
        rows = [make(rng) for _ in range(rng.choice([1, 1, 4, 12]))]
        for number, row in enumerate(rows):
            row.pop("id", None), row.pop("__key__", None)
            rows[number] = {"id": f"n{number}", **row}
        source, rows = write(rng, rows, tmp_path)
        options = {"streaming": rng.random() < 0.7, "every_caption": rng.random() < 0.3}
        try:
            loaded = [*load_rows(source, **options)]
        except ValueError as error:
            assert re.search("source=.*: (row|.*column|no usable row)|row '", str(error)), error
            loaded = []
        by_id = {f"n{number}": [] for number in range(len(rows))}
        for row in loaded:
            by_id[row["id"].split("/")[0]].append(row)
        for number, row in enumerate(rows):
            if by_id[f"n{number}"]:
                check(row, by_id[f"n{number}"])
                taken += 1
    assert taken >= ROUNDS // 12
