"""docs/results/smol: smol.json, README.md and answers.png, from the rows of the steps that are done."""

from pathlib import Path

import pandas as pd

from vift_eval.files import made_line, markdown_table, read_json, save_figure, write_json
from vift_eval.plots import LINES, STYLE, draw_mean, panels, plt

from ..answers import paired, percent, points, score, with_interval
from ..runner import made_of, write_results

WAYS = {  # of asking, in words, the paper's own settings first
    "paper_literal": "fused: α = 1, β = 0.1, top half (the paper's values)",
    "paper_literal_0.15": "fused: α = 1, β = 0.15, top half (the paper's values)",
    "paper_additive": "fused: the same, β = 0.1, the released code's sum",
    "paper_form": "fused: α = 1, top half, β from validation",
    "band": "fused: α = 1, layers and dose from validation",
    "free": "fused: everything from validation",
    "calibrated": "fused: as calibrate() chose, without labels",
    "unfused": "the picture and the question, not fused",
    "blind": "the question alone, no picture",
    "caption_first": "its own caption first, then the question in words",
    "oracle_text": "the scene in words, no picture",
    "wrong_image": "fused as in the paper's form, another picture",
    "wrong_image_literal": "fused with β = 0.1, another picture",
    "other_question": "fused, the text run of another question",
    "random_vectors": "fused, random vectors in the place of the text run",
    "static_vector": "fused, one mean text run for all questions",
    "logit_mix": "log-probabilities with and without picture, mixed",
    "merged_weights": "weights merged with those before training",
    "merged_layers": "weights merged, another share in each layer",
}
GOALS = {  # of the paper's form, each in every seed
    "fused_minus_unfused": (20.0, "at least 20 points over unfused"),
    "captions_fused": (10.0, "at most 10 % captions"),
    "fused_minus_blind": (15.0, "at least 15 points over the question alone"),
    "fused_minus_wrong_image": (15.0, "at least 15 points over another picture"),
    "share_of_caption_first": (0.7, "at least 0.7 of caption first"),
    "time_over_caption_first": (1 / 3, "at most a third of its time"),
}
FAMILY_COLUMNS = {
    "unfused": "unfused", "blind": "question alone", "paper_form": "paper's form", "free": "free",
    "caption_first": "caption first", "oracle_text": "scene in words",
}  # fmt: skip
AT_MOST = ("captions_fused", "time_over_caption_first")


def right(rows: pd.DataFrame, way: str) -> float:
    """Of the answers, in points."""
    return 100 * float(rows.loc[rows["condition"].eq(way), "outcome"].eq("right").mean())


def figures(test: pd.DataFrame, cost: pd.DataFrame, way: str, wrong: str, seeds: list[int]) -> dict:
    """What the goals are about, of one way to fuse: a number a seed, in points (shares: 0 to 1)."""
    found: dict[str, list] = {name: [] for name in GOALS}
    for seed in seeds:
        rows, times = test[test["seed"].eq(seed)], cost[cost["seed"].eq(seed)]
        fused, first = right(rows, way), right(rows, "caption_first")
        found["fused_minus_unfused"].append(fused - right(rows, "unfused"))
        captions = rows.loc[rows["condition"].eq(way), "outcome"].eq("caption")
        found["captions_fused"].append(100 * float(captions.mean()))
        found["fused_minus_blind"].append(fused - right(rows, "blind"))
        found["fused_minus_wrong_image"].append(fused - right(rows, wrong))
        found["share_of_caption_first"].append(fused / first if first else None)
        spent = times.groupby("condition")["ms"].sum()
        found["time_over_caption_first"].append(float(spent[way] / spent["caption_first"]))
    return {name: [None if one is None else round(one, 4) for one in values] for name, values in found.items()}


def of_both(test: pd.DataFrame, cost: pd.DataFrame, way: str, wrong: str, seeds: list[int]) -> dict:
    two = [rows[rows["hops"].eq(2)] for rows in (test, cost)]
    return figures(test, cost, way, wrong, seeds) | {"two_hop": figures(*two, way, wrong, seeds)}


def records(rows: pd.DataFrame) -> list[dict]:
    parts = {way: rows[rows["condition"].eq(way)] for way in WAYS}
    return [{"condition": way} | score(part) for way, part in parts.items() if len(part)]


def collect(work: Path, seeds: list[int]) -> dict:
    """Of the seeds that are done. Raises ValueError where none is."""
    done = [seed for seed in seeds if all((work / f"seed{seed}/{kind}.parquet").exists() for kind in ("test", "cost"))]
    if not done:
        raise ValueError(f"{work} holds no seed's test.parquet and cost.parquet: nothing has been measured")

    def read(kind: str) -> pd.DataFrame:
        files = [work / f"seed{seed}/{kind}.parquet" for seed in done]
        return pd.concat([pd.read_parquet(file) for file in files if file.exists()] or [pd.DataFrame()])

    everything, cost = read("test"), read("cost")
    test = everything[everything["split"].eq("test")]
    if len(calibrated := read("calibrate")):
        test = pd.concat([test, calibrated])
    splits = {split: everything[everything["split"].eq(split)] for split in ("style", "facts")}
    families = {
        family: {way: round(right(part, way), 1) for way in FAMILY_COLUMNS}
        for family, part in test.groupby("family", sort=False)
    }  # fmt: skip
    chosen = read_json(work / "choose.json")
    results = {
        "seeds": done,
        "questions": {split: int(len(part) / part["condition"].nunique() / len(done)) for split, part in
                      {"test": test, **splits}.items()},
        "paper_form": of_both(test, cost, "paper_form", "wrong_image", done),
        "paper_literal": of_both(test, cost, "paper_literal", "wrong_image_literal", done),
        "chosen": {seed: chosen[str(seed)] for seed in done},
        "test": records(test),
        "two_hops": records(test[test["hops"].eq(2)]),
        **{split: records(part) for split, part in splits.items()},
        "families": [{"family": name} | values for name, values in families.items()],
        "differences": [
            {"first": first, "second": second} | paired(*(test[test["condition"].eq(way)] for way in (first, second)))
            for first, second in (("paper_form", "unfused"), ("paper_form", "blind"), ("paper_form", "wrong_image"),
                                  ("paper_form", "other_question"), ("paper_form", "logit_mix"),
                                  ("paper_form", "merged_weights"), ("paper_form", "merged_layers"),
                                  ("free", "merged_weights"), ("free", "blind"), ("free", "caption_first"))
        ],
        "facts_differences": [
            {"first": first, "second": second}
            | paired(*(splits["facts"][splits["facts"]["condition"].eq(way)] for way in (first, second)))
            for first, second in (("paper_form", way) for way in ("blind", "caption_first", "wrong_image"))
        ],
    }  # fmt: skip
    if len(curve := read("curve")):
        results["curve"] = [
            {"condition": way, "step": int(step), "right": round(float(part["outcome"].eq("right").mean()), 4),
             "caption": round(float(part["outcome"].eq("caption").mean()), 4)}
            for (way, step), part in curve.groupby(["condition", "step"], sort=False)
        ]  # fmt: skip
    if len(validation := read("validation")):
        columns = ["sweep", "condition", "alpha", "beta", "dose", "layers", "weight"]
        groups = validation.groupby([c for c in columns if c in validation], sort=False, dropna=False)
        results["validation"] = [
            {name: value for name, value in zip([c for c in columns if c in validation], key) if not pd.isna(value)}
            | {"right": round(float(part["outcome"].eq("right").mean()), 4),
               "caption": round(float(part["outcome"].eq("caption").mean()), 4)}
            for key, part in groups
        ]  # fmt: skip
    return results


def verdicts(found: dict) -> list[list]:
    """A goal a line: what was found a seed, and whether it is met in each."""
    lines = []
    for name, (bound, meaning) in GOALS.items():
        values = found[name]
        met = all(one is not None and (one <= bound if name in AT_MOST else one >= bound) for one in values)
        told = ", ".join(
            "no right answer there" if one is None else f"{one:.2f}" if bound < 1 else f"{one:.1f}" for one in values
        )
        lines.append([meaning, told, "met" if met else "not met"])
    return lines


def draw(results: dict, folder: Path) -> None:
    with plt.rc_context(STYLE):
        rows = sorted(results["test"], key=lambda record: record["mean"])
        count = results["questions"]["test"]
        told = (f"{count} questions of the test split that no training saw; thick: 95 % interval over questions, "
                "ticks: training runs. Blue: fused in the paper's form; orange: otherwise fused.")  # fmt: skip
        figure, axes = panels("Right answers of vift-smol, by the way to ask", told, (9, 0.33 * len(rows) + 0.6))
        (axis,) = axes[0]
        for row, record in enumerate(rows):
            name = record["condition"]
            color = LINES[0] if name.startswith("paper") else LINES[1] if "fused" in WAYS[name][:6] else LINES[5]
            draw_mean(axis, row, record, color)
        axis.set_yticks(range(len(rows)), [WAYS[record["condition"]] for record in rows])
        axis.set_xlabel("right answers, %")
        axis.set_xlim(left=0)
        save_figure(figure, folder / "answers.png", results["made"])


def table(rows: list[dict]) -> str:
    lines = [[WAYS[one["condition"]], with_interval(one), ", ".join(percent(value, 1) for value in one["seeds"]),
              percent(one["caption"], 1)] for one in rows]  # fmt: skip
    return markdown_table(["how it is asked", "right, % [95 %]", "each run", "captions, %"], lines)


def page(results: dict) -> str:
    seeds = results["seeds"]
    counts = results["questions"]
    differences = [[WAYS[one["first"]], WAYS[one["second"]], points(one)] for one in results["differences"]]
    facts = [[WAYS[one["second"]], points(one)] for one in results["facts_differences"]]
    chosen = "; ".join(f"run {seed}: β = {one['paper_form']['beta']}, freely: {_words(one['free'])}"
                       for seed, one in results["chosen"].items())  # fmt: skip
    goals = markdown_table(["goal, in the paper's form", "found, a number a run", ""], verdicts(results["paper_form"]))
    literal = markdown_table(["the same with the paper's β = 0.1", "found", ""], verdicts(results["paper_literal"]))
    two = markdown_table(["on questions of two hops alone", "found", ""], verdicts(results["paper_form"]["two_hop"]))
    families = markdown_table(
        ["family", *FAMILY_COLUMNS.values()],
        [[one["family"], *list(one.values())[1:]] for one in results["families"]],
    )
    curve = ""
    if "curve" in results:
        steps = sorted({one["step"] for one in results["curve"]})
        by = {(one["condition"], one["step"]): one for one in results["curve"]}
        rows = [[step, *(percent(by[way, step][what], 1) for way in ("unfused", "paper_literal")
                         for what in ("right", "caption"))] for step in steps]  # fmt: skip
        head = ["step of stage 2", "unfused: right, %", "captions, %", "fused (β = 0.1): right, %", "captions, %"]
        told = "Validation questions; step 0 is the model after stage 1."
        curve = f"\n\n## Along stage 2\n\n{told}\n\n{markdown_table(head, rows)}"
    return f"""# A real language model: vift-smol

SmolLM2-135M-Instruct and EfficientNet-Lite0, joined by a new connector, trained on captions of drawings and on text
(`train/recipes/smol`); no question about a picture was ever trained on. Training runs: {", ".join(map(str, seeds))}.
Everything below is written by the run, from [smol.json](smol.json).

![Right answers by the way to ask](answers.png)

## Goals

{goals}

{literal}

{two}

## Test split: {counts["test"]} questions

{table(results["test"])}

Chosen on validation: {chosen}.

{markdown_table(["first", "minus second", "points [95 %]"], differences)}

## Questions of two hops

{table(results["two_hops"])}

## Facts that no training text told: {counts["facts"]} questions of two hops

The picture of such a thing was captioned, its fact was left out of every instruction.

{table(results["facts"])}

{markdown_table(["paper's form minus", "points [95 %]"], facts)}

## Drawings of a style never trained on: {counts["style"]} questions

{table(results["style"])}

## By family

{families}{curve}

## Made by

{made_line(results["made"])}
"""


def _words(setting: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in setting.items() if name != "condition")


def write_page(work: Path, output: Path, seeds: list[int]) -> None:
    results = collect(work, seeds)
    made = made_of("make smol", {f"seed{seed}": work / f"seed{seed}" / "vift" for seed in results["seeds"]})
    write_results(output, "smol", made, results, draw, page)
    goals = {name: results[name] for name in ("seeds", "paper_form", "paper_literal")}
    write_json(
        output.with_suffix(".json"), {"made": made} | goals
    )  # beside the folder: the figures of the goals alone
