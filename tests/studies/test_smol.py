"""The study on real parts: what an answer is, what is chosen, and a results file that says what the rows say."""

import json

import pandas as pd
import pytest

from vift_eval.files import write_json
from vift_studies.smol import measure, page
from vift_studies.smol.plan import plan

WAYS = ("unfused", "blind", "caption_first", "paper_literal", "paper_form", "free", "wrong_image", "oracle_text",
        "wrong_image_literal", "other_question", "logit_mix", "merged_weights", "merged_layers")  # fmt: skip
RIGHT = {"unfused": 1, "blind": 2, "caption_first": 8, "paper_literal": 4, "paper_form": 6, "free": 7,
         "wrong_image": 2, "oracle_text": 9, "wrong_image_literal": 3}  # fmt: skip


@pytest.mark.parametrize(
    "text, expected",
    [("Lima.", "right"), ("The capital of Peru is Lima.", "right"), ("Quito", "wrong"), (" ", "empty"),
     ("The picture shows the flag of Peru on the left, on a plain red background.", "caption")],
)  # fmt: skip
def test_outcomes(text, expected):
    row = {
        "answers": ["Lima"],
        "family": "capital",
        "question": "Name the capital of the country in the picture.",
    }
    assert measure.outcome(text, row) == expected


def validation(rows) -> pd.DataFrame:
    """`rows`: (sweep, condition, setting, right of ten)."""
    parts = [
        pd.DataFrame([{"seed": 0, "sweep": sweep, "condition": condition, **setting, "outcome": outcome}
                      for outcome in ["right"] * right + ["caption"] * (10 - right)])
        for sweep, condition, setting, right in rows
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def test_each_circle_chooses_its_first_best_on_validation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed0").mkdir()
    half = {"alpha": 1.0, "layers": "15:30"}
    validation([
        ("beta", "fused", half | {"beta": 0.05}, 4), ("beta", "fused", half | {"beta": 0.1}, 6),
        ("beta", "fused", half | {"beta": 0.2}, 6),
        ("bands", "fused", {"alpha": 1.0, "layers": "0:7", "dose": 1.5}, 5),
        ("free", "fused_answer_too", {"alpha": 0.0, "beta": 1.0, "layers": "6:7"}, 9),
        ("weights", "logit_mix", {"weight": 0.25}, 3), ("weights", "logit_mix", {"weight": 0.5}, 2),
        ("weights", "merged_weights", {"weight": 0.5}, 5),
        ("merged rising", "merged_layers", {}, 2), ("merged falling", "merged_layers", {}, 3),
    ]).to_parquet("seed0/validation.parquet")  # fmt: skip
    chosen = measure.choose([0])["0"]
    assert chosen["paper_form"] == {"beta": 0.1} and chosen["logit_mix"] == {"weight": 0.25}
    assert chosen["band"] == {"condition": "fused", "alpha": 1.0, "dose": 1.5, "layers": "0:7"}
    assert measure.keywords(chosen["free"]) == {
        "alpha": 0.0, "beta": 1.0, "fusion_layers": "6:7", "fusion_answer": True,
    }  # fmt: skip
    assert chosen["merged_layers"] == "falling"


def test_profiles_have_a_weight_for_each_layer_and_one_for_all_else():
    profiles = measure.layer_profiles(30)
    assert all(len(weights) == 31 and weights[-1] == 0.0 for weights in profiles.values())
    assert profiles["upper half"][14:16] == [0.0, 1.0] and profiles["rising"][29] == 1.0


def work_folder(folder):
    """A seed's rows: `RIGHT` of ten questions of each split, half of them of two hops, and what they cost."""
    (folder / "seed0").mkdir(parents=True)
    rows = [
        {"seed": 0, "split": split, "condition": way, "question": i, "family": "capital" if i % 2 else "name",
         "hops": 1 + i % 2, "outcome": "right" if i < RIGHT.get(way, 0) else "caption", "tokens": 5}
        for split in ("test", "style", "facts") for way in WAYS for i in range(10)
    ]  # fmt: skip
    pd.DataFrame(rows).to_parquet(folder / "seed0/test.parquet")
    costs = {"unfused": 10.0, "paper_literal": 12.0, "paper_form": 12.0, "caption_first": 48.0}
    pd.DataFrame([
        {"seed": 0, "condition": way, "hops": hops, "ms": ms} for way, ms in costs.items() for hops in (1, 2)
    ]).to_parquet(folder / "seed0/cost.parquet")  # fmt: skip
    chosen = {"paper_form": {"beta": 0.1}, "free": {"condition": "fused", "alpha": 0.0, "beta": 1.0, "layers": "6:7"}}
    write_json(folder / "choose.json", {"0": chosen})


def test_results_say_what_the_rows_say(tmp_path):
    work_folder(tmp_path / "work")
    page.write_page(tmp_path / "work", tmp_path / "page", [0, 1])
    results = json.loads((tmp_path / "page/smol.json").read_text())
    assert results["seeds"] == [0] and results["questions"] == {"test": 10, "style": 10, "facts": 10}
    goals = json.loads((tmp_path / "page.json").read_text())
    assert goals == {name: results[name] for name in ("made", "seeds", "paper_form", "paper_literal")}
    form = results["paper_form"]
    assert form["fused_minus_unfused"] == [50.0] and form["captions_fused"] == [40.0]
    assert form["fused_minus_blind"] == [40.0] and form["fused_minus_wrong_image"] == [40.0]
    assert form["share_of_caption_first"] == [0.75] and form["time_over_caption_first"] == [0.25]
    # of five questions of two hops: paper_form 3, unfused 0, blind 1
    assert form["two_hop"]["fused_minus_unfused"] == [60.0] and form["two_hop"]["fused_minus_blind"] == [40.0]
    assert results["paper_literal"]["fused_minus_wrong_image"] == [10.0]
    told = {line[0]: line[2] for line in page.verdicts(form)}
    assert told["at most 10 % captions"] == "not met" and told["at most a third of its time"] == "met"
    text = (tmp_path / "page/README.md").read_text()
    assert page.page(results) == text and "not met" in text and (tmp_path / "page/answers.png").stat().st_size > 5000


def test_nothing_measured_is_said(tmp_path):
    with pytest.raises(ValueError, match="nothing has been measured"):
        page.collect(tmp_path, [0])


def test_every_step_needs_steps_that_come_before_it():
    steps = plan((0, 1))
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    for number, step in enumerate(steps):
        assert set(step.needs) <= set(names[:number]), step.name
        assert "{out}" in step.command
