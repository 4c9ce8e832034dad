"""A sweep's folder: it goes on only under what decided its answers, and a mistake claims nothing."""

import json
import shutil

import pytest

from tests.eval.benchmarks import write
from tests.eval.judge import judge
from tests.eval.test_scores import point_at
from tests.eval.test_sweep import MODEL, run

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = ("--limit", 2, "--beta", 0.3)


def refused(capsys, output, *arguments) -> str:
    capsys.readouterr()
    assert run(output, *arguments) == 2
    error = capsys.readouterr().err
    (line,) = (line for line in error.splitlines() if line.startswith("vift sweep: error: "))
    assert "Traceback" not in error
    return line


def changed(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_changed_model_is_another_sweep(tmp_path, capsys):
    model = shutil.copytree(MODEL, tmp_path / "model")
    again = ("--models", model, *SMALL)
    assert run(tmp_path / "sweep", *again) == 0
    for name in ("config.json", "generation_config.json", "chat_template.jinja", "modeling_vift.py", "tokenizer.json"):
        before = (model / name).read_text()
        (model / name).write_text(before + "\n")
        error = refused(capsys, tmp_path / "sweep", *again)
        assert f"its files.{model}.{name} is " in error and ", now " in error
        (model / name).write_text(before)
    assert run(tmp_path / "sweep", *again) == 0


def test_other_packages_questions_and_devices_are_another_sweep(tmp_path, capsys):
    assert run(tmp_path / "sweep", *SMALL) == 0
    saved = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    for name, value in (("device", "cuda"), ("requests", "0123"), ("packages", saved["packages"] | {"torch": "1.0"})):
        changed(tmp_path / "sweep" / "sweep.json", **saved | {name: value})
        error = refused(capsys, tmp_path / "sweep", *SMALL)
        assert f"its {name}{'.torch' if name == 'packages' else ''} is " in error


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (("--models", "micor"), "--model=micor"),
        (("--models", MODEL, "micor"), "--model=micor"),
        (("--beta", 99), "beta=99.0 must be"),
        (("--beta", "nan"), "beta=nan must be"),
        (("--alpha", "nan"), "alpha=nan must be"),
        (("--dose", "inf"), "dose=inf must be"),
        (("--layers", "0:99"), "0:99"),
        (("--layers", "half"), "--layers"),
        (("--span", "some"), "fusion_span='some' is unknown"),
        (("--device", "cuda"), "device=cuda is not here"),
        (("--batch_size", 0), "batch_size=0"),
    ],
)
def test_a_mistake_claims_no_folder(tmp_path, capsys, mistake, words):
    assert words in refused(capsys, tmp_path / "sweep", "--limit", 2, *mistake)
    assert not (tmp_path / "sweep").exists()


def test_a_garbled_line_is_named_and_a_file_is_no_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert "file is a file: name a folder" in refused(capsys, tmp_path / "file", *SMALL)
    assert (tmp_path / "file").read_text() == "mine"
    assert run(tmp_path / "sweep", *SMALL) == 0
    answers = tmp_path / "sweep" / "answers.jsonl"
    for garbled in ("garbled", "[]", '{"model": 0}'):
        answers.write_text(garbled + "\n" + answers.read_text().splitlines()[-1] + "\n")
        assert "answers.jsonl, line 1, is no answer of a sweep" in refused(capsys, tmp_path / "sweep", *SMALL)
    answers.write_text("")  # what is missing is asked again
    assert run(tmp_path / "sweep", *SMALL) == 0 and answers.read_text().count("\n") == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "answers.jsonl").write_text("mine")
    assert "answers.jsonl is of no sweep" in refused(capsys, tmp_path / "mine", *SMALL)
    assert (tmp_path / "mine" / "answers.jsonl").read_text() == "mine"
    (tmp_path / "sweep" / "sweep.json").write_text("{")
    assert "sweep.json can't be read" in refused(capsys, tmp_path / "sweep", *SMALL)


def test_a_judge_that_fails_gives_no_score_and_is_asked_again(tmp_path, capsys, monkeypatch, tiny_checkpoint):
    include = write(tmp_path / "benchmarks")
    judged = ("--models", tiny_checkpoint, "--tasks", "local_llava", "--include_path", include, "--beta", 0.1)
    with judge(None, 429) as (url, _):
        point_at(url, monkeypatch)
        error = refused(capsys, tmp_path / "sweep", *judged)
    assert "local_llava: the judge failed on 3 of 3 documents; the answers are kept" in error
    assert not (tmp_path / "sweep" / "results.json").exists()
    with judge() as (url, _):
        point_at(url, monkeypatch)
        assert run(tmp_path / "sweep", *judged) == 0
    rows = json.loads((tmp_path / "sweep" / "results.json").read_text())["rows"]
    assert {row["value"] for row in rows if row["metric"] == "gpt_eval_llava_all"} == {50.0}
