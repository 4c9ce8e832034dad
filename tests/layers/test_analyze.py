"""`vift analyze` on the command line: page, figures, numbers; it goes on where it was; a mistake is one line."""

import json

import pytest
from PIL import Image

from tests.status import status_of
from vift_eval.files import made_line
from vift_eval.layers import command as analyze
from vift_eval.layers import page as layer_page
from vift_eval.layers.pairs import load_pairs, micro_pairs
from vift_eval.layers.plots import METRICS

FIGURES = [*METRICS, "probes", "interventions"]


@pytest.fixture(scope="module")
def done(tiny_checkpoint, tmp_path_factory):
    """One run with everything, on a model and itself as its donor."""
    folder = tmp_path_factory.mktemp("analysis")
    options = ["--n", "60", "--interventions", "--questions", "10", "--donor", str(tiny_checkpoint)]
    assert analyze.main([str(tiny_checkpoint), "--output", str(folder), *options]) == 0
    return folder, json.loads((folder / "analysis.json").read_text()), options


def test_the_page_has_a_figure_and_numbers_for_every_metric(done):
    folder, results, _ = done
    text = (folder / "README.md").read_text()
    for name in FIGURES:
        assert f"]({name}.png)" in text and Image.open(folder / f"{name}.png").width > 800
    assert len(results["layers"]) == 5 and results["layers"][0]["last"] is None
    for layer in results["layers"][1:]:
        for measures in layer.values():
            for key in ("overlap", "cka", "imbalance_image_to_text", "cosine"):
                low, high = measures[key]["ci95"]
                assert low <= measures[key]["value"] <= high
            assert set(measures["probes"]) == {"largest digit", "middle cell", "number of digits"}
    assert f"layers {results['band']['band']}" in text
    assert not list(folder.glob("*.part")) and str(folder) not in text
    line = made_line(results["made"])
    assert line in text and line.startswith("vift analyze tiny --output ") and "weights tiny " in line
    assert {Image.open(folder / f"{name}.png").text["Source"] for name in FIGURES} == {line}


def test_interventions_name_every_window_and_a_model_is_no_foreign_donor(done):
    _, results, _ = done
    measured = results["interventions"]
    groups = {one["group"]: [] for one in measured["conditions"]}
    for one in measured["conditions"]:
        groups[one["group"]].append(one["layers"])
    assert groups["knock-out, window"] == groups["skip, all tokens"] == ["0:1", "1:2", "2:3", "3:4"]
    assert groups["transplant, cumulative"][-1] == "0:4" and groups["transplant, complement"][0] == "~0:1"
    for one in measured["conditions"]:
        if "transplant" in one["group"]:
            assert one["minus_intact"]["difference"] == 0 == one["minus_intact"]["ci95"][1]


def test_a_second_run_measures_nothing_again(done, tiny_checkpoint, monkeypatch):
    folder, results, options = done
    from vift_eval.layers import measure as layer_measure
    from vift_layers import capture

    def never(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr(layer_measure, "measure", never)
    monkeypatch.setattr(capture, "pooled", never)
    monkeypatch.setattr(layer_page.plots, "draw", lambda *args: [])
    with (folder / "layers.jsonl").open("a") as file:
        file.write('{"layer": 3, "mea')  # stopped in the middle of a line
    assert analyze.main([str(tiny_checkpoint), "--output", str(folder), *options[:2]]) == 0
    again = json.loads((folder / "analysis.json").read_text())
    assert again["layers"] == results["layers"]


def test_pairs_of_ones_own(tmp_path, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(layer_page.plots, "draw", lambda *args: [])
    (tmp_path / "pictures").mkdir()
    lines = []
    for number, pair in enumerate(micro_pairs(44)):
        pair["image"].save(tmp_path / "pictures" / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": pair["caption"]}))
    (tmp_path / "pictures" / "metadata.jsonl").write_text("\n".join(lines))
    measured = load_pairs(str(tmp_path / "pictures"), 44)
    assert len(measured) == 44 and len({pair["query"] for pair in measured}) == 1 and measured[0]["labels"] == {}
    arguments = [str(tiny_checkpoint), "--data", str(tmp_path / "pictures"), "--output", str(tmp_path / "out")]
    assert analyze.main(arguments) == 0
    results = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert results["layers"][1]["last"]["overlap_chance"] == {"value": round(4 / 43, 4), "ci95": None}
    assert results["layers"][1]["last"]["probes"] == {}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--n", "5"], "--n=5 must be at least 40"),
        (["--data", "nowhere.jsonl"], "--data=nowhere.jsonl can't be read"),
        (["--n", "50", "--k", "60"], "--k=60 must be in 1 ... 46"),
        (["--donor", "x"], "--donor needs --interventions"),
        (["--dtype", "float3"], "dtype='float3' must be one of auto, float32"),
    ],
)
def test_a_users_mistake_is_one_line(arguments, message, tiny_checkpoint, tmp_path, capsys):
    assert status_of(analyze.main, [tiny_checkpoint, "--output", tmp_path / "out", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("vift analyze: error: ") and message in error and "\n" not in error


def test_bad_rows_and_models_are_one_line(tmp_path, tiny_checkpoint, capsys):
    file = tmp_path / "pairs.jsonl"
    Image.new("RGB", (48, 48)).save(tmp_path / "a.png")
    file.write_text('{"image": "a.png", "caption": "x"}\n{"image": "a.png"}\n')
    assert status_of(analyze.main, [tiny_checkpoint, "--data", file, "--output", tmp_path / "out"]) == 2
    assert 'line 2: not {"image": path, "caption": words}' in capsys.readouterr().err
    assert status_of(analyze.main, [tmp_path / "none", "--output", tmp_path / "out"]) == 2
    assert "there is no such file or folder" in capsys.readouterr().err
