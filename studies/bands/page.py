"""The page of the band study: figures from its steps, a plot, verdicts that follow from the figures by rule.

Verdicts compare arms pairwise with intervals over questions (seeds pooled), and show each seed: three runs an arm
differ by more than questions do. Arms that trained the same layers cannot be compared.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from vift_eval.answers.bootstrap import difference, interval
from vift_eval.files import made_line, markdown_table, read_json, save_figure
from vift_eval.plots import FAINT, LINES, STYLE, draw_mean, panels, plt
from vift_eval.plots import layer_words as plain_words

from ..answers import UNTESTABLE, held_out, hits, one, pick, points, pooled
from ..runner import made_of, write_results
from .study import ARMS, bands_of

SCORES = {
    "seen": "kinds trained on",
    "held_out": "kinds not trained on",
    "oracle_text": "scene in words, no picture",
}
MEANINGS = {"before": "stage 1, before tuning", **ARMS}
PAIRS = (
    ("rule", "full"), ("rule", "connector"), ("rule", "complement"), ("rule", "random"), ("late", "full"),
    ("middle", "full"), ("middle", "first"), ("middle", "top"), ("middle", "spaced"), ("late", "rule"),
    ("rule", "quarter"),
)  # fmt: skip


def of_score(rows: pd.DataFrame, arm: str, name: str) -> list[np.ndarray]:
    """`hits` of an arm for one of `SCORES`."""
    condition = "oracle_text" if name == "oracle_text" else "unfused"
    part = rows[(rows["arm"] == arm) & (rows["condition"] == condition)]
    if name != "oracle_text":
        out = [family in held_out(seed) for seed, family in zip(part["seed"], part["family"])]
        part = part[np.array(out) == (name == "held_out")]
    return hits(part)


def summary(values: list[np.ndarray]) -> dict:
    means = [round(float(one_seed.mean()), 4) for one_seed in values]
    return {"mean": round(float(np.mean(means)), 4), "seeds": means, "ci95": interval(pooled(values, False))}


def compared(first: list[np.ndarray], second: list[np.ndarray]) -> dict:
    by_seed = [round(float(a.mean() - b.mean()), 4) for a, b in zip(first, second)]
    return difference(pooled(first, False), pooled(second, False)) | {"seeds": by_seed}


def collect(work: Path, seeds) -> dict:
    """Everything that is done, as numbers.

    Raises:
        ValueError: no seed has answers yet.
    """
    folders = {seed: work / f"seed{seed}" / "bands" for seed in seeds}
    folders = {seed: folder for seed, folder in folders.items() if (folder / "answers.parquet").exists()}
    if not folders:
        raise ValueError(f"work={work}: no seed of {list(seeds)} has been measured yet")
    rows = pd.concat([pd.read_parquet(folder / "answers.parquet") for folder in folders.values()])
    layers = {seed: {"before": []} | bands_of(seed, work) for seed in folders}
    records = []
    for arm in MEANINGS:
        record = {"arm": arm, "layers": [layers[seed][arm] for seed in folders]}
        record |= {name: summary(of_score(rows, arm, name)) for name in SCORES}
        marks = [work / "steps" / f"seed{seed}.bands.{arm}.json" for seed in folders]
        if all(mark.exists() for mark in marks):
            record["cpu_seconds"] = [read_json(mark)["cpu_seconds"] for mark in marks]
        records.append(record)
    results = {
        "seeds": list(folders),
        "n": int(rows["question"].nunique()),
        "rules": [{"seed": seed, **read_json(folder / "band.json")} for seed, folder in folders.items()],
        "arms": records,
        "differences": [
            {"first": a, "second": b, "score": name, **compared(of_score(rows, a, name), of_score(rows, b, name))}
            for a, b in PAIRS
            for name in SCORES
        ],
    }
    cost = folders[min(folders)] / "cost.json"
    if cost.exists():
        results["cost"] = read_json(cost)
    return results | {"verdicts": verdicts(results)}


def verdicts(results: dict) -> list[dict]:
    """Each: claim, verdict, reason. "Level": the interval of the difference holds 0."""

    def delta(first: str, second: str, score: str) -> dict:
        return one(results["differences"], first=first, second=second, score=score)

    def level(first: str, second: str, score: str) -> str:
        if one(results["arms"], arm=first)["layers"] == one(results["arms"], arm=second)["layers"]:
            return UNTESTABLE
        low, high = delta(first, second, score)["ci95"]
        return "level" if low <= 0 <= high else "better" if low > 0 else "worse"

    def reason(first: str, second: str, score: str) -> str:
        gain = delta(first, second, score)
        seeds = ", ".join(f"{100 * value:+.1f}" for value in gain["seeds"])
        return f"{points(gain)} points, by seed {seeds}"

    def claim(text: str, first: str, second: str, *scores: str) -> dict:
        names = {"held_out": "held out ", "oracle_text": "in words "} if len(scores) > 1 else {}
        return {
            "claim": text,
            "verdict": " / ".join(level(first, second, score) for score in scores),
            "reason": "; ".join(names.get(score, "") + reason(first, second, score) for score in scores),
        }

    share = one(results["arms"], arm="rule")["seen"]["mean"] / one(results["arms"], arm="full")["seen"]["mean"]
    keeps = "training only the rule's band keeps the quality of full training (the paper: 98.8 to 100.4 %)"
    third = "a third of the layers: the middle"
    both = ("held_out", "oracle_text")
    rows = [
        claim(keeps, "rule", "full", "seen"),
        claim("and keeps more of what was there: held-out families, text ability", "rule", "full", *both),
        claim("the band matters: the layers outside it do worse", "rule", "complement", "seen"),
        claim("on held-out families the layers outside the band do worse", "rule", "complement", "held_out"),
        claim("the band is better than as many layers drawn at random", "rule", "random", "seen"),
        claim(f"{third} keeps more than the first (held-out families, text ability)", "middle", "first", *both),
        claim("the middle third keeps more text ability than full training", "middle", "full", "oracle_text"),
        *(claim(f"{third} is better than the {other} ones", "middle", other, "seen")
          for other in ("first", "top", "spaced")),
        claim("the late half does as well as full training (seen in the authors' early runs)", "late", "full", "seen"),
    ]  # fmt: skip
    if pick(results["arms"], arm="quarter"):
        rows.append(claim("the band is better than a quarter of the layers, evenly spaced", "rule", "quarter", "seen"))
    rows[0]["reason"] = f"{share:.1%} of full training on families trained on; {rows[0]['reason']}"
    if "cost" in results:
        cost = {record["arm"]: record for record in results["cost"]}
        step = {arm: f"{record['step']:.0%}" for arm, record in cost.items()}
        rows.append({
            "claim": "at less time per step (the paper: 75.7 to 86.1 %)",
            "verdict": "less" if cost["rule"]["step"] < 0.97 else "not less",
            "reason": f"CPU time of a step with the band {step['rule']} of full training, connector frozen too "
            f"{step['connector_frozen']}, a third in the middle {step['middle']}, top third {step['top']}; gradients "
            f"and AdamW's moments {cost['rule']['bytes'] / cost['full']['bytes']:.0%}",
        })  # fmt: skip
    return rows


def layer_words(layers: list) -> str:
    words = []
    for value in layers:
        if value is None:
            words.append("all, embeddings too")
        elif not value:
            words.append("none")
        else:
            whole = value == list(range(value[0], value[-1] + 1))
            words.append(f"{value[0]}:{value[-1] + 1}" if whole and len(value) > 1 else ",".join(map(str, value)))
    return words[0] if len(set(words)) == 1 else " / ".join(words)


def table(results: dict) -> str:
    cost, rows = {record["arm"]: record for record in results.get("cost", [])}, []
    for record in results["arms"]:
        arm, cells = record["arm"], []
        for name in SCORES:
            seeds = ", ".join(f"{100 * value:.0f}" for value in record[name]["seeds"])
            cells.append(f"{100 * record[name]['mean']:.1f} ({seeds})")
        if arm in cost:
            cells += [f"{cost[arm]['step']:.2f}", f"{cost[arm]['bytes'] / cost['full']['bytes']:.2f}"]
        rows.append([f"`{arm}`", layer_words(record["layers"]), *cells, *([""] * (bool(cost) * 5 - len(cells)))])
    head = ["arm", "layers trained", "seen %", "held out %", "scene in words %"]
    return markdown_table([*head, *(("step time", "state") if cost else ())], rows)


def draw(results: dict, folder: Path) -> None:
    records = sorted(results["arms"], key=lambda record: record["seen"]["mean"])
    chosen = ", ".join(plain_words(rule["band"]).removeprefix("layers ") for rule in results["rules"])
    told = (
        "Visual instruction tuning from the same start (grey), with only some layers of the language model trained. "
        f"Blue: the band that the rule of docs/layers.md chooses (layers {chosen} in the {len(results['seeds'])} "
        f"runs); orange: the whole language model. {results['n']} test questions of all kinds, unfused. Dot: mean. "
        "Bar: 95 % interval over questions. Black ticks: the runs. Three scales, none from zero."
    )
    with plt.rc_context(STYLE):
        size = (10.4, 0.34 * len(records) + 0.9)
        figure, (row_of_axes,) = panels("Right answers, by which layers are trained", told, size, 1, 3, sharey=True)
        for axes, (score, title) in zip(row_of_axes, SCORES.items()):
            for row, record in enumerate(records):
                color = {"rule": LINES[0], "full": LINES[1], "before": FAINT}.get(record["arm"], "#8d99a5")
                draw_mean(axes, row, record[score], color)
            axes.set_title(title)
            axes.set_xlabel("right answers in %")
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
        row_of_axes[0].set_yticks(range(len(records)), [MEANINGS[record["arm"]] for record in records])
        save_figure(figure, folder / "bands.png", results["made"], dpi=130)
    plt.close(figure)


def page(results: dict) -> str:
    meanings = "\n".join(f"- `{record['arm']}`: {MEANINGS[record['arm']]}" for record in results["arms"])
    rules = "\n".join(f"- seed {rule['seed']}: layers {rule['band']} ({rule['reason']})" for rule in results["rules"])
    claims = [[row["claim"], row["verdict"], row["reason"]] for row in results["verdicts"]]
    cost = (
        "Step time (CPU, arms in turn) and state (gradients, AdamW's moments) are shares of full training."
        if "cost" in results
        else "Step time and memory of the arms (step `cost` of the study) have not been measured yet."
    )
    return f"""# Which layers to train

Visual instruction tuning from the stage-1 checkpoint of {len(results["seeds"])} seeds, with only some layers of the
language model (and the connector) trained; otherwise the same data, rate and steps. {results["n"]} questions of the
test split, exact match without fusion; in brackets the seeds. {cost}

{table(results)}

![Right answers of each arm: mean with its interval over questions, ticks are seeds](bands.png)

{meanings}

`middle` lies where arXiv 2606.03871 found its bands. The rule ([docs/layers.md](../../layers.md)) chose, on 1000
scenes of the training split:

{rules}

{markdown_table(["claim", "here", "reason"], claims)}

Intervals are over questions; the seeds differ by more, so a difference whose sign changes between seeds is no finding.
The learning rate was chosen for full training, not for any band.

All figures: [bands.json](bands.json). Made by {made_line(results["made"])}
"""


def write_page(work: Path, output: Path, seeds) -> None:
    made = made_of("python -m vift_studies.bands", {f"seed{seed}": work / f"seed{seed}" / "stage1" for seed in seeds})
    write_results(output, "bands", made, collect(work, seeds), draw, page)
