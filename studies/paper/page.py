"""The page of the paper in a box: docs/results/paper/README.md, its plots, and results.json, all from `paper_figures.collect`.

`page(results)` is the Markdown, so that the page can be made again from results.json alone; a section whose steps are
not done says so.
"""

import json
import platform
from pathlib import Path

from vift_eval.answers.baselines import WAYS

from .figures import collect
from .plots import draw

ABLATIONS = {
    "alpha_one": "fused at the checkpoint's layers and β, α = 1",
    "span_after_image": "fused, only the tokens after the picture",
    "span_reference": "fused, the span of the authors' released code",
    "rule_independent": "fused, nothing compounds over the layers (the literal reading)",
    "norm_kept": "fused, each state rescaled to its norm",
    "prompt_only": "fused in the prompt only, as the paper does: not the answer's own tokens",
}
ARM_NAMES = {
    "vift": "ViFT",
    "vit": "visual instruction tuning",
    "vit_text": "the same with text batches",
    "one_stage": "ViFT in one stage",
    "mixed": "ViFT, mixed batches",
    "vift_a": "ViFT-A (a tenth of visual questions added)",
}


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}"


def with_interval(entry: dict) -> str:
    low, high = entry["ci95"]
    return f"{percent(entry['mean'])} [{percent(low)}, {percent(high)}]"


def points(delta: dict | None) -> str:
    if delta is None:
        return ""
    low, high = delta["ci95"]
    return f"{100 * delta['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def ways_table(results: dict, names: list[str], described: dict[str, str]) -> str:
    """One row a way of asking: scores, shares of failures, fused minus this, and its cost where it was timed."""
    cost = results.get("cost", {})
    rows = []
    for name in names:
        way, spent = results["ways"][name], cost.get(name)
        rows.append([
            f"`{name}`", " / ".join(percent(value, 0) for value in way["seeds"]), with_interval(way),
            points(way.get("fused_minus_this")), percent(way["captions"], 0),
            percent(way["wrong_kind"] + way["garbage"] + way["empty"], 0),
            f"{spent['cpu_ms']:.0f}" if spent else "", f"{spent['tokens']:.1f}" if spent else "",
        ])  # fmt: skip
    header = ["way of asking", "seeds", "mean [95 %]", "fused − this [95 %]", "captions", "no fit", "ms", "tokens"]
    meanings = "\n".join(f"- `{name}`: {described[name]}" for name in names if name in described)
    return f"{table(header, rows)}\n\n{meanings}"


def sweep_table(group: dict) -> str:
    rows = [
        [*key.split(), with_interval(e), percent(e["captions"], 0), percent(e["wrong_kind"], 0),
         percent(e["garbage"], 0), percent(e["empty"], 0)]
        for key, e in group.items()
    ]  # fmt: skip
    return table(["layers", "value", "right [95 %]", "captions", "wrong kind", "garbage", "empty"], rows)


def bands_table(bands: dict) -> str:
    names = list(dict.fromkeys(key.split()[0] for key in bands))
    doses = list(dict.fromkeys(key.split()[1] for key in bands))
    rows = [
        [name, *(percent(bands[f"{name} {d}"]["mean"]) if f"{name} {d}" in bands else "" for d in doses)]
        for name in names
    ]
    return table(["layers", *(f"dose {dose}" for dose in doses)], rows)


def setting(values: dict) -> str:
    return f"layers {values['fusion_layers']}, dose {values['dose']}, α {values['alpha']}"


def replace_table(group: dict) -> str:
    rows = [[key.split(":")[0], with_interval(e), percent(e["captions"], 0)] for key, e in group.items()]
    return table(["layer", "right [95 %]", "captions"], rows)


def arms_table(arms: dict) -> str:
    order = sorted(arms, key=lambda arm: (list(ARM_NAMES).index(arm.split("-")[0]), -int(arm.split("-")[1])))
    rows = []
    for arm in order:
        name, divisor = arm.split("-")
        entry = arms[arm]
        seconds = [value for value in entry["cpu_seconds"] if value is not None]
        share = "1" if divisor == "1" else f"1/{divisor}"
        rows.append([
            ARM_NAMES[name], share, entry["way"], with_interval(entry["seen"]),
            with_interval(entry["unseen"]), percent(entry["unfused"]["mean"]),
            percent(entry["unfused"]["captions"], 0), with_interval(entry["gold"]),
            f"{sum(seconds) / len(seconds):.0f}" if seconds else "",
        ])  # fmt: skip
    header = ["training", "data", "asked", "families trained on [95 %]", "held-out families [95 %]", "unfused",
              "captions unfused", "scene in words [95 %]", "CPU s"]  # fmt: skip
    return table(header, rows)


def verdict_table(results: dict) -> str:
    rows = [[v["claim"], v["title"], f"**{v['verdict']}**", v["reason"]] for v in results["verdicts"]]
    return table(["", "claim", "verdict", "why"], rows)


def _section(title: str, needed: str, results: dict, body) -> str:
    text = body() if needed in results else "Not measured yet: its steps are not done."
    return f"## {title}\n\n{text}"


def page(results: dict) -> str:
    """The Markdown of the whole page."""
    ways = results.get("ways", {})
    main = [name for name in ways if name in WAYS]
    bands = [name for name in ways if name.startswith("band ")]
    fields = {name.removeprefix("fusion_"): value for name, value in results.get("fusion", {}).items()}
    fusion = ", ".join(f"{name} {value}" for name, value in fields.items() if value is not None)

    def test() -> str:
        gaps = ", ".join("none to close" if g is None else f"{100 * g:.0f} % {ci and [round(100 * c) for c in ci]}"
                         for g, ci in zip(results["gap_closed"], results["gap_closed_ci95"]))  # fmt: skip
        return (
            f"Test split, {results['n_test']} questions a seed. Distance from unfused to caption first that fusion "
            f"closes, by seed: {gaps}.\n\n![Every way of asking](ways.png)\n\n"
            f"{ways_table(results, main, WAYS)}\n\n"
            "`no fit`: answers of the wrong kind, of no kind, or empty. `ms`: CPU milliseconds to the whole answer, "
            "one question at a time, in turns in one process; `tokens`: decoded, with those of a caption.\n\n"
            "Fused otherwise:\n\n"
            + ways_table(results, ["fused", *(name for name in ABLATIONS if name in ways)], ABLATIONS)
        )

    def layers() -> str:
        named = {
            name: f"layers {name.split()[1]}, dose {results['chosen']['bands'][name.split()[1]]}" for name in bands
        }
        return (
            f"Validation split, {results['n_validation']} questions a seed, right answers in %:\n\n"
            f"![Layer bands](bands.png)\n\n{bands_table(results['sweeps']['bands'])}\n\n"
            "The text tokens' states replaced by the text run's at the input of one layer (α = 0, β = 1): where they "
            "have read the picture by then, it is lost.\n\n"
            f"{replace_table(results['sweeps']['replace'])}\n\n"
            "Test split, each band at the dose that was best on validation over all seeds:\n\n"
            + ways_table(results, bands, named)
        )

    def coefficients() -> str:
        sweeps = results["sweeps"]
        return (
            f"Validation split, {results['n_validation']} questions a seed; `config` is the checkpoint's band, "
            "`top_half` the paper's. Dose is β × number of fused layers. The world has no refusals as such: an empty "
            "answer comes nearest. Answers are cut off after four tokens; garbage holds those, too, that begin as an "
            'answer and run on into a caption ("red the picture shows").\n\n'
            "![Doses and alphas](sweeps.png)\n\nDose (α = 1):\n\n"
            f"{sweep_table(sweeps['dose'])}\n\nα (the checkpoint's dose):\n\n{sweep_table(sweeps['alpha'])}"
        )

    def training() -> str:
        arms = results["arms"]
        splits = "; ".join(", ".join(f"`{name}`" for name in split) for split in arms["held_out"])
        d = arms["differences"]
        rows = [[f"`{name}`", points(delta)] for name, delta in d.items()]
        return (
            "Every run starts from the same stage 1 and has stage 2's settings, one pass over a fraction of its rows "
            "(as many visual questions as ViFT has captions). The visual questions leave five of the fifteen families "
            f'out, others in each seed: {splits}. "Scene in words" is text ability.\n\n'
            f"![Data](data.png)\n\n{arms_table(arms['table'])}\n\n{table(['difference', 'points [95 %]'], rows)}"
        )

    def calibration() -> str:
        c = results["calibrate"]
        rows = [
            [f"{seed}", setting(s["tuned"]), percent(c["tuned"]["seeds"][i]), setting(s["calibrated"]),
             percent(c["calibrated"]["seeds"][i]), points(c["calibrated_minus_tuned"]["seeds"][i])]
            for i, (seed, s) in enumerate(zip(results["seeds"], c["settings"]))
        ]  # fmt: skip
        header = ["seed", "tuned with labels", "right", "calibrate()", "right", "difference [95 %]"]
        return (
            f"`calibrate()` sees {c['n_prompts']} unlabelled validation prompts; its teacher, the answer from the "
            f"model's own caption, is right for {', '.join(percent(t, 0) for t in c['teacher_right'])} % of them. "
            "Tuned with labels: the best of the same bands and doses on "
            f"{results['n_validation']} labelled validation questions. Test split:\n\n" + table(header, rows)
        )

    body = "\n\n".join(
        [
            _section("Verdicts", "verdicts", results, lambda: verdict_table(results)),
            _section("Every way of asking (a, and the rivals)", "ways", results, test),
            _section("Which layers (b)", "top_half_minus_lowest_quarter", results, layers),
            _section("α and β (c)", "sweeps", results, coefficients),
            _section("Against visual instruction tuning; stages; batches; ViFT-A (d-g)", "arms", results, training),
            _section("calibrate()", "calibrate", results, calibration),
        ]
    )
    hours = sum(results["cpu_seconds"].values()) / 3600
    return (
        "# The paper in a box\n\n"
        "Every claim of [arXiv 2502.11427](https://arxiv.org/abs/2502.11427), run on the micro-world over "
        f"{len(results['seeds'])} seeds that share nothing (vision tower and text LLM included). Written by the run, "
        "from [results.json](results.json); the verdicts are rules on these figures "
        "(`vift_studies.paper.verdicts`). "
        f"Fusion: {fusion or 'not measured yet'}, one setting for all seeds. Intervals are 95 % bootstrap intervals "
        "over questions, paired for differences; seeds are shown one by one. Nothing was chosen on the test split.\n\n"
        f"{body}\n\n## Made by\n\n```\nmake paper\n```\n\n"
        f"{hours:.1f} CPU hours in the {len(results['cpu_seconds'])} steps that were timed, "
        f"on {results.get('machine', 'an unknown machine')}.\n"
    )


def machine() -> str:
    import torch
    import transformers

    name = next(
        (line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    versions = (
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    return f"{name or platform.machine()}, {versions}"


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []


def write_page(work: Path, output: Path, seeds: list[int]) -> None:
    """results.json, the plots and README.md into `output`."""
    results = collect(work, seeds) | {"machine": machine()}
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(results, output)
    (output / "README.md").write_text(page(results), encoding="utf-8")
