"""The page of the band study: figures from its steps, a plot, verdicts that follow from the figures by rule.

Verdicts compare arms pairwise with intervals over questions (seeds pooled), and show each seed: three runs an arm
differ by more than questions do.
"""

import json
import platform
from pathlib import Path

import matplotlib
import numpy as np

from vift_eval.answers.bootstrap import difference, interval

from ..paper.plan import write_json
from .study import ARMS

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

from vift_eval.plots import LINES, STYLE  # noqa: E402

SCORES = {
    "seen": "question families it was trained on",
    "held_out": "families it was not trained on",
    "gold": "the scene in words (text ability)",
}
COST = {
    True: "Step time (CPU, arms in turn) and state (gradients, AdamW's moments) are shares of full training.",
    False: "Step time and memory of the arms (step `cost` of the study) have not been measured yet.",
}
PAIRS = (
    ("rule", "full"), ("rule", "connector"), ("rule", "complement"), ("rule", "random"), ("late", "full"),
    ("middle", "full"), ("middle", "first"), ("middle", "top"), ("middle", "spaced"), ("late", "rule"),
)  # fmt: skip


def hits(found: dict, arm: str, score: str) -> np.ndarray:
    """1 and 0, a question each, of one seed."""
    letters = found["arms"][arm]["gold" if score == "gold" else "unfused"]
    held_out = [family in found["held_out"] for family in found["families"]]
    chosen = [score == "gold" or out == (score == "held_out") for out in held_out]
    return np.array([letter == "r" for letter, kept in zip(letters, chosen) if kept], dtype=float)


def collect(work: Path, seeds) -> dict:
    """Everything that is done, as numbers.

    Raises:
        ValueError: no seed has answers yet.
    """
    answers = {seed: work / f"seed{seed}" / "bands" / "answers.json" for seed in seeds}
    answers = {seed: json.loads(file.read_text(encoding="utf-8")) for seed, file in answers.items() if file.exists()}
    if not answers:
        raise ValueError(f"work={work}: no seed of {list(seeds)} has been measured yet")
    rules = {seed: json.loads((work / f"seed{seed}" / "bands" / "band.json").read_text()) for seed in answers}
    results = {"seeds": list(answers), "rules": rules, "arms": {}, "differences": {}}
    for arm in ("before", *ARMS):
        entry = {"layers": {seed: found["layers"].get(arm, []) for seed, found in answers.items()}}
        for score in SCORES:
            rows = [hits(found, arm, score) for found in answers.values()]
            pooled = np.concatenate(rows)
            seed_means = [round(float(row.mean()), 4) for row in rows]
            entry[score] = {
                "mean": round(float(np.mean(seed_means)), 4),
                "seeds": seed_means,
                "ci95": interval(pooled),
            }
        marks = [work / "steps" / f"seed{seed}.bands.{arm}.json" for seed in answers]
        if all(mark.exists() for mark in marks):
            entry["cpu_seconds"] = [json.loads(mark.read_text(encoding="utf-8"))["cpu_seconds"] for mark in marks]
        results["arms"][arm] = entry
    for first, second in PAIRS:
        results["differences"][f"{first} - {second}"] = {
            score: difference(
                *(np.concatenate([hits(f, arm, score) for f in answers.values()]) for arm in (first, second))
            )
            | {
                "seeds": [
                    round(float(hits(f, first, score).mean() - hits(f, second, score).mean()), 4)
                    for f in answers.values()
                ]
            }
            for score in SCORES
        }
    cost = work / f"seed{min(answers)}" / "bands" / "cost.json"
    if cost.exists():
        results["cost"] = json.loads(cost.read_text(encoding="utf-8"))
    results["n"] = len(next(iter(answers.values()))["families"])
    results["machine"] = f"{platform.machine()}, Python {platform.python_version()}, one thread a run"
    results["verdicts"] = verdicts(results)
    return results


def points(entry: dict) -> str:
    low, high = entry["ci95"]
    seeds = ", ".join(f"{100 * value:+.1f}" for value in entry["seeds"])
    return f"{100 * entry['difference']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], by seed {seeds}"


def verdicts(results: dict) -> list[dict]:
    """Each: claim, verdict, reason. "Level": the interval of the difference holds 0."""
    found, arms = results["differences"], results["arms"]

    def level(pair: str, score: str) -> str:
        low, high = found[pair][score]["ci95"]
        return "level" if low <= 0 <= high else "better" if low > 0 else "worse"

    share = arms["rule"]["seen"]["mean"] / arms["full"]["seen"]["mean"]
    rows = [
        {
            "claim": "training only the rule's band keeps the quality of full training (the paper: 98.8 to 100.4 %)",
            "verdict": level("rule - full", "seen"),
            "reason": f"{share:.1%} of full training on families trained on; {points(found['rule - full']['seen'])}",
        },
        {
            "claim": "and keeps more of what was there: held-out families, text ability",
            "verdict": f"{level('rule - full', 'held_out')} / {level('rule - full', 'gold')}",
            "reason": f"held out {points(found['rule - full']['held_out'])}; "
            f"in words {points(found['rule - full']['gold'])}",
        },
        {
            "claim": "the band matters: the layers outside it do worse",
            "verdict": level("rule - complement", "seen"),
            "reason": points(found["rule - complement"]["seen"]),
        },
        {
            "claim": "on held-out families the layers outside the band do worse",
            "verdict": level("rule - complement", "held_out"),
            "reason": points(found["rule - complement"]["held_out"]),
        },
        {
            "claim": "the band is better than as many layers drawn at random",
            "verdict": level("rule - random", "seen"),
            "reason": points(found["rule - random"]["seen"]),
        },
        {
            "claim": "a third of the layers: the middle keeps more than the first (held-out families, text ability)",
            "verdict": f"{level('middle - first', 'held_out')} / {level('middle - first', 'gold')}",
            "reason": f"held out {points(found['middle - first']['held_out'])}; "
            f"in words {points(found['middle - first']['gold'])}",
        },
        {
            "claim": "the middle third keeps more text ability than full training",
            "verdict": level("middle - full", "gold"),
            "reason": points(found["middle - full"]["gold"]),
        },
    ]
    for pair in ("middle - first", "middle - top", "middle - spaced"):
        other = pair.split(" - ")[1]
        rows.append(
            {
                "claim": f"a third of the layers: the middle is better than the {other} ones",
                "verdict": level(pair, "seen"),
                "reason": points(found[pair]["seen"]),
            }
        )
    rows.append(
        {
            "claim": "the late half does as well as full training (seen in the authors' early runs)",
            "verdict": level("late - full", "seen"),
            "reason": points(found["late - full"]["seen"]),
        }
    )
    if "cost" in results:
        cost = results["cost"]
        rows.append(
            {
                "claim": "at less time a step (the paper: 75.7 to 86.1 %)",
                "verdict": "less" if cost["rule"]["step"] < 0.97 else "not less",
                "reason": f"CPU time of a step with the band {cost['rule']['step']:.0%} of full training, connector "
                f"frozen too "
                f"{cost['connector_frozen']['step']:.0%}, a third in the middle {cost['middle']['step']:.0%}, top "
                f"third "
                f"{cost['top']['step']:.0%}; gradients and AdamW's moments "
                f"{cost['rule']['bytes'] / cost['full']['bytes']:.0%}",
            }
        )
    return rows


def layer_words(layers: dict) -> str:
    words = []
    for value in layers.values():
        if value is None:
            words.append("all, embeddings too")
        elif not value:
            words.append("none")
        else:
            whole = value == list(range(value[0], value[-1] + 1))
            words.append(f"{value[0]}:{value[-1] + 1}" if whole and len(value) > 1 else ",".join(map(str, value)))
    return words[0] if len(set(words)) == 1 else " / ".join(words)


def table(results: dict) -> str:
    head = ["arm", "layers trained", *(f"{name.replace('_', ' ')} %" for name in SCORES)]
    head += ["step time", "state"] if "cost" in results else []
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    cost = results.get("cost", {})
    for arm, entry in results["arms"].items():
        cells = []
        for score in SCORES:
            seeds = ", ".join(f"{100 * value:.0f}" for value in entry[score]["seeds"])
            cells.append(f"{100 * entry[score]['mean']:.1f} ({seeds})")
        if cost:
            cells.append(f"{cost[arm]['step']:.2f}" if arm in cost else "")
            cells.append(f"{cost[arm]['bytes'] / cost['full']['bytes']:.2f}" if arm in cost else "")
        lines.append(f"| `{arm}` | {layer_words(entry['layers'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: dict, file: Path) -> None:
    arms = sorted(results["arms"], key=lambda arm: results["arms"][arm]["seen"]["mean"])
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 3, figsize=(10, 0.33 * len(arms) + 1.1), layout="constrained", sharey=True)
        for axes, (score, title) in zip(panels, SCORES.items()):
            for row, arm in enumerate(arms):
                entry = results["arms"][arm][score]
                color = {"rule": LINES[0], "full": LINES[2], "before": "#888888"}.get(arm, LINES[1])
                low, high = entry["ci95"]
                axes.plot([100 * low, 100 * high], [row, row], color=color, linewidth=2.5)
                axes.plot(100 * entry["mean"], row, "o", color=color, markersize=6)
                axes.plot(
                    [100 * v for v in entry["seeds"]], [row] * len(entry["seeds"]), "|", color="black", markersize=8
                )
            axes.set_title(title, fontsize=9, loc="left")
            axes.set_xlabel("right answers in %")
        panels[0].set_yticks(range(len(arms)), arms)
        figure.savefig(file, dpi=130)
    plt.close(figure)


def page(results: dict) -> str:
    meanings = "\n".join(f"- `{arm}`: {words}" for arm, words in {"before": "stage 1, before tuning", **ARMS}.items())
    rules = "\n".join(
        f"- seed {seed}: layers {rule['band']} ({rule['reason']})" for seed, rule in results["rules"].items()
    )
    claims = "\n".join(f"| {row['claim']} | {row['verdict']} | {row['reason']} |" for row in results["verdicts"])
    return f"""# Which layers to train

Visual instruction tuning from the stage-1 checkpoint of {len(results["seeds"])} seeds, with only some layers of the
language model (and the connector) trained; otherwise the same data, rate and steps. {results["n"]} questions of the
test split, exact match without fusion; in brackets the seeds. {COST["cost" in results]}

{table(results)}

![Right answers of each arm: mean with its interval over questions, ticks are seeds](bands.png)

{meanings}

The rule ([docs/layers.md](../../layers.md)) chose, on 1000 scenes of the training split:

{rules}

| claim | here | reason |
|---|---|---|
{claims}

Intervals are over questions; the seeds differ by more, so a difference whose sign changes between seeds is no finding.
The learning rate was chosen for full training, not for any band.

Made by `python -m vift_studies.bands.study` ({results["machine"]}); all figures: [bands.json](bands.json).
"""


def write_page(work: Path, output: Path, seeds) -> None:
    results = collect(work, seeds)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "bands.json", results)
    draw(results, output / "bands.png")
    (output / "README.md").write_text(page(results), encoding="utf-8")
