"""`vift sweep`: the answers of separate runs, at less cost; resumes; reports. And the failure signs."""

import json

import pytest
from PIL import Image

from tests.eval.benchmarks import OURS, ROOT
from tests.status import status_of

pytestmark = pytest.mark.filterwarnings("ignore")
MODEL = ROOT / "checkpoints" / "vift-micro"


@pytest.fixture(scope="module")
def bundled():
    from vift_eval.engine import Engine
    from vift_eval.models import load_model

    return Engine(*load_model(str(MODEL)))


def test_shared_features_change_no_answer(bundled):
    """Prompts with one, two and no pictures, under settings one after another."""
    from vift_eval.engine import Request
    from vift_microworld import visual_questions

    chats = []
    for row in visual_questions(6, split="validation"):
        content = [{"type": "image", "image": row["images"][0]}, {"type": "text", "text": row["question"]}]
        chats.append([{"role": "user", "content": content}])
    chats[1][0]["content"].pop(0)  # one without its picture
    chats[2][0]["content"].insert(0, dict(chats[0][0]["content"][0]))  # and one with two
    batch = [bundled.render(chat) for chat in chats]
    shared = bundled.with_features(bundled.inputs(batch))
    assert "pixel_values" not in shared
    for fusion in ({"fusion": False}, {"beta": 0.3, "fusion_layers": "2:6"},
                   {"beta": 0.5, "fusion_layers": "0:4", "fusion_span": "after_image", "fusion_answer": False},
                   {"beta": 0.2, "alpha": 0.9, "fusion_layers": "4:8", "fusion_rule": "additive",
                    "fusion_answer": False}):  # fmt: skip
        request = Request(8, {"do_sample": False}, fusion)
        assert bundled.generate(shared, request) == bundled.generate(bundled.inputs(batch), request)
    assert bundled.with_features(text := bundled.inputs(batch[1:2])) == dict(text)


def run(output, *more):
    from vift_eval.sweep.command import main

    arguments = ["--models", MODEL, "--tasks", "vift_micro_validation", "--include_path", OURS, "--output", output,
                 "--batch_size", 8, *more]  # fmt: skip
    return status_of(main, arguments)


GRID = ("--limit", 16, "--beta", 0, 0.3, 0.6, "--layers", "0:2", "4:8")


def test_a_sweep_is_the_separate_runs_and_resumes_after_a_kill(tmp_path, capsys, monkeypatch):
    import pandas as pd

    from vift_eval.answers.conditions import evaluate
    from vift_eval.answers.outcomes import correct
    from vift_eval.engine import Engine
    from vift_eval.files import made_line
    from vift_eval.models import load_model
    from vift_microworld import visual_questions

    assert run(tmp_path / "whole", *GRID) == 0, capsys.readouterr().err
    table = pd.read_parquet(tmp_path / "whole" / "results.parquet")
    assert len(table) == 2 * 6 and set(table["metric"]) == {"exact_match", "caption_rate"}
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert results["asked"] == 5  # beta 0 is one setting, whatever the band
    model, processor = load_model(str(MODEL))
    questions = visual_questions(16, split="validation")
    for row in table[table["metric"] == "exact_match"].to_dict("records"):
        setting = {"alpha": 1.0, "beta": row["beta"], "fusion_layers": row["layers"]}
        alone = evaluate(model, processor, questions, "fused", **setting)
        assert row["value"] == pytest.approx(correct(alone, questions).mean()), row
    report = tmp_path / "whole" / "report.md"
    for words in ("| 4:8 |", "vift sweep --models", "all with alpha 1.0, rule cascade, span all, the answer's own"):
        assert words in report.read_text()
    for name in ("curve-1.png", "heat-1.png"):
        assert (tmp_path / "whole" / name).stat().st_size > 5000
        assert Image.open(tmp_path / "whole" / name).text["Source"] == made_line(results["made"]) in report.read_text()

    # killed in the middle of writing a line, then run again: the rest is asked, and nothing twice
    lines = (tmp_path / "whole" / "answers.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "sweep.json").write_text((tmp_path / "whole" / "sweep.json").read_text())
    (tmp_path / "killed" / "answers.jsonl").write_text("".join(lines[:7]) + lines[7][:40])
    asked, plain = [], Engine.generate
    monkeypatch.setattr(Engine, "generate", lambda *arguments: asked.append(1) or plain(*arguments))
    assert run(tmp_path / "killed", *GRID) == 0
    assert len(asked) == len(lines) - 7
    again = (tmp_path / "killed" / "answers.jsonl").read_text().splitlines(keepends=True)
    assert sorted(again) == sorted(lines)
    assert pd.read_parquet(tmp_path / "killed" / "results.parquet").equals(table)
    # another grid in the same folder is refused
    assert run(tmp_path / "killed", "--limit", 16, "--beta", 0.1) == 2
    assert "another sweep: its settings is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--beta", 0.1, "--dose", 1), ("--beta", "--dose")),
        (("--beta", 9), ("beta=9", "[-2.0, 2.0]")),
        (("--beta", 0.1, "--layers", "0:99"), ("0:99", "0 to 7")),
        (("--limit", 0), ("--limit",)),
        (("--tasks", "no_such_task"), ("no_such_task",)),
        (("--include_path", "/absent"), ("--include-path",)),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(tmp_path, capsys, monkeypatch, arguments, words):
    import lmms_eval.tasks

    if "no_such_task" in arguments:  # without the seconds that indexing all of lmms-eval takes
        manager = lmms_eval.tasks.TaskManager
        monkeypatch.setattr(
            lmms_eval.tasks,
            "TaskManager",
            lambda verbosity, include_path=None, **kwargs: manager(
                verbosity, include_path, **{**kwargs, "include_defaults": False}
            ),
        )
    assert run(tmp_path / "x", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("vift sweep: error: ") and error.count("\n") == 1
    for word in words:
        assert word in error


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", {"empty"}),
        ("  \n", {"empty"}),
        ("The image shows two dogs on a beach.", {"caption"}),
        ("the picture shows 2 digits : red 7", {"caption"}),
        ("In this figure, angle B is 60 degrees, so the answer is B.", set()),
        ("The answer is 4.", set()),
        ("no no no no no", {"repeats"}),
        ("a b c a b c a b c a b c", {"repeats"}),
        ("heyyyyyyyyyyyyyyyyyyyyyyyyyyy", {"repeats"}),
        ("1 2 3 4 5 6 7 8 9 10", set()),
        ("I'm sorry, but I can't see the image.", {"refusal"}),
        ("I cannot answer that.", {"refusal"}),
    ],
)
def test_failure_signs(text, shown):
    from vift_eval.answers.outcomes import signs

    assert signs(text) == shown
