"""Verdicts of the paper in a box: one rule a claim, on the figures of `paper_figures.collect`.

A rule returns (verdict, reason); what it calls reproduced is stated in its code, with intervals, not by eye. Where
the failure that a claim is about hardly occurs, the claim cannot be tested; where figures are missing, the verdict
says so.
"""

REPRODUCED, NOT_REPRODUCED, UNTESTABLE = "reproduced", "not reproduced", "not testable at this scale"
MET, NOT_MET, MISSING = "met", "not met", "not measured"
RARE = 0.05  # a failure in less than one answer in twenty does not count as occurring


def best_key(group: dict, prefix: str) -> str:
    return max((key for key in group if key.startswith(prefix)), key=lambda key: group[key]["mean"])


def verdicts(results: dict) -> list[dict]:
    """[{"claim", "title", "verdict", "reason"}]."""
    return [{"claim": claim, "title": title, **judge(rule, results)} for claim, title, rule in RULES]


def judge(rule, results: dict) -> dict:
    try:
        verdict, reason = rule(results)
    except KeyError as missing:
        verdict, reason = MISSING, f"the steps that measure {missing.args[0]!r} are not done"
    return {"verdict": verdict, "reason": reason}


def points(delta: dict) -> str:
    low, high = delta["ci95"]
    return f"{100 * delta['difference']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def fusion_helps(r: dict):
    unfused, fused = r["ways"]["unfused"], r["ways"]["fused"]
    delta = unfused["fused_minus_this"]
    reason = (
        f"fused − unfused {points(delta)}, by seed {', '.join(points(d) for d in delta['seeds'])}; "
        f"captions without fusion {percent(unfused['captions'])}, with {percent(fused['captions'])}"
    )
    if delta["ci95"][0] > 0 and all(d["difference"] > 0 for d in delta["seeds"]):
        return REPRODUCED, reason
    if unfused["captions"] < RARE:
        return UNTESTABLE, f"the failure that fusion repairs hardly occurs; {reason}"
    return NOT_REPRODUCED, reason


def top_half_is_best(r: dict):
    delta = r["top_half_minus_lowest_quarter"]
    bands = {name.removeprefix("band "): way["mean"] for name, way in r["ways"].items() if name.startswith("band ")}
    best = max(bands, key=bands.get)
    reason = (
        f"top half − lowest quarter {points(delta)}, each at its best dose on validation; "
        f"the best band on test is {best} with {percent(bands[best])}"
    )
    return (REPRODUCED if delta["ci95"][0] > 0 else NOT_REPRODUCED), reason


def _sweep(r: dict, group: str, band: str) -> dict[float, dict]:
    entries = r["sweeps"][group].items()
    return {float(key.split()[1]): entry for key, entry in entries if key.split()[0] == band}


def small_dose_captions(r: dict):
    doses = _sweep(r, "dose", "top_half")
    low, best = min(doses), float(best_key(r["sweeps"]["dose"], "top_half").split()[1])
    before, after = doses[low]["captions"], doses[best]["captions"]
    reason = f"top half, captions at dose {low}: {percent(before)}; at the best dose {best}: {percent(after)}"
    if r["sweeps"]["plain"]["unfused"]["captions"] < RARE:
        return UNTESTABLE, f"captions hardly occur even without fusion; {reason}"
    return (REPRODUCED if before - after >= RARE else NOT_REPRODUCED), reason


def large_dose_garbage(r: dict):
    doses = _sweep(r, "dose", "top_half")
    high, best = max(doses), float(best_key(r["sweeps"]["dose"], "top_half").split()[1])
    bad = {d: doses[d]["garbage"] + doses[d]["wrong_kind"] + doses[d]["empty"] for d in (high, best)}
    delta = doses[high]["minus_reference"]
    reason = (
        f"top half, garbage, wrong kind or empty at dose {high}: {percent(bad[high])}, "
        f"at the best dose {best}: {percent(bad[best])}; right answers {points(delta)}"
    )
    return (REPRODUCED if bad[high] - bad[best] >= RARE and delta["ci95"][1] < 0 else NOT_REPRODUCED), reason


def small_alpha_refuses(r: dict):
    alphas = _sweep(r, "alpha", "top_half")
    least = min(alphas)
    reason = "top half: " + "; ".join(
        f"α {alpha} − α 1 {points(alphas[alpha]['minus_reference'])}, empty {percent(alphas[alpha]['empty'])}"
        for alpha in (0.8, least)
    )
    return (REPRODUCED if alphas[0.8]["minus_reference"]["ci95"][1] < 0 else NOT_REPRODUCED), reason


def with_text(delta: dict | None) -> str:
    return "" if delta is None else f"; at a quarter of the data, the latter with text batches, {points(delta)}"


def beats_on_unseen(r: dict):
    d = r["arms"]["differences"]
    delta = d["vift_minus_vit_unseen"]
    reason = f"ViFT − visual instruction tuning {points(delta)}" + with_text(d.get("vift_minus_vit_text_unseen"))
    return (REPRODUCED if delta["ci95"][0] > 0 else NOT_REPRODUCED), reason


def level_on_seen(r: dict):
    delta = r["arms"]["differences"]["vift_minus_vit_seen"]
    verdict = REPRODUCED if delta["ci95"][1] >= 0 else NOT_REPRODUCED
    return verdict, f"ViFT − visual instruction tuning {points(delta)}"


def grows_with_data(r: dict):
    d = r["arms"]["differences"]
    ours, theirs = d["vift_growth_unseen"], d["vit_growth_unseen"]
    reason = (
        f"families it never saw, all of the data − 1/16: ViFT {points(ours)}, "
        f"visual instruction tuning {points(theirs)}"
    )
    return (REPRODUCED if ours["ci95"][0] > 0 >= theirs["ci95"][0] else NOT_REPRODUCED), reason


def keeps_text(r: dict):
    d = r["arms"]["differences"]
    delta = d["vift_minus_vit_text_ability"]
    reason = f"scene in words, ViFT − visual instruction tuning {points(delta)}"
    reason += with_text(d.get("vift_minus_vit_text_text_ability"))
    return (REPRODUCED if delta["ci95"][0] > 0 else NOT_REPRODUCED), reason


def two_stages_are_cheaper(r: dict):
    delta, ratio = r["arms"]["differences"]["two_minus_one_stage"], r["arms"]["two_over_one_stage_cpu"]
    reason = f"two stages take {ratio:.2f} of one stage's CPU time; two − one {points(delta)}"
    return (REPRODUCED if ratio <= 0.85 and delta["ci95"][1] >= 0 else NOT_REPRODUCED), reason


def pure_is_cheaper(r: dict):
    delta, ratio = r["arms"]["differences"]["pure_minus_mixed"], r["arms"]["mixed_over_pure_cpu"]
    reason = f"mixed batches take {ratio:.2f} of pure ones' CPU time; pure − mixed {points(delta)}"
    return (REPRODUCED if ratio > 1 and delta["ci95"][1] >= 0 else NOT_REPRODUCED), reason


def added_questions_trade(r: dict):
    d = r["arms"]["differences"]
    seen, unseen = d["vift_a_minus_vift_seen"], d["vift_a_minus_vift_unseen"]
    reason = f"questions added − not: families added {points(seen)}, other families {points(unseen)}"
    return (REPRODUCED if seen["ci95"][0] > 0 > unseen["difference"] else NOT_REPRODUCED), reason


def goal_gap(r: dict):
    reached = [None if value is None else round(value, 2) for value in r["gap_closed"]]
    captions = r["ways"]["caption_first"]["seeds"]
    reason = f"gap closed by seed {reached}; caption first {', '.join(percent(c) for c in captions)} right"
    met = all(value is not None and value >= 0.7 for value in r["gap_closed"]) and min(captions) >= 0.7
    return (MET if met else NOT_MET), reason


def goal_cost(r: dict):
    shares = r["cost"]["fused"]["share_of_caption_first"]
    return (MET if max(shares) < 1 / 3 else NOT_MET), f"time to answer, fused / caption first, by seed {shares}"


def goal_controls(r: dict):
    deltas = {way: r["ways"][way]["fused_minus_this"] for way in ("blind", "wrong_image", "random_vectors")}
    parts = []
    for way, delta in deltas.items():
        by_seed = ", ".join(f"{100 * d['difference']:+.1f}" for d in delta["seeds"])
        parts.append(f"{way} {points(delta)}, by seed {by_seed}")
    reason = "fused − " + "; − ".join(parts)
    seeds = [d for delta in deltas.values() for d in delta["seeds"]]
    return (MET if all(d["difference"] >= 0.15 and d["ci95"][0] > 0 for d in seeds) else NOT_MET), reason


def beats_rivals(r: dict):
    """Rivals that need no caption (nor a training run)."""
    deltas = {way: r["ways"][way]["fused_minus_this"] for way in ("logit_mix", "logit_contrast", "merged_weights")}
    reason = "fused − " + "; − ".join(f"{way} {points(delta)}" for way, delta in deltas.items())
    return (MET if all(delta["ci95"][0] > 0 for delta in deltas.values()) else NOT_MET), reason


def more_than_mode(r: dict):
    """What would switch the model to answering without a word of the question's own text run."""
    ways = ("other_question", "static_vector", "forced_first_token")
    deltas = {way: r["ways"][way]["fused_minus_this"] for way in ways}
    gain = r["ways"]["fused"]["mean"] - r["ways"]["unfused"]["mean"]
    shares = [
        f"{way} {percent((r['ways'][way]['mean'] - r['ways']['unfused']['mean']) / gain)}" for way in ways if gain
    ]
    reason = "fused − " + "; − ".join(f"{way} {points(delta)}" for way, delta in deltas.items())
    reason += f"; share of the gain that each reaches: {', '.join(shares) or 'no gain'}"
    return (MET if all(delta["ci95"][0] > 0 for delta in deltas.values()) else NOT_MET), reason


def read_below_the_top_half(r: dict):
    """Replacing the text tokens' states at a layer keeps what they read of the picture above it, and no more."""
    replaced = {int(key.split(":")[0]): entry for key, entry in r["sweeps"]["replace"].items()}
    low, high = min(replaced), max(replaced)
    middle = (high + 1) // 2  # the top half's first layer
    blind = r["sweeps"]["plain"]["blind"]["mean"]
    gain = replaced[low]["mean"] - blind
    delta = replaced[middle]["minus_reference"]
    lost = f", {percent(-delta['difference'] / gain)} of what the picture adds" if gain > 0 else ""
    reason = (
        f"states replaced at layer {low}, {middle}, {high}: {percent(replaced[low]['mean'])}, "
        f"{percent(replaced[middle]['mean'])}, {percent(replaced[high]['mean'])} right (blind {percent(blind)}); at "
        f"the top half's first layer {points(delta)}{lost}: the text tokens read it below, and fusion overwrites that"
    )
    return (MET if delta["ci95"][1] < 0 else NOT_MET), reason


def goal_calibrate(r: dict):
    delta = r["calibrate"]["calibrated_minus_tuned"]
    seeds = [d["difference"] for d in delta["seeds"]]
    reason = f"calibrated − tuned {points(delta)}, by seed {', '.join(f'{100 * d:+.1f}' for d in seeds)}"
    return (MET if min(seeds) >= -0.02 else NOT_MET), reason


RULES = [
    ("a", "fusion turns captions into answers", fusion_helps),
    ("b", "the top half is the best place to fuse, far better than the lowest quarter", top_half_is_best),
    ("c1", "too small a β leaves captions", small_dose_captions),
    ("c2", "too large a β gives garbage", large_dose_garbage),
    ("c3", "α at or below 0.8 ends in refusals", small_alpha_refuses),
    ("d1", "ViFT beats visual instruction tuning on question families the latter never saw", beats_on_unseen),
    ("d2", "ViFT is level with visual instruction tuning on families the latter was trained on", level_on_seen),
    ("d3", "ViFT goes on growing with data where visual instruction tuning does not", grows_with_data),
    ("d4", "ViFT keeps the text ability that visual instruction tuning loses", keeps_text),
    ("e", "two stages cost less than one and lose nothing", two_stages_are_cheaper),
    ("f", "pure batches cost less than mixed ones and lose nothing", pure_is_cheaper),
    ("g", "ViFT-A: added visual questions help where they were added and hurt elsewhere", added_questions_trade),
    ("goal", "fusion closes at least 70 % of the distance to caption first, in every seed", goal_gap),
    ("goal", "at less than a third of its time to answer", goal_cost),
    ("goal", "at least 15 points over blind, wrong image and random vectors, in every seed", goal_controls),
    ("rivals", "better than mixing log-probabilities, either sign, and than merging weights", beats_rivals),
    ("mechanism", "the text run's content counts: better than what brings the mode alone", more_than_mode),
    (
        "mechanism",
        "why not the paper's layers: much of the picture is read below the top half",
        read_below_the_top_half,
    ),
    ("goal", "calibrate() within 2 points of the tuned setting, in every seed", goal_calibrate),
]
