"""Verdicts of the paper in a box: one rule per claim, on the figures of `table.collect`.

A rule returns (verdict, reason); what it calls reproduced is stated in its code, with intervals, not by eye. A claim
is not testable here where the failure that it is about hardly occurs, and where the figures hold no contrast: nothing
is compared, or the best of what was tried stands at the edge of it, so that what lies beyond is unknown. Where figures
are missing, the verdict says so.
"""

from functools import partial

from ..answers import UNTESTABLE, one, percent, pick, points, some
from .plan import lowest_quarter, top_half

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
MET, NOT_MET, MISSING = "met", "not met", "not measured"
RARE = 0.05  # a failure in less than one answer in twenty does not count as occurring


def best(records: list[dict]) -> dict:
    """The first of those with the highest mean."""
    return max(records, key=lambda record: record["mean"])


def at_edge(records: list[dict], name: str) -> bool:
    """Whether the best stands at an end of the tried values of `name`, above all others: beyond it may be better."""
    top = best(records)
    ends = (min(record[name] for record in records), max(record[name] for record in records))
    return top[name] in ends and sum(record["mean"] == top["mean"] for record in records) == 1


def verdicts(results: dict) -> list[dict]:
    """[{"claim", "title", "verdict", "reason"}]."""
    return [{"claim": claim, "title": title, **judge(rule, results)} for claim, title, rule in RULES]


def judge(rule, results: dict) -> dict:
    try:
        verdict, reason = rule(results)
    except KeyError as missing:
        verdict, reason = MISSING, f"the steps that measure {missing.args[0]!r} are not done"
    return {"verdict": verdict, "reason": reason}


def by_seed(delta: dict) -> str:
    return ", ".join(f"{100 * each['difference']:+.1f}" for each in delta["seeds"])


def asked(r: dict, condition: str) -> dict:
    """The record of a condition on the test split."""
    return one(r["test"], condition=condition)


def minus(r: dict, *conditions: str) -> dict[str, dict]:
    """Condition -> fused minus this, on the test split."""
    return {condition: asked(r, condition)["fused_minus_this"] for condition in conditions}


def differences(deltas: dict[str, dict]) -> str:
    return "fused − " + "; − ".join(f"{name} {points(delta)}" for name, delta in deltas.items()) + " points"


def fusion_helps(r: dict):
    unfused, fused = asked(r, "unfused"), asked(r, "fused")
    delta = unfused["fused_minus_this"]
    reason = (
        f"fused − unfused {points(delta)} points, by seed {', '.join(map(points, delta['seeds']))}; "
        f"captions without fusion {percent(unfused['caption'])} %, with {percent(fused['caption'])} %"
    )
    if delta["ci95"][0] > 0 and all(each["difference"] > 0 for each in delta["seeds"]):
        return REPRODUCED, reason
    if unfused["caption"] < RARE:
        return UNTESTABLE, f"the failure that fusion repairs hardly occurs; {reason}"
    return NOT_REPRODUCED, reason


def top_half_is_best(r: dict):
    delta, bands = r["top_half_minus_lowest_quarter"], some(r["test"], condition="band")
    top, low = top_half(r["num_layers"]), lowest_quarter(r["num_layers"])
    if top == low:
        return UNTESTABLE, f"with {r['num_layers']} layers the top half and the lowest quarter are one band"
    tried = [some(r["validation"], sweep="bands", layers=band) for band in (top, low)]
    reason = (
        f"top half − lowest quarter {points(delta)} points, each at its best dose on validation"
        f"{' (the largest tried)' if all(at_edge(doses, 'dose') for doses in tried) else ''}; "
        f"the best band on test is {best(bands)['layers']} with {percent(best(bands)['mean'])} %"
    )
    return (REPRODUCED if delta["ci95"][0] > 0 else NOT_REPRODUCED), reason


def _doses(r: dict, extreme) -> tuple[dict, dict]:
    """Of the top half's doses, the smallest (`extreme` = min) or largest (max), and the best."""
    doses = some(r["validation"], sweep="dose", layers=top_half(r["num_layers"]))
    return extreme(doses, key=lambda record: record["dose"]), best(doses)


def small_dose_captions(r: dict):
    low, top = _doses(r, min)
    reason = (
        f"top half, captions at dose {low['dose']}: {percent(low['caption'])} %; at the best dose {top['dose']}: "
        f"{percent(top['caption'])} %"
    )
    if one(r["validation"], sweep="plain", condition="unfused")["caption"] < RARE:
        return UNTESTABLE, f"captions hardly occur even without fusion; {reason}"
    if low is top:
        return UNTESTABLE, f"no dose below the best one was tried; {reason}"
    return (REPRODUCED if low["caption"] - top["caption"] >= RARE else NOT_REPRODUCED), reason


def large_dose_garbage(r: dict):
    high, top = _doses(r, max)
    if high is top:
        return UNTESTABLE, f"top half: the best dose, {top['dose']}, is the largest that could be tried (β at most 2)"
    bad = [record["garbage"] + record["wrong_kind"] + record["empty"] for record in (high, top)]
    delta = high["minus_reference"]
    reason = (
        f"top half, garbage, wrong kind or empty at dose {high['dose']}: {percent(bad[0])} %, "
        f"at the best dose {top['dose']}: {percent(bad[1])} %; right answers {points(delta)} points"
    )
    return (REPRODUCED if bad[0] - bad[1] >= RARE and delta["ci95"][1] < 0 else NOT_REPRODUCED), reason


def small_alpha_refuses(r: dict):
    alphas = some(r["validation"], sweep="alpha", layers=top_half(r["num_layers"]))
    one(alphas, alpha=1.0)  # what the others are compared with
    shown = [one(alphas, alpha=0.8), min(alphas, key=lambda record: record["alpha"])]
    reason = "top half: " + "; ".join(
        f"α {each['alpha']} − α 1 {points(each['minus_reference'])} points, empty {percent(each['empty'])} %"
        for each in shown
    )
    return (REPRODUCED if shown[0]["minus_reference"]["ci95"][1] < 0 else NOT_REPRODUCED), reason


def ahead(r: dict, of: str, words: str = ""):
    """ViFT is better than visual instruction tuning: the difference `of`; beside it that with text batches."""
    delta, with_text = r["differences"][f"vift_minus_vit_{of}"], r["differences"].get(f"vift_minus_vit_text_{of}")
    reason = f"{words}ViFT − visual instruction tuning {points(delta)} points"
    if with_text:
        reason += f"; at a quarter of the data, the latter with text batches, {points(with_text)}"
    return (REPRODUCED if delta["ci95"][0] > 0 else NOT_REPRODUCED), reason


def level_on_seen(r: dict):
    delta = r["differences"]["vift_minus_vit_seen"]
    verdict = REPRODUCED if delta["ci95"][1] >= 0 else NOT_REPRODUCED
    return verdict, f"ViFT − visual instruction tuning {points(delta)} points"


def grows_with_data(r: dict):
    d = r["differences"]
    ours, theirs = d["vift_growth_unseen"], d["vit_growth_unseen"]
    reason = (
        f"families it never saw, all of the data − 1/16: ViFT {points(ours)}, "
        f"visual instruction tuning {points(theirs)} points"
    )
    return (REPRODUCED if ours["ci95"][0] > 0 >= theirs["ci95"][0] else NOT_REPRODUCED), reason


def two_stages_are_cheaper(r: dict):
    delta, ratio = r["differences"]["two_minus_one_stage"], r["cpu_ratios"]["two_over_one_stage"]
    reason = f"two stages take {ratio:.2f} of one stage's CPU time; two − one {points(delta)} points"
    return (REPRODUCED if ratio <= 0.85 and delta["ci95"][1] >= 0 else NOT_REPRODUCED), reason


def pure_is_cheaper(r: dict):
    delta, ratio = r["differences"]["pure_minus_mixed"], r["cpu_ratios"]["mixed_over_pure"]
    reason = f"mixed batches take {ratio:.2f} of pure ones' CPU time; pure − mixed {points(delta)} points"
    return (REPRODUCED if ratio > 1 and delta["ci95"][1] >= 0 else NOT_REPRODUCED), reason


def added_questions_trade(r: dict):
    d = r["differences"]
    seen, unseen = d["vift_a_minus_vift_seen"], d["vift_a_minus_vift_unseen"]
    reason = f"questions added − not: families added {points(seen)}, other families {points(unseen)} points"
    return (REPRODUCED if seen["ci95"][0] > 0 > unseen["difference"] else NOT_REPRODUCED), reason


def goal_gap(r: dict):
    reached, captions = [gap["value"] for gap in r["gap_closed"]], asked(r, "caption_first")["seeds"]
    rounded = [None if value is None else round(value, 2) for value in reached]
    reason = f"gap closed by seed {rounded}; caption first {', '.join(percent(c) for c in captions)} % right"
    if None in reached:
        return UNTESTABLE, f"caption first is not above unfused in every seed; {reason}"
    return (MET if min(reached) >= 0.7 and min(captions) >= 0.7 else NOT_MET), reason


def goal_cost(r: dict):
    shares = one(r["cost"], condition="fused")["share_of_caption_first"]
    return (MET if max(shares) < 1 / 3 else NOT_MET), f"time to answer, fused / caption first, by seed {shares}"


def goal_controls(r: dict):
    deltas = minus(r, "blind", "wrong_image", "random_vectors")
    reason = "fused − " + "; − ".join(
        f"{name} {points(delta)} points, by seed {by_seed(delta)}" for name, delta in deltas.items()
    )
    seeds = [each for delta in deltas.values() for each in delta["seeds"]]
    met = all(each["difference"] >= 0.15 and each["ci95"][0] > 0 for each in seeds)
    return (MET if met else NOT_MET), reason


def beats_baselines(r: dict):
    """Baselines that need no caption (nor a training run), each at its best weight on validation."""
    deltas = minus(r, "logit_mix", "logit_contrast", "merged_weights")
    if pick(r["test"], condition="merged_layers"):  # its weights are searched for each layer, within [0, 1]
        deltas |= minus(r, "merged_layers")
    reason = differences(deltas)
    if not all(delta["ci95"][0] > 0 for delta in deltas.values()):
        return NOT_MET, reason
    tried = {
        name: some(r["validation"], sweep="weights", condition=name) for name in deltas if name != "merged_layers"
    }
    edge = [f"{name} {best(records)['weight']}" for name, records in tried.items() if at_edge(records, "weight")]
    if edge:
        return UNTESTABLE, f"the best weight is the last one tried ({', '.join(edge)}), more may be better; {reason}"
    return MET, reason


def more_than_mode(r: dict):
    """What would switch the model to answering without a word of the question's own text run."""
    deltas = minus(r, "other_question", "static_vector", "forced_first_token")
    before = asked(r, "unfused")["mean"]
    gain = asked(r, "fused")["mean"] - before
    if gain <= 0:
        return UNTESTABLE, f"fusion gains nothing that could be explained; {differences(deltas)}"
    shares = ", ".join(f"{name} {percent((asked(r, name)['mean'] - before) / gain)} %" for name in deltas)
    reason = f"{differences(deltas)}; share of the gain that each reaches: {shares}"
    return (MET if all(delta["ci95"][0] > 0 for delta in deltas.values()) else NOT_MET), reason


def read_below(r: dict):
    """Replacing the text tokens' states at a layer keeps what they read of the picture above it, and no more."""
    replaced = {int(record["layers"].split(":")[0]): record for record in some(r["validation"], sweep="replace")}
    low, high = min(replaced), max(replaced)
    middle = (high + 1) // 2  # the top half's first layer
    without = one(r["validation"], sweep="plain", condition="blind")["mean"]
    gain = replaced[low]["mean"] - without
    delta = replaced[middle]["minus_reference"]
    shares = ", ".join(percent(replaced[layer]["mean"]) for layer in (low, middle, high))
    reason = f"states replaced at layer {low}, {middle}, {high}: {shares} % right (blind {percent(without)} %)"
    if gain <= 0 or middle == low:
        return UNTESTABLE, f"nothing is lost that could be compared; {reason}"
    reason += (
        f"; at the top half's first layer {points(delta)} points, {percent(-delta['difference'] / gain)} % of what "
        "the picture adds: the text tokens read it below, and fusion overwrites that"
    )
    return (MET if delta["ci95"][1] < 0 else NOT_MET), reason


def goal_calibrate(r: dict):
    delta = r["calibrated_minus_tuned"]
    choices = [some(r["calibrate"], choice=choice) for choice in ("tuned", "calibrated")]
    same = sum(all(a[name] == b[name] for name in ("layers", "dose", "alpha")) for a, b in zip(*choices))
    reason = f"calibrated − tuned {points(delta)} points, by seed {by_seed(delta)}; the same setting in {same} seeds"
    return (MET if min(each["difference"] for each in delta["seeds"]) >= -0.02 else NOT_MET), reason


RULES = [
    ("a", "fusion turns captions into answers", fusion_helps),
    ("b", "the top half is the best place to fuse, far better than the lowest quarter", top_half_is_best),
    ("c1", "too small a β leaves captions", small_dose_captions),
    ("c2", "too large a β gives garbage", large_dose_garbage),
    ("c3", "α at or below 0.8 ends in refusals", small_alpha_refuses),
    (
        "d1",
        "ViFT beats visual instruction tuning on question families the latter never saw",
        partial(ahead, of="unseen"),
    ),
    ("d2", "ViFT is level with visual instruction tuning on families the latter was trained on", level_on_seen),
    ("d3", "ViFT goes on growing with data where visual instruction tuning does not", grows_with_data),
    (
        "d4",
        "ViFT keeps the text ability that visual instruction tuning loses",
        partial(ahead, of="text_ability", words="scene in words, "),
    ),
    ("e", "two stages cost less than one and lose nothing", two_stages_are_cheaper),
    ("f", "pure batches cost less than mixed ones and lose nothing", pure_is_cheaper),
    ("g", "ViFT-A: added visual questions help where they were added and hurt elsewhere", added_questions_trade),
    ("goal", "fusion closes at least 70 % of the distance to caption first, in every seed", goal_gap),
    ("goal", "at less than a third of its time to answer", goal_cost),
    ("goal", "at least 15 points over blind, wrong image and random vectors, in every seed", goal_controls),
    ("baselines", "better than mixing log-probabilities, either sign, and than merging weights", beats_baselines),
    ("mechanism", "the text run's content counts: better than what brings the mode alone", more_than_mode),
    ("mechanism", "why not the paper's layers: much of the picture is read below the top half", read_below),
    ("goal", "calibrate() within 2 points of the tuned setting, in every seed", goal_calibrate),
]
