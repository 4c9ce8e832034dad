"""Pictures are whole, of any depth, and the ones that are in their files now; opened at load or by the collator."""

import io
import os

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image, ImageFile
from transformers.utils import logging

from tests.modeling.checkpoint import save_checkpoint
from tests.train.test_rows import png, source, texts  # noqa: F401
from tests.train.tiny_run import load, losses, trainer
from vift_eval.images import open_image
from vift_hub import pictures
from vift_train.collator import CheckedCollator
from vift_train.data import load_rows
from vift_train.lengths import undecoded

QA = {"question": "which ?", "answer": "red"}


def deep(kind):
    """A picture whose values are 1000, 1500, 2000, as few bits as its kind has."""
    values = np.array([[1000, 1500, 2000]])
    if kind in ("I;16", "I;16B", "I;16L"):
        order = ">u2" if kind == "I;16B" else "<u2"
        return Image.frombytes(kind, (3, 1), values.astype(order).tobytes())
    return Image.fromarray(values.astype({"I": np.int32, "F": np.float32}[kind]))


@pytest.mark.parametrize("kind", ["I;16", "I;16B", "I;16L", "I", "F"])
def test_deep_pictures_are_rescaled_by_their_own_range_in_training_and_evaluation(kind, source, tmp_path):  # noqa: F811
    deep(kind).save(tmp_path / "deep.tiff")
    expected = [0, 128, 255]
    assert [open_image(tmp_path / "deep.tiff")[0].getpixel((x, 0))[0] for x in range(3)] == expected
    assert [pictures.to_rgb(deep(kind))[0].getpixel((x, 0))[0] for x in range(3)] == expected
    rows = load_rows(source({"image": "deep.tiff", **QA}))
    eight = Image.fromarray(np.array([expected], dtype=np.uint8)).convert("RGB")
    save_checkpoint(tmp_path / "start")
    collator = CheckedCollator(load(tmp_path / "start")[1], assistant_only_loss=True)
    found = [collator([row | {"images": [image]}]) for row in rows for image in (*row["images"], eight, deep(kind))]
    assert all((batch["pixel_values"] == found[1]["pixel_values"]).all() for batch in found)


def test_that_a_deep_picture_was_rescaled_is_said_once(source, tmp_path, caplog):  # noqa: F811
    deep("I;16").save(tmp_path / "deep.png")
    logging.get_logger(pictures.__name__).warning_once.cache_clear()
    load_rows(source(*[{"image": "deep.png", **QA}] * 5))
    assert caplog.text.count("16-bit pixels; rescaled to 8 bits") == 1


@pytest.mark.parametrize("check", ["load", "training"])
def test_truncated_pictures_are_left_out_whatever_pillows_switch_says(check, source, tmp_path, monkeypatch):  # noqa: F811
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 4])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    rows = [{"id": f"r{i}", "image": "cut.png" if i == 2 else "a.png", **QA} for i in range(4)]
    data = load_rows(source(*rows), check_pictures=check)
    assert len(data) == (3 if check == "load" else 4)
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_train_epochs": 1}
    run = trainer(tmp_path / "start", tmp_path / "out", data, **options)
    (batch,) = run.get_train_dataloader()
    assert len(batch["input_ids"]) == 3 and ("left_out" in batch) == (check == "training")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize("workers, streaming", [(0, False), (2, False), (1, True)])
def test_a_picture_found_bad_while_training_leaves_its_row_out(workers, streaming, source, tmp_path):  # noqa: F811
    rows = [{"id": f"r{i}", "image": "bad.png" if i % 4 == 1 else "a.png", **QA} for i in range(12)]
    (tmp_path / "bad.png").write_bytes(png()[:40])
    data = load_rows(source(*rows), check_pictures="training", streaming=streaming)
    options = {"dataloader_num_workers": workers, "per_device_train_batch_size": 6, "gradient_accumulation_steps": 1}
    length = {"max_steps": 4} if streaming else {"num_train_epochs": 2}
    held_out = load_rows(source(*rows, name="held.jsonl"), check_pictures="training")
    run = trainer(tmp_path / "start", tmp_path / "out", data, eval_dataset=held_out, **options, **length)
    with pytest.warns(UserWarning) as said:
        run.train()
    lines = [str(one.message) for one in said if "left out" in str(one.message)]
    assert len(losses(run)) == 4 and all(map(np.isfinite, losses(run)))
    assert sorted(line.split(" is left out: image ")[0] for line in lines[:-1]) == ["row 'r1'", "row 'r5'", "row 'r9'"]
    assert lines[-1].startswith("3 rows were left out") and "bad.png can't be read" in lines[0]
    assert np.isfinite(run.evaluate()["eval_loss"])


def test_a_batch_without_any_good_picture_names_a_row(source, tmp_path):  # noqa: F811
    (tmp_path / "bad.png").write_bytes(b"")
    data = load_rows(source({"id": "x", "image": "bad.png", **QA}), check_pictures="training")
    with pytest.raises(ValueError, match="no row of the batch has pictures that can be opened; row 'x': .*bad.png"):
        trainer(tmp_path / "start", tmp_path / "out", data)


def test_a_mended_picture_comes_in_and_a_deleted_one_goes_out(source, tmp_path):  # noqa: F811
    (tmp_path / "b.png").write_bytes(png()[:40])
    path = source({"id": "a", "image": "a.png", **QA}, {"id": "b", "image": "b.png", **QA})
    assert load_rows(path)["id"] == ["a"]
    (tmp_path / "b.png").write_bytes(png())
    assert load_rows(path)["id"] == ["a", "b"]
    os.unlink(tmp_path / "a.png")
    assert load_rows(path)["id"] == ["b"]
    (tmp_path / "shards").mkdir()
    Dataset.from_list([{"image": "b.png", **QA}]).to_parquet(tmp_path / "shards" / "0.parquet")
    options = {"image_folder": tmp_path}
    assert len(load_rows(str(tmp_path / "shards"), **options)) == 1
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(ValueError, match="no usable row"):
        load_rows(str(tmp_path / "shards"), **options)


def test_pictures_are_opened_by_the_workers_and_the_rows_stay_as_they_are(source):  # noqa: F811
    rows = load_rows(source({"image": "a.png", **QA}))
    stored = undecoded(rows)[0]["images"][0]
    assert stored["path"].endswith("a.png") and isinstance(rows[0]["images"][0], Image.Image)
    assert undecoded({"image": rows})["image"][0]["images"][0] == stored and undecoded(None) is None


def test_turned_and_transparent_pictures_are_trained_as_they_are_asked_about(source, tmp_path):  # noqa: F811
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 2), "red").save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    rows = undecoded(load_rows(source({"image": "turned.jpg", **QA}, {"image": "clear.png", **QA})))
    turned, clear = (pictures.open_stored(row["images"][0]) for row in rows)
    assert turned.size == (2, 8) and clear.getpixel((0, 0)) == (255, 255, 255)
    assert turned.tobytes() == open_image(tmp_path / "turned.jpg")[0].tobytes()


def test_a_picture_without_a_finite_pixel_is_a_bad_row(source, tmp_path, caplog):  # noqa: F811
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(buffer, "TIFF")
    (tmp_path / "nan.tiff").write_bytes(buffer.getvalue())
    assert len(load_rows(source({"image": "nan.tiff", **QA}, {"image": "a.png", **QA}))) == 1
    assert "no pixel is a finite number" in caplog.text
