"""The page of the paper in a box: docs/results/paper/README.md, its plots, and results.json, all from `table.collect`.

`page(results)` is the Markdown, so that the page can be made again from results.json alone; a section whose steps are
not done says so.
"""

from pathlib import Path

from vift_eval.answers.conditions import meaning
from vift_eval.files import made_line, markdown_table

from ..answers import percent, pick, points, with_interval
from ..runner import made_of, write_results
from .plan import ASKED, FUSED_OTHERWISE
from .plots import draw
from .table import collect

TRAININGS = {
    "vift": "ViFT",
    "vit": "visual instruction tuning",
    "vit_text": "the same with text batches",
    "one_stage": "ViFT in one stage",
    "mixed": "ViFT, mixed batches",
    "vift_a": "ViFT-A (a tenth of visual questions added)",
}


def conditions_table(results: dict, records: list[dict]) -> str:
    """One row per condition: scores, shares of failures, fused minus this, and its cost where it was timed."""
    rows = []
    for record in records:
        name = record["condition"]
        spent = pick(results.get("cost", []), condition=name)
        rows.append([
            f"layers {record['layers']}, dose {record['dose']}" if name == "band" else f"`{name}`",
            " / ".join(percent(value, 1) for value in record["seeds"]), with_interval(record),
            points(record.get("fused_minus_this")), percent(record["caption"]),
            percent(record["wrong_kind"] + record["garbage"] + record["empty"]),
            *((f"{spent[0]['ms']:.0f}", f"{spent[0]['tokens']:.1f}") if spent else ("", "")),
        ])  # fmt: skip
    header = ["condition", "seeds", "mean [95 %]", "fused − this [95 %]", "captions", "no fit", "ms", "tokens"]
    return markdown_table(header, rows)


def meanings(names) -> str:
    return "\n".join(f"- `{name}`: {meaning(name)}" for name in names)


def sweep_table(records: list[dict], value: str) -> str:
    failures = ("caption", "wrong_kind", "garbage", "empty")
    rows = [[r["layers"], r[value], with_interval(r), *(percent(r[name]) for name in failures)] for r in records]
    return markdown_table(["layers", value, "right [95 %]", "captions", "wrong kind", "garbage", "empty"], rows)


def bands_table(records: list[dict]) -> str:
    doses = list(dict.fromkeys(record["dose"] for record in records))
    rows = []
    for layers in dict.fromkeys(record["layers"] for record in records):
        means = {record["dose"]: percent(record["mean"], 1) for record in pick(records, layers=layers)}
        rows.append([layers, *(means.get(dose, "") for dose in doses)])
    return markdown_table(["layers", *(f"dose {dose}" for dose in doses)], rows)


def replace_table(records: list[dict]) -> str:
    rows = [[r["layers"].split(":")[0], with_interval(r), percent(r["caption"])] for r in records]
    return markdown_table(["layer", "right [95 %]", "captions"], rows)


def arms_table(arms: list[dict]) -> str:
    rows = []
    for arm in sorted(arms, key=lambda arm: (list(TRAININGS).index(arm["training"]), -arm["divisor"])):
        seconds = [value for value in arm["cpu_seconds"] if value is not None]
        rows.append([
            TRAININGS[arm["training"]], "1" if arm["divisor"] == 1 else f"1/{arm['divisor']}", arm["condition"],
            with_interval(arm["seen"]), with_interval(arm["unseen"]), percent(arm["unfused"]["mean"], 1),
            percent(arm["unfused"]["caption"]), with_interval(arm["oracle_text"]),
            f"{sum(seconds) / len(seconds):.0f}" if seconds else "",
        ])  # fmt: skip
    header = ["training", "data", "asked", "families trained on [95 %]", "held-out families [95 %]", "unfused",
              "captions unfused", "scene in words [95 %]", "CPU s"]  # fmt: skip
    return markdown_table(header, rows)


def calibration_table(results: dict) -> str:
    rows, header = [[seed] for seed in results["seeds"]], ["seed"]
    titles = {"tuned": "tuned with labels", "calibrated": "calibrate()", "lens": 'calibrate(bands="lens")'}
    for choice, title in titles.items():
        records = pick(results["calibrate"], choice=choice)
        header += [title, "right"] if records else []
        for row, record in zip(rows, records):
            row.append(f"layers {record['layers']}, dose {record['dose']}, α {record['alpha']}")
            row.append(percent(record["right"], 1))
        if deltas := results.get(f"{choice}_minus_tuned"):
            header.append("difference [95 %]")
            for row, delta in zip(rows, deltas["seeds"]):
                row.append(points(delta))
    return markdown_table(header, rows)


def page(results: dict) -> str:
    """The Markdown of the whole page."""
    fields = {name.removeprefix("fusion_"): value for name, value in results.get("fusion", {}).items()}
    fusion = ", ".join(f"{name} {value}" for name, value in fields.items() if value is not None)
    seconds = results["cpu_seconds"]

    def verdicts() -> str:
        rows = [[v["claim"], v["title"], f"**{v['verdict']}**", v["reason"]] for v in results["verdicts"]]
        return markdown_table(["", "claim", "verdict", "why"], rows)

    def test() -> str:
        gaps = ", ".join(
            "none to close" if gap["value"] is None else
            f"{percent(gap['value'])} % {gap['ci95'] and [round(100 * bound) for bound in gap['ci95']]}"
            for gap in results["gap_closed"]
        )  # fmt: skip
        asked = [record for record in results["test"] if record["condition"] in ASKED]
        otherwise = [record for record in results["test"] if record["condition"] in ("fused", *FUSED_OTHERWISE)]
        return (
            f"Test split, {results['n_test']} questions per seed. Distance from unfused to caption first that fusion "
            f"closes, by seed: {gaps}.\n\n![Right answers and time under every condition](conditions.png)\n\n"
            f"{conditions_table(results, asked)}\n\n{meanings(record['condition'] for record in asked)}\n\n"
            "`no fit`: answers of the wrong kind, of no kind, or empty. `ms`: CPU milliseconds to the whole answer, "
            "one question at a time, in turns in one process; `tokens`: decoded, with those of a caption.\n\n"
            f"Fused otherwise:\n\n{conditions_table(results, otherwise)}\n\n{meanings(FUSED_OTHERWISE)}"
        )

    def layers() -> str:
        return (
            f"Validation split, {results['n_validation']} questions per seed, right answers in %:\n\n"
            f"![Right answers by dose and band of layers](bands.png)\n\n"
            f"{bands_table(pick(results['validation'], sweep='bands'))}\n\n"
            "The text tokens' states replaced by the text run's at the input of one layer (α = 0, β = 1): where they "
            "have read the picture by then, it is lost.\n\n"
            f"{replace_table(pick(results['validation'], sweep='replace'))}\n\n"
            "Test split, each band at the dose that was best on validation over all seeds:\n\n"
            + conditions_table(results, pick(results["test"], condition="band"))
        )

    def coefficients() -> str:
        sweeps = {name: pick(results["validation"], sweep=name) for name in ("dose", "alpha")}
        return (
            f"Validation split, {results['n_validation']} questions per seed, in the checkpoint's layers and in the "
            "top half, the paper's. Dose is β × number of fused layers. The world has no refusals as such: an empty "
            "answer comes nearest. Answers are cut off after four tokens; garbage holds those, too, that begin as an "
            'answer and run on into a caption ("red the picture shows").\n\n'
            "![What the answers are, by dose and by alpha](sweeps.png)\n\n"
            f"Dose (α = 1):\n\n{sweep_table(sweeps['dose'], 'dose')}\n\n"
            f"α (the checkpoint's dose; 2 in the top half):\n\n{sweep_table(sweeps['alpha'], 'alpha')}"
        )

    def training() -> str:
        splits = "; ".join(", ".join(f"`{name}`" for name in split) for split in results["held_out"])
        rows = [[f"`{name}`", points(delta)] for name, delta in results["differences"].items()]
        return (
            "Every run starts from the same stage 1 and has stage 2's settings, one pass over a fraction of its rows "
            "(as many visual questions as ViFT has captions). The visual questions leave five of the fifteen families "
            f'out, others in each seed: {splits}. "Scene in words" is text ability.\n\n'
            "![Right answers by share of the data](data.png)\n\n"
            f"{arms_table(results['arms'])}\n\n{markdown_table(['difference', 'points [95 %]'], rows)}"
        )

    def calibration() -> str:
        teacher = ", ".join(percent(record["right"]) for record in pick(results["calibrate"], choice="teacher"))
        return (
            f"`calibrate()` sees {results['n_prompts']} unlabelled validation prompts; its teacher, the answer from "
            f"the model's own caption, is right for {teacher} % of them. Tuned with labels: the best of the same "
            f"bands and doses on {results['n_validation']} labelled validation questions. Test split:\n\n"
            + calibration_table(results)
        )

    sections = [
        ("Verdicts", "verdicts", verdicts),
        ("Every condition (a, and the baselines)", "test", test),
        ("Which layers (b)", "top_half_minus_lowest_quarter", layers),
        ("α and β (c)", "validation", coefficients),
        ("Against visual instruction tuning; stages; batches; ViFT-A (d-g)", "arms", training),
        ("calibrate()", "calibrate", calibration),
    ]
    body = "\n\n".join(
        f"## {title}\n\n{write() if needed in results else 'Not measured yet: its steps are not done.'}"
        for title, needed, write in sections
    )
    return (
        "# The paper in a box\n\n"
        "Every claim of [arXiv 2502.11427](https://arxiv.org/abs/2502.11427), run on the micro-world over "
        f"{len(results['seeds'])} seeds that share nothing (vision tower and text LLM included). Written by the run, "
        "from [results.json](results.json); the verdicts are rules on these figures "
        "(`vift_studies.paper.verdicts`). "
        f"Fusion: {fusion or 'not measured yet'}, one setting for all seeds. Intervals are 95 % bootstrap intervals "
        "over questions, paired for differences; seeds are shown one by one. Nothing was chosen on the test split.\n\n"
        f"{body}\n\n## Made by\n\n{made_line(results['made'])}\n\n"
        f"{sum(seconds.values()) / 3600:.1f} CPU hours in the {len(seconds)} steps that were timed.\n"
    )


def write_page(work: Path, output: Path, seeds: list[int]) -> None:
    """results.json, the plots and README.md into `output`."""
    made = made_of("make paper", {f"seed{seed}": work / f"seed{seed}" / "vift" for seed in seeds})
    write_results(output, "results", made, collect(work, seeds), draw, page)
