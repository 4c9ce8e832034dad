"""Figures of the paper in a box, from the rows of its steps.

`collect` gathers them into one dict, docs/results/paper/results.json; a part whose steps are not done is missing.
Scores are over questions x seeds: mean, 95 % bootstrap interval over questions, one accuracy per seed, and the shares
of captions, wrong kinds, garbage and empty answers.
"""

from pathlib import Path

import pandas as pd

from modeling_vift import VIFTConfig
from vift_eval.answers.bootstrap import gap_closed
from vift_eval.files import read_json

from ..answers import held_out, hits, one, paired, pick, score, settings_of
from .plan import lowest_quarter, top_half
from .verdicts import best, verdicts

FUSION_FIELDS = tuple(f"fusion_{name}" for name in ("alpha", "beta", "dose", "layers", "rule", "span", "answer"))
SETTING = ["sweep", "condition", "layers", "dose", "alpha", "weight"]  # columns that identify one
# What the claims about training compare: two arms (training, divisor of the data), on which families, asked how
# (None: as the arm is asked, fused or not).
COMPARED = {
    "vift_minus_vit_unseen": (("vift", 1), ("vit", 1), "unseen", None),
    "vift_minus_vit_text_unseen": (("vift", 4), ("vit_text", 4), "unseen", None),
    "vift_minus_vit_seen": (("vift", 1), ("vit", 1), "seen", None),
    "vift_growth_unseen": (("vift", 1), ("vift", 16), "unseen", None),
    "vit_growth_unseen": (("vit", 1), ("vit", 16), "unseen", None),
    "vift_minus_vit_text_ability": (("vift", 1), ("vit", 1), "all", "oracle_text"),
    "vift_minus_vit_text_text_ability": (("vift", 4), ("vit_text", 4), "all", "oracle_text"),
    "two_minus_one_stage": (("vift", 4), ("one_stage", 4), "all", None),
    "pure_minus_mixed": (("vift", 4), ("mixed", 4), "all", None),
    "vift_a_minus_vift_seen": (("vift_a", 4), ("vift", 4), "seen", None),
    "vift_a_minus_vift_unseen": (("vift_a", 4), ("vift", 4), "unseen", None),
}


def load_rows(work: Path, seeds: list[int], kind: str) -> pd.DataFrame | None:
    """The rows of a measuring step over all seeds; None where it is not done for each."""
    files = [work / f"seed{seed}" / f"{kind}.parquet" for seed in seeds]
    if not all(file.exists() for file in files):
        return None
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)


def collect(work: Path, seeds: list[int]) -> dict:
    """Everything that the page shows."""
    marks = {mark.stem.replace(".", "/", 1): read_json(mark) for mark in sorted((work / "steps").glob("*.json"))}
    seconds = {step: mark["cpu_seconds"] for step, mark in sorted(marks.items()) if "cpu_seconds" in mark}
    rows = {kind: load_rows(work, seeds, kind) for kind in ("validation", "test", "calibrate", "cost", "arms")}
    results: dict = {"seeds": list(seeds), "cpu_seconds": seconds}
    if (model := work / f"seed{seeds[0]}" / "vift").is_dir():
        config = VIFTConfig.from_pretrained(model)
        results["num_layers"] = config.get_text_config().num_hidden_layers
        results["fusion"] = {name: getattr(config, name) for name in FUSION_FIELDS}
    if rows["validation"] is not None:
        results |= _validation(rows["validation"])
    if (work / "choose.json").exists():
        results["chosen"] = read_json(work / "choose.json")
    if rows["test"] is not None:
        results |= _test(rows["test"], results["num_layers"])
    if rows["cost"] is not None:
        results["cost"] = _cost(rows["cost"])
    if rows["calibrate"] is not None:
        results |= _calibrate(rows["calibrate"], seeds)
    if rows["arms"] is not None and rows["test"] is not None:
        results |= _arms(rows["arms"], rows["test"], seeds, seconds)
    return results | {"verdicts": verdicts(results)}


def _validation(rows: pd.DataFrame) -> dict:
    rows = rows[rows["sweep"] != "merged"]  # a search of each seed's own; what it found is in `chosen`
    groups = settings_of(rows, SETTING)
    records = [setting | score(group) for setting, group in groups]
    for record, (setting, group) in zip(records, groups):
        sweep = pick(records, sweep=setting["sweep"])
        if setting["sweep"] == "alpha":
            reference = one(sweep, layers=setting["layers"], alpha=1.0)
        elif setting["sweep"] == "dose":
            reference = best(pick(sweep, layers=setting["layers"]))
        elif setting["sweep"] == "replace":
            reference = sweep[0]  # the lowest layer
        else:
            continue
        record["minus_reference"] = paired(group, groups[records.index(reference)][1])
    return {"n_validation": int(rows["question"].nunique()), "validation": records}


def _test(rows: pd.DataFrame, num_layers: int) -> dict:
    groups = settings_of(rows, SETTING)
    by_condition = {setting["condition"]: group for setting, group in groups}
    bands = {setting["layers"]: group for setting, group in groups if setting["condition"] == "band"}
    records = []
    for setting, group in groups:
        record = setting | score(group)
        if setting["condition"] != "fused":
            record["fused_minus_this"] = paired(by_condition["fused"], group)
        records.append(record)
    three = zip(*(hits(by_condition[name]) for name in ("fused", "unfused", "caption_first")))
    top, low = bands[top_half(num_layers)], bands[lowest_quarter(num_layers)]
    return {
        "n_test": int(rows["question"].nunique()),
        "test": records,
        "gap_closed": [gap_closed(*one_seed) for one_seed in three],
        "top_half_minus_lowest_quarter": paired(top, low),
    }


def _cost(rows: pd.DataFrame) -> list[dict]:
    means = rows.groupby(["condition", "seed"], sort=False)[["ms", "tokens"]].mean().round(2)
    reached = means.loc["caption_first"]["ms"]
    return [
        {
            "condition": condition,
            "ms": round(float(part["ms"].mean()), 1),
            "tokens": round(float(part["tokens"].mean()), 1),
            "share_of_caption_first": [round(float(a / b), 3) for a, b in zip(part.loc[condition]["ms"], reached)],
        }
        for condition, part in means.groupby("condition", sort=False)
    ]


def _calibrate(rows: pd.DataFrame, seeds: list[int]) -> dict:
    choices = dict(list(rows.groupby("choice")))
    records = [
        {"seed": seed, **setting, "right": round(float(hits(group)[0].mean()), 4)}
        for seed in seeds
        for setting, group in settings_of(rows[rows["seed"] == seed], ["choice", *SETTING])
    ]
    return {
        "n_prompts": int(choices["teacher"]["question"].nunique()),
        "calibrate": records,
        "calibrated_minus_tuned": paired(choices["calibrated"], choices["tuned"]),
        **({"lens_minus_tuned": paired(choices["lens"], choices["tuned"])} if "lens" in choices else {}),
    }


def _arms(rows: pd.DataFrame, test: pd.DataFrame, seeds: list[int], seconds: dict) -> dict:
    """Scores on trained-on and held-out families, text ability, CPU seconds, and the differences that claims need."""
    whole = test[test["condition"].isin(["unfused", "fused", "oracle_text"])].assign(training="vift", divisor=1)
    rows = pd.concat([rows, whole], ignore_index=True)
    rows["unseen"] = [family in held_out(seed) for seed, family in zip(rows["seed"], rows["family"])]
    arms = {tuple(key): part for key, part in rows.groupby(["training", "divisor"], sort=False)}
    arms = {key: part for key, part in arms.items() if set(part["seed"]) == set(seeds)}

    def asked(arm: tuple, families: str = "all", condition: str | None = None) -> pd.DataFrame:
        part = arms[arm]
        condition = condition or ("fused" if "fused" in set(part["condition"]) else "unfused")
        part = part[part["condition"] == condition]
        return part if families == "all" else part[part["unseen"] == (families == "unseen")]

    records = [
        {
            "training": arm[0],
            "divisor": int(arm[1]),
            "condition": asked(arm)["condition"].iloc[0],
            **{families: score(asked(arm, families)) for families in ("all", "seen", "unseen")},
            "unfused": score(asked(arm, condition="unfused")),
            "oracle_text": score(asked(arm, condition="oracle_text")),
            "cpu_seconds": [seconds.get(f"seed{seed}/arm-{arm[0]}-{arm[1]}") for seed in seeds],
        }
        for arm in arms
    ]
    differences = {
        name: paired(asked(first, families, condition), asked(second, families, condition))
        for name, (first, second, families, condition) in COMPARED.items()
        if first in arms and second in arms
    }

    def net(step: str) -> float:
        """CPU seconds of a training step, all seeds, without start-up (that of the run on 1/64 of the data)."""
        return sum(seconds[f"seed{seed}/{step}"] - seconds[f"seed{seed}/arm-vift-64"] for seed in seeds)

    ratios = {}
    for name, ours, theirs in (
        ("mixed_over_pure", ("arm-mixed-4",), ("arm-vift-4",)),
        ("two_over_one_stage", ("stage1", "arm-vift-4"), ("arm-one_stage-4",)),
    ):
        needed = [f"seed{seed}/{step}" for seed in seeds for step in (*ours, *theirs, "arm-vift-64")]
        if all(step in seconds for step in needed):
            ratios[name] = round(sum(map(net, ours)) / sum(map(net, theirs)), 3)
    families = [list(held_out(seed)) for seed in seeds]
    return {"held_out": families, "arms": records, "differences": differences, "cpu_ratios": ratios}
