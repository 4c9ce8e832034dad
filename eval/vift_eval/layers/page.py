"""The page of `vift-analyze`: README.md with a verdict, a figure a metric and how to read it, numbers, command."""

import json
from pathlib import Path

from . import plots

READ = {
    "overlap": "Of each picture's nearest neighbours among the pictures, the share whose captions are also its "
    "caption's nearest neighbours. It rises where the model arranges pictures as it arranges the words for them. "
    "{chance}",
    "cka": "How alike the two arrangements are as a whole, up to rotation and scale: 1 is the same. Large distances "
    "count most, so a few directions shared by all prompts can carry it.",
    "dimension": "How many directions the cloud of prompts really has near a point. A hump in the middle is what the "
    "paper calls the abstraction phase; k is how far one looks (rank 2k against rank k).",
    "imbalance": "0: who knows a prompt's nearest neighbour in one form knows it in the other; 1: it tells nothing. "
    "The lower curve is the form that holds more.",
    "cosine": "Whether a picture and its caption point the same way. Only the distance between the two curves speaks "
    "of content: what all prompts share lifts both.",
    "probes": "Held-out accuracy of a linear classifier on each layer. A classifier fitted on captions and read off "
    "pictures is the test of one shared code. Dotted: the largest class; grey: the control on shuffled labels.",
    "interventions": "Right answers of {n} questions when text tokens can't look at image tokens in some layers, when "
    "layers are skipped, {donor}with 95 % intervals. Lines: the intact model, and blind (without the picture). "
    "Cutting all layers is not the blind line exactly: the query stays at its place behind the picture.",
}
CHANCE = {
    True: "The lower curve is the same with another item's caption: what the wording of the question alone brings.",
    False: "The lower line is chance.",
}


def describe(results: dict) -> str:
    """The verdict in a few sentences."""
    band, mean = results["band"], results["band_mean"]
    last = len(results["layers"]) - 1
    known = [(layer, value) for layer, value in enumerate(band["profile"]) if value is not None]
    peak = max(known, key=lambda pair: pair[1])
    lines = [
        f"The band of the rule is **layers {band['band']}** of {last} ({band['reason']}). Overlap above chance at "
        f"the last "
        f"token is {known[0][1]:.2f} at representation {known[0][0]}, {peak[1]:.2f} at its best, at {peak[0]}, and "
        f"{known[-1][1]:.2f} at the end. Over the means of image tokens and caption tokens the same rule gives "
        f"{mean['band']}."
    ]
    if "interventions" in results:
        found = results["interventions"]
        windows = [
            one for one in found["conditions"] if one["group"] == "knock-out, window" and one["share"] is not None
        ]
        if windows:
            worst = min(windows, key=lambda one: one["share"])
            lines.append(
                f"Of {found['n']} questions the intact model answers {found['intact']['accuracy']:.1%}, blind "
                f"{found['blind']['accuracy']:.1%}. The picture is read most in layers {worst['layers']}: without "
                f"attention to image "
                f"tokens there, {worst['share']:.0%} of the score is left."
            )
    return "\n\n".join(lines)


def table(results: dict) -> str:
    head = [
        "after layers",
        "overlap",
        "chance",
        "CKA",
        "dimension, picture",
        "caption",
        "picture → caption",
        "caption → picture",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    keys = ("overlap", "overlap_chance", "cka", "dimension_image/1", "dimension_text/1", "imbalance_image_to_text",
            "imbalance_text_to_image")  # fmt: skip
    for number, layer in enumerate(results["layers"]):
        entries = [plots.value_of(layer["last"], key) for key in keys]
        cells = ["all points coincide" if layer["last"] is None and i == 0 else "" for i in range(len(keys))]
        if layer["last"] is not None:
            cells = [
                f"{e['value']:.3f}" if "dimension" not in key else f"{e['value']:.1f}" for e, key in zip(entries, keys)
            ]
        lines.append(f"| {number} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def intervention_table(found: dict) -> str:
    lines = ["| intervention | layers | right [95 %] | share of intact |", "|---|---|---|---|"]
    for one in found["conditions"]:
        low, high = one["ci95"]
        share = "" if one["share"] is None else f"{one['share']:.0%}"
        lines.append(f"| {one['group']} | {one['layers']} | {one['accuracy']:.1%} [{low:.1%}, {high:.1%}] | {share} |")
    return "\n".join(lines)


def page(results: dict, figures: list[str], command: str) -> str:
    found = results.get("interventions")
    words = {"chance": CHANCE[results["control"]], "n": found and found["n"]}
    words["donor"] = f"or when layers come from {found['donor_name']}, " if found and found.get("donor_name") else ""
    parts = [
        f"# Where vision and language meet in {results['model']}",
        describe(results),
        f"{results['n']} items ({results['data']}), each as a picture and as its caption with the same query; "
        f"{results['k']} "
        "neighbours; shaded: the band, grey; colour around a line: its 95 % bootstrap interval over items.",
    ]
    for name in figures:
        title = plots.METRICS[name][0] if name in plots.METRICS else name
        parts += [f"## {title[0].upper()}{title[1:]}", READ[name].format(**words), f"![{title}]({name}.png)"]
    if found:
        parts.append(intervention_table(found))
    parts += [
        "## Numbers, last token",
        table(results),
        "All of them, with intervals: [analysis.json](analysis.json). Made by:",
    ]
    return "\n\n".join([*parts, f"```\n{command}\n```"]) + "\n"


def write(results: dict, folder: Path, command: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "analysis.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    figures = plots.draw(results, folder)
    (folder / "README.md").write_text(page(results, figures, command), encoding="utf-8")
