"""The band study and the bridge: steps have names of their own, verdicts follow from figures by rule."""

import pandas as pd
import pytest

from vift_studies.bands import bridge, study
from vift_studies.bands.page import PAIRS, SCORES, of_score, verdicts


def test_the_steps_have_names_of_their_own():
    steps = study.plan((0, 1))
    assert len({step.name for step in steps}) == len(steps) and len({step.output for step in steps}) == len(steps)
    known = {step.name for step in steps}
    assert all(need in known for step in steps for need in step.needs)
    arms = study.arms(range(3, 6), 8, seed=0)
    assert list(arms) == list(study.ARMS)
    assert arms["rule"] == [3, 4, 5] and arms["complement"] == [0, 1, 2, 6, 7] and len(arms["random"]) == 3
    assert arms["spaced"] == [0, 4, 7] and arms["late"] == [4, 5, 6, 7] and arms["full"] is None


@pytest.mark.parametrize(
    "layers, options", [(None, {}), ([], {"train_language_model": False}), ([0, 4], {"train_layers": "0,4"})]
)
def test_an_arm_is_what_vift_train_trains(layers, options):
    assert study.options(layers) == options


def results(**changed) -> dict:
    """Every arm trains layers of its own, and every difference is a gain, but what is `changed`."""
    gain = {"difference": 0.1, "ci95": [0.05, 0.15], "seeds": [0.1]}
    differences = [{"first": a, "second": b, "score": score, **gain} for a, b in PAIRS for score in SCORES]
    layers = {arm: [[number]] for number, arm in enumerate(study.ARMS)} | changed
    arms = [{"arm": arm, "layers": trained, "seen": {"mean": 0.5}} for arm, trained in layers.items()]
    return {"differences": differences, "arms": arms}


def test_verdicts_follow_from_the_figures():
    figures = results()
    level = {"difference": -0.01, "ci95": [-0.03, 0.01]}
    figures["differences"][0] |= level  # rule - full, seen
    measured = verdicts(figures)
    assert [row["verdict"] for row in measured][:3] == ["level", "better / better", "better"]
    assert measured[0]["reason"].startswith("100.0% of full training") and "in words +10.0" in measured[1]["reason"]


def test_arms_of_the_same_layers_are_not_compared():
    measured = verdicts(results(rule=[[0, 1]], random=[[0, 1]]))
    assert [row["verdict"] for row in measured if "at random" in row["claim"]] == ["not testable here"]
    assert [row["verdict"] for row in measured if "outside it" in row["claim"]] == ["better"]


def test_answers_are_scored_by_families_seen_and_not():
    rows = pd.DataFrame({"seed": 0, "arm": "full", "family": ["difference", "sum"] * 2,  # seed 0 holds the first out
                         "condition": ["unfused"] * 2 + ["oracle_text"] * 2,
                         "outcome": ["right", "wrong", "right", "garbage"]})  # fmt: skip
    assert [of_score(rows, "full", score)[0].tolist() for score in SCORES] == [[0], [1], [1, 0]]


def related(single: list[list[float]]) -> dict:
    """The bridge's verdict for accuracies of layers 1 ... 4 of each seed; bands have the reverse."""
    validation = [{"sweep": "replace", "layers": f"{i}:{i + 1}", "seeds": [seed[i - 1] for seed in single]}
                  for i in range(1, 5)]  # fmt: skip
    validation += [record | {"sweep": "bands", "seeds": [1 - value for value in record["seeds"]], "dose": 1.0}
                   for record in validation]  # fmt: skip
    profile = [None, 0.1, 0.2, 0.3, 0.4, 0.5]
    return bridge.relate({name: [profile] * len(single) for name in ("last", "mean")}, validation)["verdict"]


def test_the_bridge_calls_a_prediction_what_is_one():
    rising = [0.1, 0.2, 0.3, 0.4]
    assert related([rising, rising]) == {"single": "predicts it", "bands": "predicts the reverse"}
    assert related([rising, rising[::-1]])["single"] == "does not predict it"


def test_the_bridge_calls_nothing_predicted_where_all_layers_are_the_same():
    assert related([[0.1, 0.2, 0.3, 0.4], [0.2] * 4])["single"] == "not testable here"
