"""What is in a row is what is trained: nothing of it vanishes, nothing becomes something else."""

import base64
import gzip
import io
import json

import pytest
from datasets import Dataset, Features, Value
from PIL import Image

from vift_train.data import load_rows
from vift_train.rows import CAPTION_QUERIES, column_names

QA = {"question": "which ?", "answer": "red"}


def png(color=(200, 30, 30), size=(8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def source(tmp_path):
    (tmp_path / "a.png").write_bytes(png())

    def write(*rows, name="rows.jsonl"):
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (tmp_path / name).write_bytes(b"\n".join(lines) + b"\n")
        return str(tmp_path / name)

    return write


def texts(row):
    return [part["text"] for message in row["messages"] for part in message["content"] if part["type"] == "text"]


def test_alpacas_input_joins_the_prompt(source):
    row = {"instruction": "Translate to French.", "input": "the house", "output": "la maison"}
    (loaded,) = load_rows(source(row))
    assert texts(loaded) == ["Translate to French.\nthe house", "la maison"]
    (loaded,) = load_rows(source(row | {"system": "Be brief.", "input": ""}))
    assert texts(loaded) == ["Be brief.", "Translate to French.", "la maison"]


def test_one_of_several_captions_an_epoch_or_all_by_option(source):
    captions = ["a red one", "one that is red", "a square"]
    path = source({"id": "x", "image": "a.png", "captions": captions}, {"id": "y", "image": "a.png", "caption": "one"})
    row, other = load_rows(path, plain=True)
    assert [texts({"messages": talk})[-1] for talk in row["versions"]] == captions and other["versions"] == []
    every = load_rows(path, plain=True, every_caption=True)
    assert [texts(row)[-1] for row in every] == [*captions, "one"] and every["id"] == ["x/0", "x/1", "x/2", "y"]
    (streamed, _) = load_rows(path, plain=True, streaming=True)
    assert streamed["versions"] == row["versions"]


def drawn(folder, output, data, **options):
    from tests.train.tiny_run import trainer

    run = trainer(folder, output, data, per_device_train_batch_size=1, gradient_accumulation_steps=1, **options)
    loader, found = run.get_train_dataloader(), []
    for epoch in range(5):
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(epoch)
        batches = iter(loader)
        found += [[run.processing_class.decode(next(batches)["input_ids"][0]) for _ in range(2)]]
    return found


@pytest.mark.parametrize("workers", [0, 1])
def test_the_caption_of_an_epoch_is_drawn_by_seed_epoch_and_row(workers, source, tmp_path):
    rows = [{"id": str(i), "image": "a.png", "caption": ["red", "green", "blue"]} for i in range(2)]
    options = {
        "dataloader_num_workers": workers,
        "dataloader_persistent_workers": workers > 0,
        "group_by_length": False,
    }
    data = load_rows(source(*rows))
    found = drawn(tmp_path / "start", tmp_path / "out", data, **options)
    assert len({tuple(sorted(epoch)) for epoch in found}) > 1
    assert drawn(tmp_path / "start", tmp_path / "out", data, **options) == found


def test_lists_and_objects_where_text_is_due_are_left_out(source, caplog):
    bad = [["red", "blue"], {"text": "red"}, True, [None]]
    rows = [{"id": f"bad{i}", "instruction": "which ?", "output": value} for i, value in enumerate(bad)]
    loaded = load_rows(source(*rows, {"instruction": "how many ?", "output": 0}))
    assert [texts(row) for row in loaded] == [["how many ?", "0"]]
    assert all(f"row 'bad{i}' is left out: answer holds" in caplog.text for i in range(len(bad)))


@pytest.mark.parametrize("extra", [{"text": "a red square"}, {"title": "words"}, {"response": "blue"}])
def test_unknown_and_ambiguous_columns_are_refused_until_mapped(extra, source):
    path = source({"image": "a.png", **QA, **extra})
    with pytest.raises(ValueError, match=f"Columns: 'image', 'question', 'answer', '{[*extra][0]}'.*columns="):
        load_rows(path)
    (row,) = load_rows(path, columns='{"question": "question", "answer": "answer"}')
    assert texts(row) == ["which ?", "red"]
    (row,) = load_rows(path, columns={"ignore": [*extra]})
    assert texts(row) == ["which ?", "red"]
    (row,) = load_rows(path, columns={"caption": [*extra][0]})
    assert texts(row)[-1] == [*extra.values()][0] and texts(row)[0] in CAPTION_QUERIES["brief"]


def test_a_mapping_leaves_sources_of_other_columns_alone(source):
    """One mapping is for all sources of a run."""
    columns = {"caption": "alt", "image": "photo"}
    (row,) = load_rows(source({"photo": "a.png", "alt": "a red square", "title": "words"}), columns=columns)
    assert texts(row)[1] == "a red square" and row["modality"] == "image"
    (row,) = load_rows(source({"instruction": "which ?", "input": "x", "output": "red"}), columns=columns)
    assert texts(row) == ["which ?\nx", "red"]
    with pytest.raises(ValueError, match="column 'title' is not known"):
        load_rows(source({**QA, "title": "words"}), columns=columns)


def test_facts_about_a_row_need_no_mapping(source):
    facts = {"width": 8, "score": 0.5, "url": "https://x.y/a.png", "license": "CC", "bbox": [1, 2], "page_id": "q7"}
    facts |= {"filename": "a.png", "sentids": ["1", "2"], "split": "train"}
    assert texts(load_rows(source({**QA, **facts}))[0]) == ["which ?", "red"]


@pytest.mark.parametrize("columns", ["{", "[1]", {"capshun": "x"}, {"caption": 3}, {"caption": [3]}, 7])
def test_a_mapping_that_is_none_is_refused(columns):
    with pytest.raises(ValueError, match="columns=.* must be a mapping"):
        column_names(columns)


BAD = {
    "null": {"instruction": "which ?", "output": None},
    "keys": {"instruction": "which ?"},
    "number": b'{"id": "number", "instruction": "which ?", "output": 1e999}',
    "string": {"messages": json.dumps([{"role": "user", "content": "x"}])},
    "turn": {"messages": ["x"]},
    "nulls": {"messages": [None]},
    "role": {"messages": [{"role": None, "content": "x"}, {"role": "assistant", "content": "y"}]},
    "content": {"messages": [{"role": "user"}, {"role": "assistant", "content": "y"}]},
    "part": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    "lost": {"messages": [{"role": "user", "content": "x", "name": "y"}, {"role": "assistant", "content": "y"}]},
    "speaker": {"conversations": [{"from": ["gpt"], "value": "x"}]},
    "surrogate": {"instruction": "which \ud83d ?", "output": "y"},
    "placeholder": {"instruction": "what is <image> ?", "output": "y"},
    "answer": {"image": "a.png", "question": "which ?", "answer": "an <image>"},
    "mark": {"messages": [{"role": "user", "content": "<image> ?"}, {"role": "assistant", "content": "y"}]},
    "picture": {"image": 7, **QA},
    "pictures": {"images": [None], **QA},
    "address": {"image": "https://x.y/a.png", **QA},
    "empty": {"image": "a.png", "question": " ", "answer": "y"},
    "mute": {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "y"}]},
    "text": {"caption": "words"},
    "twice": b'{"id": "twice", "instruction": "x", "instruction": "y", "output": "z"}',
}
LINES = [b"[1, 2]", b"null", b"{broken", b"\xff\xfe", b"3", b"[" * 100_000]


def test_bad_rows_of_any_form_are_left_out_and_counted_in_files_and_streams(source, caplog):
    rows = [row if isinstance(row, bytes) else {"id": name, **row} for name, row in BAD.items()]
    good = {"id": "good", **QA}
    path = source(good, *rows, *LINES, good | {"id": "last"})
    loaded = load_rows(path)
    bad = len(BAD) + len(LINES)
    assert loaded["id"] == ["good", "last"] and loaded.info.description == f"2 rows, {bad} left out"
    assert "row 'null' is left out: answer holds null" in caplog.text or "an answer or caption is empty" in caplog.text
    caplog.clear()
    assert [row["id"] for row in load_rows(path, streaming=True)] == ["good", "last"]
    assert f"({20} of " in caplog.text
    for name, row in BAD.items():
        with pytest.raises(ValueError, match=f"row '{name}': "):
            load_rows(source(row if isinstance(row, bytes) else {"id": name, **row}), on_bad_row="raise")


def test_bytes_in_a_table_are_left_out(tmp_path):
    table = Dataset.from_dict(
        {"instruction": ["x"] * 2, "output": [b"\xff", b"y"]},
        features=Features(instruction=Value("string"), output=Value("binary")),
    )
    table.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match="answer holds a bytes, no text"):
        load_rows(str(tmp_path / "rows.parquet"))


@pytest.mark.parametrize("streaming", [False, True])
def test_files_that_people_have_are_read(streaming, source, tmp_path):
    rows = [{"id": f"r{i}", "image": "a.png" if i else "", "question": f"q {i} ?", "answer": i} for i in range(3)]
    text = "id,image,question,answer\n" + "".join(",".join(map(str, row.values())) + "\n" for row in rows)
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8-sig")
    (tmp_path / "rows.TSV").write_text(text.replace(",", "\t"))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=1))
    table = Dataset.from_list(rows)
    (tmp_path / "shards").mkdir()
    for number in range(3):
        table.select([number]).to_parquet(tmp_path / "shards" / f"{number}.parquet")
    table.save_to_disk(tmp_path / "saved")
    for name in ("shards", "saved"):
        (tmp_path / name / "a.png").write_bytes(png())
    files = [
        "rows.csv",
        "rows.TSV",
        "rows.jsonl.gz",
        "rows.json",
        "shards",
        "saved",
        source(*rows, name="rows.ndjson"),
    ]
    for file in files:
        loaded = list(load_rows(str(tmp_path / file), streaming=streaming))
        assert [row["modality"] for row in loaded] == ["text", "image", "image"], file
        assert [texts(row) for row in loaded] == [[f"q {i} ?", str(i)] for i in range(3)], file
        assert [row["id"] for row in loaded] == ["r0", "r1", "r2"], file


def test_the_cauldrons_layout_is_read(source):
    turns = [{"user": f"q {i} ?", "assistant": f"{i}", "source": "x"} for i in range(2)]
    (row,) = load_rows(source({"images": ["a.png", "a.png"], "texts": turns}))
    assert texts(row) == ["q 0 ?", "0", "q 1 ?", "1"] and len(row["images"]) == 2
    assert [part["type"] for part in row["messages"][0]["content"]] == ["image", "image", "text"]


def test_files_that_cannot_be_read_say_why(tmp_path):
    (tmp_path / "a.json").write_text('[{"question": "x", "answer": "y"},')
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"{}" * 1000)[:20])
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "none").mkdir()
    for name in ("a.json", "a.jsonl.gz", "a.txt", "none"):
        with pytest.raises(ValueError, match=f"source=.*{name}") as refused:
            load_rows(str(tmp_path / name))
        assert "\n" not in str(refused.value), name


def test_a_table_with_too_many_values_in_a_line_loses_that_row_only(tmp_path, caplog):
    (tmp_path / "rows.csv").write_text("question,answer\nq,a\nq,a,b\n")
    assert len(load_rows(str(tmp_path / "rows.csv"))) == 1 and "more values than the file has columns" in caplog.text


def test_base64_pictures_are_read_and_never_shown(source, caplog):
    data = base64.b64encode(png(size=(30, 30))).decode()
    pictures = [data, f"data:image/png;base64,{data}"]
    bad = [data[:-9], f"data:image/png;base64,{data[:50]}!", data * 9, {"path": data}, {"bytes": data}, [[data]]]
    loaded = load_rows(source(*({"image": one, **QA} for one in (*pictures, *bad))))
    assert {row["images"][0].size for row in loaded} == {(30, 30)} and 2 <= len(loaded) <= 4
    shown = caplog.text
    for row in ({"image": data, "caption": [{"x": data}]}, {"image": "a.png", "caption": "x", "picture": data},
                {"messages": data}, {"question": f"see data:image/png;base64,{data}", "answer": "x"}):  # fmt: skip
        with pytest.raises(ValueError) as refused:
            load_rows(source(row))
        shown += str(refused.value)
    assert data[:24] not in shown and data[-24:] not in shown
