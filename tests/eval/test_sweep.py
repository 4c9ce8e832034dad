"""`vift-sweep`: the answers of separate runs, at less cost; resumes; reports. And the failure signs."""

import json

import pytest

from tests.eval.benchmarks import OURS, ROOT

pytestmark = pytest.mark.filterwarnings("ignore")
MODEL = ROOT / "checkpoints" / "vift-micro"


@pytest.fixture(scope="module")
def bundled():
    from vift_eval.engine import Engine
    from vift_eval.models import load_model

    return Engine(*load_model(str(MODEL)))


def prompts(engine, count, seed=0):
    from vift_microworld import visual_questions

    chats = []
    for row in visual_questions(count, seed=seed, split="validation"):
        content = [{"type": "image", "image": row["images"][0]}, {"type": "text", "text": row["question"]}]
        chats.append([{"role": "user", "content": content}])
    chats[1][0]["content"].pop(0)  # one without its picture
    chats[2][0]["content"].insert(0, dict(chats[0][0]["content"][0]))  # and one with two
    return [engine.render(chat) for chat in chats]


def test_reuse_changes_no_answer(bundled):
    """Shared features, text streams and drafts, right or wrong ones, give the answers of `generate()`."""
    from vift_eval.engine import Answer, Request
    from vift_eval.sweep.reuse import Shared, answer

    batch = prompts(bundled, 12)
    inputs = bundled.inputs(batch)
    shared = Shared.of(bundled, inputs, range(8))
    known = [[Answer("yes", 0, 1, False), Answer("red 7 red 7", 0, 2, True)] for _ in batch]
    drafted = False
    for fusion in ({"fusion": False}, {"beta": 0.3, "fusion_layers": "2:6"}, {"beta": 0.3, "fusion_layers": "2:6"},
                   {"beta": 0.5, "fusion_layers": "0:4", "fusion_span": "after_image"},
                   {"beta": 0.5, "fusion_layers": "0:4", "fusion_answer": False},
                   {"beta": 0.2, "alpha": 0.9, "fusion_layers": "4:8", "fusion_rule": "additive",
                    "fusion_answer": False}):  # fmt: skip
        request = Request(8, {"do_sample": False}, fusion)
        expected = bundled.generate(bundled.inputs(batch), request)
        found = answer(bundled, shared, request, known)
        assert found == expected
        drafted = drafted or any(one.text == old.text for one, old in zip(found, (row[0] for row in known)))
        known = [[one, *row] for one, row in zip(found, known)]
    assert drafted


@pytest.mark.parametrize("throughout", [False, True])
def test_known_answers_save_decoding(bundled, monkeypatch, throughout):
    """When every answer is known, nothing is generated token by token."""
    from vift_eval.engine import Request
    from vift_eval.sweep.reuse import Shared, answer

    batch = prompts(bundled, 6)
    shared = Shared.of(bundled, bundled.inputs(batch), range(4))
    fusion = {"beta": 0.5, "fusion_layers": "0:4", "fusion_answer": throughout}
    request = Request(8, {"do_sample": False}, fusion)
    said = answer(bundled, shared, request, [[] for _ in batch])
    monkeypatch.setattr(bundled.model, "generate", None)
    assert answer(bundled, shared, request, [[one] for one in said]) == said


def run(output, *more):
    from vift_eval.sweep.command import main

    arguments = ["--models", MODEL, "--tasks", "vift_micro_validation", "--include_path", OURS, "--output", output,
                 "--batch_size", 8, *more]  # fmt: skip
    return main([str(argument) for argument in arguments])


GRID = ("--limit", 16, "--beta", 0, 0.3, 0.6, "--layers", "0:2", "4:8")


def test_a_sweep_is_the_separate_runs_and_resumes_after_a_kill(tmp_path, capsys, monkeypatch):
    import pandas as pd

    from vift_eval.answers.conditions import evaluate
    from vift_eval.answers.outcomes import correct
    from vift_eval.models import load_model
    from vift_eval.sweep import reuse
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
    report = (tmp_path / "whole" / "report.md").read_text()
    assert "| 4:8 |" in report and "vift-sweep --models" in report
    assert "all with alpha 1.0, rule cascade, span all." in report
    for name in ("curve-1.png", "heat-1.png"):
        assert (tmp_path / "whole" / name).stat().st_size > 5000

    # killed in the middle of writing a line, then run again: the rest is asked, and nothing twice
    lines = (tmp_path / "whole" / "answers.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "sweep.json").write_text((tmp_path / "whole" / "sweep.json").read_text())
    (tmp_path / "killed" / "answers.jsonl").write_text("".join(lines[:7]) + lines[7][:40])
    asked, plain = [], reuse.answer
    monkeypatch.setattr(reuse, "answer", lambda *arguments: asked.append(1) or plain(*arguments))
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
        (("--include_path", "/absent"), ("--include_path",)),
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
    assert error.startswith("vift-sweep: error: ") and error.count("\n") == 1
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
