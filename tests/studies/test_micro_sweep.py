"""The sweep of fusion settings: gap closed by its definition, best first, the command's own settings."""

import json

import pytest

from vift_microworld import visual_questions
from vift_studies.paper import micro_sweep


@pytest.fixture
def answers(monkeypatch):
    """Unfused: captions; caption first: all right; fused: every second one right at layer 1, else none."""

    def evaluate(model, processor, questions, mode, **kwargs):
        right = list(questions["answer"])
        if mode == "unfused":
            return ["the picture shows 3 digits"] * len(right)
        if mode == "fused" and kwargs["fusion_layers"] == "1:2":
            return [answer if i % 2 else "?" for i, answer in enumerate(right)]
        return right if mode == "caption_first" else ["?"] * len(right)

    monkeypatch.setattr(micro_sweep, "evaluate", evaluate)
    monkeypatch.setattr(micro_sweep, "load", lambda path: (None, None))


def test_gap_closed_is_the_share_of_the_distance_to_caption_first(answers, tmp_path, capsys):
    arguments = "--models a b --layers 0:1 1:2 --dose 1 --alpha 0 --count 20 --json".split()
    micro_sweep.main([*arguments, str(tmp_path / "sweep.json")])
    found = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))
    best, worst = found["settings"]
    assert best["setting"] == {
        "fusion_layers": "1:2", "dose": 1.0, "fusion_span": "all", "alpha": 0.0, "fusion_norm": False
    }  # fmt: skip
    assert best["gap_closed"] == [0.5, 0.5] and worst["gap_closed"] == [0.0, 0.0]
    assert [model["captions"] for model in found["base"]] == [1.0, 1.0]
    assert "50.0% (0%) gap 0.50" in capsys.readouterr().out


def test_only_validation_questions_are_asked(answers, monkeypatch):
    asked = []
    monkeypatch.setattr(
        micro_sweep,
        "visual_questions",
        lambda *args, **kwargs: asked.append(kwargs) or visual_questions(*args, **kwargs),
    )
    micro_sweep.sweep(["a"], [], count=5)
    assert [kwargs["split"] for kwargs in asked] == ["validation"]
