"""Verdicts of the paper follow from its figures by rule; without a contrast a claim is not testable."""

import pytest

from vift_studies.paper.verdicts import RULES, verdicts

UNTESTABLE = "not testable here"


def delta(difference: float, half: float = 0.02, seeds=(None,) * 3) -> dict:
    one = {"difference": difference, "ci95": [difference - half, difference + half]}
    return one | {"seeds": [one if s is None else {"difference": s, "ci95": [s - half, s + half]} for s in seeds]}


def judged(title_part: str, results: dict) -> dict:
    (only,) = [v for v in verdicts({"num_layers": 8} | results) if title_part in v["title"]]
    return only


def verdict(title_part: str, results: dict) -> str:
    return judged(title_part, results)["verdict"]


def record(mean: float = 0.5, caption: float = 0.0, **more) -> dict:
    failures = {"wrong_kind": 0, "garbage": 0, "empty": 0}
    return {"mean": mean, "seeds": [mean] * 3, "caption": caption} | failures | more


def asked(condition: str, mean: float = 0.5, difference: float | None = None, **more) -> dict:
    gain = {} if difference is None else {"fused_minus_this": delta(difference)}
    return record(mean, condition=condition, **gain, **more)


@pytest.mark.parametrize(
    "gain, caption, expected",
    [
        (delta(0.1), 0.4, "reproduced"),
        (delta(0.1, seeds=(0.3, 0.2, -0.01)), 0.4, "not reproduced"),
        (delta(0.01), 0.4, "not reproduced"),
        (delta(-0.1), 0.02, UNTESTABLE),
    ],
)
def test_fusion_is_reproduced_only_above_zero_in_every_seed(gain, caption, expected):
    test = [asked("unfused", caption=caption, fused_minus_this=gain), asked("fused")]
    assert verdict("captions into answers", {"test": test}) == expected


def bands(*means: float, layers=("4:8", "0:2"), **more) -> dict:
    """Doses 1, 2, ... of two bands on validation, and what claims about bands need of the test split."""
    tried = [record(mean, sweep="bands", layers=band, dose=1.0 + i) for band in layers for i, mean in enumerate(means)]
    return {"validation": tried, "test": [record(condition="band", layers=band) for band in layers]} | more


@pytest.mark.parametrize("gain, expected", [(delta(0.1), "reproduced"), (delta(0.01), "not reproduced")])
def test_bands_and_arms_are_judged_by_their_interval(gain, expected):
    names = ("vift_minus_vit_unseen", "vift_minus_vit_text_unseen", "vift_minus_vit_text_ability")
    differences = dict.fromkeys((*names, "vift_minus_vit_text_text_ability"), gain)
    results = bands(0.1, 0.3, 0.2, top_half_minus_lowest_quarter=gain, differences=differences)
    for title in ("top half is the best", "ViFT beats", "keeps the text ability"):
        assert verdict(title, results) == expected


def test_one_band_is_not_compared_with_itself():
    results = bands(0.1, 0.3, layers=("0:1",), top_half_minus_lowest_quarter=delta(0.0), num_layers=1)
    assert verdict("top half is the best", results) == UNTESTABLE
    edge = bands(0.1, 0.3, top_half_minus_lowest_quarter=delta(0.0))
    assert "(the largest tried)" in judged("top half is the best", edge)["reason"]


def test_growth_needs_ours_above_zero_and_theirs_not():
    for ours, theirs, expected in (
        (0.1, 0.0, "reproduced"), (0.1, 0.1, "not reproduced"), (0.0, 0.0, "not reproduced"),
    ):  # fmt: skip
        both = {"vift_growth_unseen": delta(ours), "vit_growth_unseen": delta(theirs)}
        assert verdict("goes on growing", {"differences": both}) == expected


def sweep(doses: list[dict], alphas: tuple[dict, ...] = (), caption: float = 0.4) -> dict:
    top = {"layers": "4:8"}
    plain = record(caption=caption, sweep="plain", condition="unfused")
    sweeps = [one | top | {"sweep": "dose"} for one in doses] + [one | top | {"sweep": "alpha"} for one in alphas]
    return {"validation": [*sweeps, plain]}


LOW = record(0.2, caption=0.4, dose=0.1, minus_reference=delta(-0.3))
BEST = record(0.5, caption=0.05, dose=2.0, minus_reference=delta(0.0))
HIGH = record(0.1, garbage=0.5, dose=8.0, minus_reference=delta(-0.4))


def test_sweeps_are_judged_by_their_failures():
    alphas = [record(alpha=a, minus_reference=delta(d)) for a, d in ((0.4, -0.4), (0.8, -0.01), (1.0, 0.0))]
    results = sweep([LOW, BEST, HIGH], alphas)
    assert verdict("leaves captions", results) == verdict("gives garbage", results) == "reproduced"
    assert verdict("ends in refusals", results) == "not reproduced"
    assert verdict("ends in refusals", sweep([LOW], alphas[:2])) == "not measured"  # without alpha 1
    results = sweep([LOW, BEST, HIGH | {"garbage": 0.0}], caption=0.0)
    assert verdict("leaves captions", results) == UNTESTABLE
    assert verdict("gives garbage", results) == "not reproduced"


def test_the_best_dose_is_not_compared_with_itself():
    assert verdict("gives garbage", sweep([LOW, BEST])) == UNTESTABLE
    assert verdict("leaves captions", sweep([BEST, HIGH])) == UNTESTABLE
    assert verdict("leaves captions", sweep([LOW, BEST])) == "reproduced"


@pytest.mark.parametrize(
    "gaps, caption_first, expected",
    [
        ([0.7, 0.8, 0.9], 0.7, "met"),
        ([0.69, 0.8, 0.9], 0.7, "not met"),
        ([0.8, None, 0.8], 0.7, UNTESTABLE),
        ([0.8, 0.8, 0.8], 0.69, "not met"),
    ],
)
def test_the_goal_is_met_in_every_seed_or_not(gaps, caption_first, expected):
    results = {"gap_closed": [{"value": gap} for gap in gaps], "test": [asked("caption_first", caption_first)]}
    assert verdict("70 %", results) == expected


def test_controls_cost_and_calibration_are_judged_by_their_bars():
    setting = {"layers": "1:2", "dose": 1.0, "alpha": 0.0}
    choices = [setting | {"choice": choice} for choice in ("tuned", "calibrated")]
    for gain, share, calibrated, expected in ((0.15, 0.33, -0.02, "met"), (0.14, 0.34, -0.03, "not met")):
        results = {
            "test": [asked(name, difference=gain) for name in ("blind", "wrong_image", "random_vectors")],
            "cost": [{"condition": "fused", "share_of_caption_first": [0.1, share]}],
            "calibrated_minus_tuned": delta(0.0, seeds=(0.0, calibrated, 0.0)),
            "calibrate": choices,
        }
        for title in ("at least 15 points", "a third of its time", "within 2 points"):
            assert verdict(title, results) == expected, title
        assert "the same setting in 1 seeds" in judged("within 2 points", results)["reason"]


def test_every_baseline_must_be_beaten_at_its_best():
    names = ("logit_mix", "logit_contrast", "merged_weights")

    def results(difference: float = 0.1, last: float = 0.2) -> dict:
        tried = [record(mean, sweep="weights", condition=name, weight=weight)
                 for name in names for weight, mean in ((0.25, 0.1), (0.5, 0.3), (0.75, last))]  # fmt: skip
        differences = dict.fromkeys(names, 0.1) | {"merged_weights": difference}
        return {"validation": tried, "test": [asked(name, difference=d) for name, d in differences.items()]}

    assert verdict("merging weights", results()) == "met"
    assert verdict("merging weights", results(difference=-0.04)) == "not met"
    assert verdict("merging weights", results(last=0.4)) == UNTESTABLE  # another weight may be better still
    assert verdict("merging weights", results(last=0.3)) == "met"  # it does not rise any more
    assert verdict("merging weights", results(difference=-0.04, last=0.4)) == "not met"


def test_the_mechanism_needs_every_mode_only_condition_below():
    names = ("other_question", "static_vector", "forced_first_token")
    test = [asked("unfused", 0.1), asked("fused", 0.5), *(asked(name, 0.2, 0.3) for name in names)]
    measured = judged("content counts", {"test": test})
    assert measured["verdict"] == "met" and "static_vector 25 %" in measured["reason"]
    assert verdict("content counts", {"test": [asked("unfused", 0.5), *test[1:]]}) == UNTESTABLE  # nothing gained
    test[3] = asked("static_vector", 0.2, 0.01)
    assert verdict("content counts", {"test": test}) == "not met"


@pytest.mark.parametrize("gain, expected", [(-0.2, "met"), (0.0, "not met")])
def test_the_layers_are_explained_only_if_replacing_higher_costs_answers(gain, expected):
    replaced = [
        record(0.5, sweep="replace", layers="1:2", minus_reference=delta(0.0)),
        record(0.5 + gain, sweep="replace", layers="4:5", minus_reference=delta(gain)),
        record(0.2, sweep="replace", layers="7:8", minus_reference=delta(-0.3)),
    ]
    blind = record(0.2, sweep="plain", condition="blind")
    measured = judged("below the top half", {"validation": [*replaced, blind]})
    assert measured["verdict"] == expected and "at layer 1, 4, 7: 50, " in measured["reason"]
    assert ("67 % of what" in measured["reason"]) == (gain < 0)
    assert verdict("below the top half", {"validation": [*replaced, blind | {"mean": 0.5}]}) == UNTESTABLE


def test_a_claim_without_figures_is_not_measured():
    measured = verdicts({})
    assert len(measured) == len(RULES) and {v["verdict"] for v in measured} == {"not measured"}
    assert "'gap_closed'" in next(v["reason"] for v in measured if "70 %" in v["title"])
