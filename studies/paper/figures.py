"""Figures of the paper in a box, from the results of its steps.

`collect` gathers them into one dict, docs/results/paper/results.json; a part whose steps are not done is missing. Scores are
over questions x seeds: mean, 95 % bootstrap interval over questions, one accuracy a seed, and the shares of captions,
wrong kinds, garbage and empty answers.
"""

import json
from pathlib import Path

import numpy as np

from vift_eval.answers.bootstrap import difference, gap_closed, interval

from .verdicts import best_key, verdicts

# what the claims about training compare, on which families (and asked how)
COMPARED = {
    "vift_minus_vit_unseen": ("vift-1", "vit-1", "unseen"),
    "vift_minus_vit_text_unseen": ("vift-4", "vit_text-4", "unseen"),
    "vift_minus_vit_seen": ("vift-1", "vit-1", "seen"),
    "vift_growth_unseen": ("vift-1", "vift-16", "unseen"),
    "vit_growth_unseen": ("vit-1", "vit-16", "unseen"),
    "vift_minus_vit_text_ability": ("vift-1", "vit-1", "all", "gold"),
    "vift_minus_vit_text_text_ability": ("vift-4", "vit_text-4", "all", "gold"),
    "two_minus_one_stage": ("vift-4", "one_stage-4", "all"),
    "pure_minus_mixed": ("vift-4", "mixed-4", "all"),
    "vift_a_minus_vift_seen": ("vift_a-4", "vift-4", "seen"),
    "vift_a_minus_vift_unseen": ("vift_a-4", "vift-4", "unseen"),
}
SHARES = {"captions": "c", "wrong_kind": "k", "garbage": "g", "empty": "e"}


def hits(letters: str) -> np.ndarray:
    return np.array([letter == "r" for letter in letters], dtype=float)


def score(seeds: list[str]) -> dict:
    """Of one string of outcome letters a seed."""
    values = [hits(letters) for letters in seeds]
    same = len({len(v) for v in values}) == 1
    pooled = np.array(values) if same else np.concatenate(values)
    everything = "".join(seeds)
    shares = {name: round(everything.count(letter) / len(everything), 4) for name, letter in SHARES.items()}
    return {
        "seeds": [round(float(v.mean()), 4) for v in values],
        "mean": round(float(np.mean([v.mean() for v in values])), 4),
        "ci95": interval(pooled),
        **shares,
    }


def paired(first: list[str], second: list[str]) -> dict:
    """Difference of two ways, pooled with its interval, and by seed with theirs."""
    a, b = [hits(x) for x in first], [hits(x) for x in second]
    by_seed = [difference(x, y) for x, y in zip(a, b)]
    same = len({len(x) for x in a}) == 1
    pooled = difference(np.array(a), np.array(b)) if same else difference(np.concatenate(a), np.concatenate(b))
    return pooled | {"seeds": by_seed}


def load_steps(work: Path, seeds: list[int]) -> dict:
    """kind -> one result a seed, for the kinds that are done for all seeds; `cpu`: step -> CPU seconds."""
    found: dict = {"cpu": {}}
    for mark in (work / "steps").glob("*.json"):
        if (seconds := json.loads(mark.read_text()).get("cpu_seconds")) is not None:
            found["cpu"][mark.stem.replace(".", "/", 1)] = seconds
    for kind in ("validation", "test", "calibrate", "cost", "arms"):
        files = [work / f"seed{seed}" / f"{kind}.json" for seed in seeds]
        if all(file.exists() for file in files):
            found[kind] = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if (work / "choose.json").exists():
        found["choose"] = json.loads((work / "choose.json").read_text(encoding="utf-8"))
    return found


def collect(work: Path, seeds: list[int]) -> dict:
    """Everything that the page shows."""
    steps = load_steps(work, seeds)
    results: dict = {"seeds": list(seeds), "cpu_seconds": dict(sorted(steps["cpu"].items()))}
    if "validation" in steps:
        results |= _validation(steps["validation"])
    if "choose" in steps:
        results["chosen"] = steps["choose"]
    if "test" in steps:
        results |= _test(steps["test"])
    if "cost" in steps:
        results["cost"] = _cost(steps["cost"])
    if "calibrate" in steps:
        results["calibrate"] = _calibrate(steps["calibrate"])
    if "arms" in steps and "test" in steps:
        results["arms"] = _arms(steps, seeds)
    return results | {"verdicts": verdicts(results)}


def _letters(results: list[dict], *path: str) -> list[str]:
    found = results
    for key in path:
        found = [entry[key] for entry in found]
    return found


def _validation(seeds: list[dict]) -> dict:
    sweeps = {
        group: {key: score(_letters(seeds, group, key)) for key in seeds[0][group]}
        for group in ("plain", "bands", "replace", "alpha", "dose", "rivals", "static")
    }
    for group in ("alpha", "dose"):  # against alpha 1, and against the best dose
        for key, entry in sweeps[group].items():
            band = key.split()[0]
            reference = f"{band} 1.0" if group == "alpha" else best_key(sweeps["dose"], f"{band} ")
            entry["minus_reference"] = paired(_letters(seeds, group, key), _letters(seeds, group, reference))
    first = next(iter(seeds[0]["replace"]))  # against the lowest layer
    for key, entry in sweeps["replace"].items():
        entry["minus_reference"] = paired(_letters(seeds, "replace", key), _letters(seeds, "replace", first))
    return {"n_validation": len(seeds[0]["plain"]["fused"]), "fusion": seeds[0]["fusion"], "sweeps": sweeps}


def _test(seeds: list[dict]) -> dict:
    ways = {}
    fused = _letters(seeds, "ways", "fused")
    for way in seeds[0]["ways"]:
        letters = _letters(seeds, "ways", way)
        ways[way] = score(letters)
        if way != "fused":
            ways[way]["fused_minus_this"] = paired(fused, letters)
    gaps = [
        gap_closed(*(hits(entry["ways"][way]) for way in ("fused", "unfused", "caption_first"))) for entry in seeds
    ]
    bands = {name: _letters(seeds, "ways", name) for name in seeds[0]["ways"] if name.startswith("band ")}
    order = sorted(bands, key=lambda name: tuple(map(int, name.split()[1].split(":"))))
    last = max(int(name.split(":")[1]) for name in order)
    top, low = f"band {last // 2}:{last}", f"band 0:{max(1, last // 4)}"
    return {
        "n_test": len(fused[0]),
        "ways": ways,
        "gap_closed": [gap["value"] for gap in gaps],
        "gap_closed_ci95": [gap["ci95"] for gap in gaps],
        "top_half_minus_lowest_quarter": paired(bands[top], bands[low]),
    }


def _cost(seeds: list[dict]) -> dict:
    return {
        way: {
            "cpu_ms": round(float(np.mean([entry["ways"][way]["cpu_ms"] for entry in seeds])), 1),
            "tokens": round(float(np.mean([entry["ways"][way]["tokens"] for entry in seeds])), 1),
            "share_of_caption_first": [
                round(entry["ways"][way]["cpu_ms"] / entry["ways"]["caption_first"]["cpu_ms"], 3) for entry in seeds
            ],
        }
        for way in seeds[0]["ways"]
    }


def _calibrate(seeds: list[dict]) -> dict:
    ways = {name: _letters(seeds, "ways", name) for name in ("tuned", "calibrated")}
    return {
        "settings": [entry["settings"] for entry in seeds],
        "n_prompts": len(seeds[0]["teacher"]),
        "teacher_right": [round(float(hits(entry["teacher"]).mean()), 4) for entry in seeds],
        **{name: score(letters) for name, letters in ways.items()},
        "calibrated_minus_tuned": paired(ways["calibrated"], ways["tuned"]),
    }


def _arms(steps: dict, seeds: list[int]) -> dict:
    """Scores on trained-on and held-out families, text ability, CPU seconds, and the differences that claims need."""
    entries = steps["arms"]
    done = [arm for arm in entries[0]["arms"] if all(arm in entry["arms"] for entry in entries)]
    letters = {arm: {way: _letters(entries, "arms", arm, way) for way in entries[0]["arms"][arm]} for arm in done}
    letters["vift-1"] = {way: _letters(steps["test"], "ways", way) for way in ("unfused", "fused", "gold")}

    def part(strings: list[str], unseen: bool) -> list[str]:
        return [
            "".join(c for c, family in zip(string, entry["families"]) if (family in entry["held_out"]) is unseen)
            for string, entry in zip(strings, entries)
        ]

    table = {}
    for arm, ways in letters.items():
        main = ways["fused" if "fused" in ways else "unfused"]
        table[arm] = {
            "way": "fused" if "fused" in ways else "unfused",
            "all": score(main),
            "seen": score(part(main, False)),
            "unseen": score(part(main, True)),
            "unfused": score(ways["unfused"]),
            "gold": score(ways["gold"]),
            "cpu_seconds": [steps["cpu"].get(f"seed{seed}/arm-{arm}") for seed in seeds],
        }

    def compare(first: str, second: str, which: str, way: str | None = None) -> dict:
        chosen = [letters[arm][way or table[arm]["way"]] for arm in (first, second)]
        if which != "all":
            chosen = [part(strings, which == "unseen") for strings in chosen]
        return paired(*chosen)

    differences = {
        name: compare(first, second, *which)
        for name, (first, second, *which) in COMPARED.items()
        if first in letters and second in letters
    }
    found = {"held_out": [entry["held_out"] for entry in entries], "table": table, "differences": differences}

    def net(step: str) -> float:
        """CPU seconds of a training step, all seeds, without start-up (that of the run on 1/64 of the data)."""
        return sum(steps["cpu"][f"seed{seed}/{step}"] - steps["cpu"][f"seed{seed}/arm-vift-64"] for seed in seeds)

    for name, ours, theirs in (
        ("mixed_over_pure_cpu", ("arm-mixed-4",), ("arm-vift-4",)),
        ("two_over_one_stage_cpu", ("stage1", "arm-vift-4"), ("arm-one_stage-4",)),
    ):
        needed = [f"seed{seed}/{step}" for seed in seeds for step in (*ours, *theirs, "arm-vift-64")]
        if all(step in steps["cpu"] for step in needed):
            found[name] = round(sum(map(net, ours)) / sum(map(net, theirs)), 3)
    return found
