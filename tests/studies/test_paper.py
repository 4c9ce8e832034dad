"""The paper in a box: the plan is complete, scores follow from rows of answers, verdicts from figures by rule."""

import pandas as pd
import pytest

from vift_eval.answers.conditions import CONDITIONS
from vift_eval.answers.outcomes import OUTCOMES, outcome
from vift_microworld import FAMILIES
from vift_studies.answers import held_out, paired, score
from vift_studies.paper import measure
from vift_studies.paper.plan import ARMS, ASKED, FUSED_OTHERWISE, plan
from vift_studies.paper.table import _cost, _test, _validation


def test_the_plan_is_in_order_and_leaves_no_arm_out():
    steps = plan((0, 1, 2))
    names = [step.name for step in steps]
    assert len(set(names)) == len(names) and len({step.output for step in steps}) == len(steps)
    for number, step in enumerate(steps):
        assert set(step.needs) <= set(names[:number]), step.name
        assert step.command.count("{out}") == 1
    for seed in (0, 1, 2):
        last = next(step for step in steps if step.name == f"seed{seed}/arms")
        assert {f"seed{seed}/arm-{arm.name}" for arm in ARMS} <= set(last.needs)


def test_every_condition_is_asked():
    assert {*ASKED, *FUSED_OTHERWISE, "band", "replaced"} == set(CONDITIONS)


# --- from answers to figures ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prediction, answer, expected",
    [
        ("Red.", "red", "right"), ("blue", "red", "wrong"), ("7", "red", "wrong_kind"),
        ("top left", "yes", "wrong_kind"), ("", "3", "empty"),
        ("the picture shows 3 digits : top left red 7", "3", "caption"), ("color color what", "3", "garbage"),
        ("7 7", "7", "garbage"),
    ],
)  # fmt: skip
def test_every_answer_has_one_outcome(prediction, answer, expected):
    assert outcome(prediction, answer) == expected and expected in OUTCOMES


def test_every_family_is_held_out_in_exactly_one_split():
    splits = [held_out(seed) for seed in (0, 1, 2)]
    assert sorted(family for split in splits for family in split) == sorted(FAMILIES)
    assert {len(split) for split in splits} == {5}


LETTERS = {"r": "right", "w": "wrong", "k": "wrong_kind", "c": "caption", "g": "garbage", "e": "empty"}


def rows(*seeds: str, **setting) -> pd.DataFrame:
    """One row per letter, one string per seed."""
    return pd.DataFrame([
        {"seed": seed, "question": number, "outcome": LETTERS[letter], **setting}
        for seed, letters in enumerate(seeds)
        for number, letter in enumerate(letters)
    ])  # fmt: skip


def test_scores_are_shares_of_answers_and_pairs_are_paired():
    record = score(rows("rrwc", "rkge"))
    assert record["seeds"] == [0.5, 0.25] and record["mean"] == 0.375
    assert [record[name] for name in ("caption", "wrong_kind", "garbage", "empty")] == [0.125] * 4
    assert score(rows("rr", "www"))["mean"] == 0.5  # seeds of different size weigh the same
    delta = paired(rows("rrrr", "wwww"), rows("wwww", "wwww"))
    assert delta["difference"] == 0.5 and [d["difference"] for d in delta["seeds"]] == [1.0, 0.0]


def test_a_sweep_is_compared_with_its_reference():
    band = {"condition": "band", "layers": "4:8"}
    table = pd.concat([
        rows("wwww", "wwww", sweep="dose", dose=0.5, alpha=1.0, **band),
        rows("rrrr", "rrww", sweep="dose", dose=2.0, alpha=1.0, **band),
        rows("rrww", "rrww", sweep="alpha", dose=2.0, alpha=0.8, **band),
        rows("rrrw", "rrrw", sweep="alpha", dose=2.0, alpha=1.0, **band),
        rows("cccc", "cccc", sweep="plain", condition="unfused"),
    ])  # fmt: skip
    records = _validation(table)["validation"]
    assert [r.get("minus_reference", {}).get("difference") for r in records] == [-0.75, 0.0, -0.25, 0.0, None]
    assert records[0] | {"dose": 0.5, "layers": "4:8"} == records[0] and "dose" not in records[4]


def test_what_is_chosen_is_the_best_on_validation(tmp_path, monkeypatch):
    """The gap between settings decides, over the seeds, or in the seed for what is tuned; ties go to the first."""
    band, replaced = {"sweep": "bands", "condition": "band"}, {"sweep": "replace", "condition": "replaced"}
    for seed, (low, high, at) in enumerate((("rrww", "rrrw", "rwww"), ("rrww", "rwww", "rrrr"))):
        (tmp_path / f"seed{seed}").mkdir()
        pd.concat([
            rows(low, layers="0:4", dose=1.0, alpha=1.0, **band),
            rows(high, layers="0:4", dose=2.0, alpha=1.0, **band),
            rows(at, layers="1:2", dose=1.0, alpha=0.0, **replaced),
            *(rows("rw", sweep="weights", condition=name, weight=w) for name in ("logit_mix",) for w in (0.25, 0.5)),
            rows("rw", sweep="static", condition="static_vector", layers="1:2", dose=1.0, alpha=0.0),
            *(rows(letters, sweep="merged", condition="merged_layers", weights=[weight, 0.5])
              for weight, letters in ((0.5, "rwww"), (1.0 - seed, "rrww"))),
        ]).assign(seed=seed).to_parquet(tmp_path / f"seed{seed}" / "validation.parquet")  # fmt: skip
    monkeypatch.chdir(tmp_path)
    chosen = measure.choose([0, 1])
    assert chosen["bands"] == [{"fusion_layers": "0:4", "dose": 1.0, "alpha": 1.0}]  # a tie over both seeds
    assert [one["dose"] for one in chosen["tuned"]] == [2.0, 1.0]
    assert [one["condition"] for one in chosen["tuned"]] == ["band", "replaced"]
    assert chosen["weights"] == {"logit_mix": 0.25}
    assert [one["weights"] for one in chosen["merged"]] == [[1.0, 0.5], [0.0, 0.5]]  # each seed its own


def test_the_search_of_layer_weights_keeps_what_is_better_layer_by_layer():
    """Right answers: as many as weights agree with (0.75, 0.5, 1.0)."""
    asked = []

    def answered():
        right = sum(a == b for a, b in zip(asked[-1], (0.75, 0.5, 1.0)))
        return pd.DataFrame({"outcome": ["right"] * right + ["wrong"] * (3 - right)})

    for weights in measure.layer_weights(2, answered):
        asked.append(weights)
    assert asked[0] == [0.5, 0.5, 0.5] and len(asked) == 10
    assert asked[4:7] == [[0.75, weight, 0.5] for weight in (0.0, 0.75, 1.0)] and [0.75, 0.5, 1.0] in asked[7:]


def test_only_validation_questions_are_asked_before_anything_is_chosen(monkeypatch):
    """Every sweep, and what `calibrate` and the static vectors see."""
    asked = []

    def questions(count, **kwargs):
        asked.append(kwargs["split"])
        raise InterruptedError

    monkeypatch.setattr(measure, "visual_questions", questions)
    monkeypatch.setattr(measure, "load", lambda *args: (None, None))
    for step in (measure.measure_validation, lambda seeds: measure.calibration_questions("static")):
        with pytest.raises(InterruptedError):
            step([0])
    assert asked == ["validation", "validation"]


def test_the_cost_is_a_share_of_caption_first():
    table = pd.concat([rows("rr", "rr", condition=name, ms=ms, tokens=2) for name, ms in
                       (("fused", 10.0), ("caption_first", 40.0))])  # fmt: skip
    fused, _ = _cost(table)
    assert fused == {"condition": "fused", "ms": 10.0, "tokens": 2.0, "share_of_caption_first": [0.25, 0.25]}


def test_the_gap_closed_is_the_share_of_the_distance_to_caption_first():
    conditions = {"unfused": "wwww", "fused": "rrww", "caption_first": "rrrr"}
    table = pd.concat([
        *(rows(letters, letters, condition=name) for name, letters in conditions.items()),
        *(rows("rrww", "rrww", condition="band", layers=layers, dose=1.0) for layers in ("4:8", "0:2")),
    ])  # fmt: skip
    results = _test(table, num_layers=8)
    assert [gap["value"] for gap in results["gap_closed"]] == [0.5, 0.5]
    assert results["top_half_minus_lowest_quarter"]["difference"] == 0.0
    assert results["test"][0]["fused_minus_this"]["difference"] == 0.5
