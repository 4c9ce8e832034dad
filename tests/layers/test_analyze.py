"""`vift-analyze` on the command line: page, figures, numbers; it goes on where it was; a mistake is one line."""

import json

import pytest
from PIL import Image

from vift_eval.layers import command as analyze
from vift_eval.layers import page as layer_page
from vift_eval.layers.pairs import load_pairs, micro_pairs
from vift_eval.layers.plots import METRICS
from vift_studies.bands import bridge as fusion_bridge
from vift_studies.bands import study as band_study
from vift_studies.bands.page import PAIRS, hits, verdicts

FIGURES = [*METRICS, "probes", "interventions"]


@pytest.fixture(scope="module")
def done(tiny_checkpoint, tmp_path_factory):
    """One run with everything, on a model and itself as its donor."""
    folder = tmp_path_factory.mktemp("analysis")
    from vift_eval.layers import measure as layer_measure

    layer_measure.RESAMPLES = 20  # of intervals that no test looks at closely
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
                # a bootstrap of CKA draws points twice, which lifts it a little
                assert low - 0.05 <= measures[key]["value"] <= high + 0.05
            assert set(measures["probes"]) == {"largest digit", "middle cell", "number of digits"}
    assert f"layers {results['band']['band']}" in text
    assert not list(folder.glob("*.part")) and str(folder) not in text


def test_interventions_name_every_window_and_a_model_is_no_foreign_donor(done):
    _, results, _ = done
    found = results["interventions"]
    groups = {one["group"]: [] for one in found["conditions"]}
    for one in found["conditions"]:
        groups[one["group"]].append(one["layers"])
    assert groups["knock-out, window"] == groups["skip, all tokens"] == ["0:1", "1:2", "2:3", "3:4"]
    assert groups["transplant, cumulative"][-1] == "0:4" and groups["transplant, complement"][0] == "~0:1"
    for one in found["conditions"]:
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
    found = load_pairs(str(tmp_path / "pictures"), 44)
    assert len(found) == 44 and len({pair["query"] for pair in found}) == 1 and found[0]["labels"] == {}
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
        (["--n", "50", "--k", "60"], "--k=60 must be in 1 ... 49"),
        (["--donor", "x"], "--donor needs --interventions"),
        (["--dtype", "float3"], "--dtype=float3 is unknown"),
    ],
)
def test_a_users_mistake_is_one_line(arguments, message, tiny_checkpoint, tmp_path, capsys):
    assert analyze.main([str(tiny_checkpoint), "--output", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("vift-analyze: error: ") and message in error and "\n" not in error


def test_bad_rows_and_models_are_one_line(tmp_path, tiny_checkpoint, capsys):
    file = tmp_path / "pairs.jsonl"
    Image.new("RGB", (48, 48)).save(tmp_path / "a.png")
    file.write_text('{"image": "a.png", "caption": "x"}\n{"image": "a.png"}\n')
    assert analyze.main([str(tiny_checkpoint), "--data", str(file), "--output", str(tmp_path / "out")]) == 2
    assert 'line 2: not {"image": path, "caption": words}' in capsys.readouterr().err
    assert analyze.main([str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 2
    assert "does not load as a vision-language model" in capsys.readouterr().err


def test_the_steps_of_the_band_study_have_names_of_their_own():
    steps = band_study.plan((0, 1))
    assert len({step.name for step in steps}) == len(steps) and len({step.output for step in steps}) == len(steps)
    known = {step.name for step in steps}
    assert all(need in known for step in steps for need in step.needs)
    arms = band_study.arms(range(3, 6), 8, seed=0)
    assert list(arms) == list(band_study.ARMS)
    assert arms["rule"] == [3, 4, 5] and arms["complement"] == [0, 1, 2, 6, 7] and len(arms["random"]) == 3
    assert arms["spaced"] == [0, 4, 7] and arms["late"] == [4, 5, 6, 7] and arms["full"] is None


def test_verdicts_of_the_band_study_follow_from_the_figures():
    def entry(value, low, high):
        return {"difference": value, "ci95": [low, high], "seeds": [value]}

    scores = ("seen", "held_out", "gold")
    differences = {f"{a} - {b}": {s: entry(0.1, 0.05, 0.15) for s in scores} for a, b in PAIRS}
    differences["rule - full"]["seen"] = entry(-0.01, -0.03, 0.01)
    arms = {arm: {"seen": {"mean": 0.5}} for arm in ("rule", "full")}
    found = verdicts({"differences": differences, "arms": arms})
    assert [row["verdict"] for row in found][:3] == ["level", "better / better", "better"]
    answers = {
        "held_out": ["sum"], "families": ["sum", "count", "sum", "count"],
        "arms": {"full": {"unfused": "rwwr", "gold": "rrrw"}},
    }  # fmt: skip
    assert [hits(answers, "full", score).tolist() for score in scores] == [[0, 1], [1, 0], [1, 1, 1, 0]]


def test_the_bridge_calls_a_prediction_what_is_one():
    sweeps = {
        "replace": {f"{i}:{i + 1}": {"seeds": [i / 10, i / 10]} for i in range(1, 5)},
        "bands": {f"{i}:{i + 1} 1.0": {"seeds": [1 - i / 10, 1 - i / 10]} for i in range(1, 5)},
    }
    profile = [None, 0.1, 0.2, 0.3, 0.4, 0.5]
    found = fusion_bridge.relate({"last": [profile, profile], "mean": [profile, profile]}, sweeps)
    assert found["verdict"] == {"single": "predicts it", "bands": "predicts the reverse"}
