"""Rows come in as they are found, and go out as the trainer takes them; bad ones are named, never changed."""

import io
import json
import tarfile

import pytest
from PIL import Image

from vift_train.data import CAPTION_QUERIES, load_rows, typed_parts


def picture(path, color=(200, 30, 30)):
    Image.new("RGB", (16, 16), color).save(path)
    return path


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(row):
    return [part["text"] for message in row["messages"] for part in message["content"] if part["type"] == "text"]


def test_llava_rows(tmp_path):
    picture(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A red square."}]
    source = write_jsonl(tmp_path / "rows.jsonl", [{"id": "x1", "image": "a.png", "conversations": turns}])
    row = load_rows(source)[0]
    assert row["id"] == "x1" and row["modality"] == "image" and row["images"][0].size == (16, 16)
    assert [part["type"] for part in row["messages"][0]["content"]] == ["image", "text"]
    assert texts(row) == ["What is it?", "A red square."]


def test_messages_and_instructions(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]},
        {"messages": [{"role": "user", "content": "1 + 2?"}, {"role": "assistant", "content": "3"}]},
    ]
    loaded = load_rows(write_jsonl(tmp_path / "messages.jsonl", rows))
    assert [texts(row) for row in loaded] == [["2 + 2?", "4"], ["1 + 2?", "3"]]
    assert loaded["images"] == [[], []] and loaded["modality"] == ["text", "text"]
    rows = [{"instruction": "Add 2 and 2.", "output": "4"}]
    (tmp_path / "all.json").write_text(json.dumps(rows))
    assert texts(load_rows(str(tmp_path / "all.json"))[0]) == ["Add 2 and 2.", "4"]


def captions(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    long = "a " * 40 + "square"
    rows = [("a.png", "a red square"), ("b.png", long), ("c.png", "a third one")]
    for name, _ in rows:
        picture(folder / name)
    write_jsonl(folder / "metadata.jsonl", [{"file_name": name, "text": text} for name, text in rows])
    return folder, rows


def test_an_image_folder_of_captions(tmp_path):
    folder, rows = captions(tmp_path)
    loaded = load_rows(str(folder), seed=3)
    assert [texts(row)[1] for row in loaded] == [text for _, text in rows]
    kinds = ["brief" if texts(row)[0] in CAPTION_QUERIES["brief"] else "detailed" for row in loaded]
    assert kinds == ["brief", "detailed", "brief"]
    assert [texts(row) for row in load_rows(str(folder), seed=3)] == [texts(row) for row in loaded]
    own = load_rows(str(folder), queries=["say it ."])
    assert [texts(row) for row in own] == [["say it .", text] for _, text in rows]
    assert [texts(row) for row in load_rows(str(folder), plain=True)] == [[text] for _, text in rows]


def test_parquet_and_streaming_agree(tmp_path):
    folder, _ = captions(tmp_path)
    loaded = load_rows(str(folder))
    file = tmp_path / "rows.parquet"
    loaded.to_parquet(file)
    for again in (load_rows(str(file)), list(load_rows(str(file), streaming=True))):
        assert [texts(row) for row in again] == [texts(row) for row in loaded]
        assert [row["images"][0].tobytes() for row in again] == [row["images"][0].tobytes() for row in loaded]


def test_webdataset_shards(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard:03d}.tar", "w") as tar:
            for number in range(2):
                png = io.BytesIO()
                Image.new("RGB", (8, 8), (number * 90, shard * 90, 0)).save(png, "PNG")
                for name, data in ((f"{shard}{number}.png", png.getvalue()), (f"{shard}{number}.txt", b"a caption")):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    loaded = load_rows(str(tmp_path))
    assert len(loaded) == 4 and {row["id"] for row in loaded} == {"00", "01", "10", "11"}
    assert all(texts(row)[1] == "a caption" for row in loaded)


def bad_rows(tmp_path):
    picture(tmp_path / "good.png")
    (tmp_path / "corrupt.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    (tmp_path / "empty.png").write_bytes(b"")
    caption = {"caption": "words", "conversations": None}
    two = [{"from": "human", "value": "<image><image> Compare."}, {"from": "gpt", "value": "Same."}]
    return [
        {"id": "ok", "image": "good.png", **caption},
        {"id": "corrupt", "image": "corrupt.png", **caption},
        {"id": "zero", "image": "empty.png", **caption},
        {"id": "missing", "image": "nowhere.png", **caption},
        {"id": "silent", "image": "good.png", "caption": "  ", "conversations": None},
        {"id": "count", "image": "good.png", "caption": None, "conversations": two},
    ]


def test_bad_rows_are_left_out_counted_and_named(tmp_path, caplog):
    source = write_jsonl(tmp_path / "rows.jsonl", bad_rows(tmp_path))
    loaded = load_rows(source)
    assert loaded["id"] == ["ok"] and loaded.info.description == "1 rows, 5 left out"
    for row_id in ("corrupt", "zero", "missing", "silent", "count"):
        assert f"row '{row_id}' is left out" in caplog.text
    assert "2 image placeholders but 1 images" in caplog.text and "5 of 6 rows" in caplog.text
    assert [row["id"] for row in load_rows(source, streaming=True)] == ["ok"]


def test_bad_rows_are_fatal_on_request(tmp_path):
    source = write_jsonl(tmp_path / "rows.jsonl", bad_rows(tmp_path))
    with pytest.raises(Exception, match="row 'corrupt': image .*corrupt.png can't be read"):
        load_rows(source, on_bad_row="raise")


def test_nothing_usable_and_nothing_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no usable row"):
        load_rows(write_jsonl(tmp_path / "rows.jsonl", bad_rows(tmp_path)[1:3]))
    with pytest.raises(ValueError, match="there is no such file"):
        load_rows(str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(ValueError, match="on_bad_row='ignore'"):
        load_rows("x", on_bad_row="ignore")


def test_placeholders_in_mid_text_keep_their_place():
    parts = typed_parts("First <image> then <image>\nWhich is red?")
    assert [part["type"] for part in parts] == ["text", "image", "text", "image", "text"]
    assert [part["text"] for part in parts if part["text"]] == ["First ", " then ", "Which is red?"]
