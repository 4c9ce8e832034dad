"""The page of `vift analyze`: README.md with a verdict, one figure per metric and how to read it, and the numbers."""

from pathlib import Path

from ..files import made_line, markdown_table, write_json
from . import plots

READ = {
    "overlap": "Of each picture's nearest neighbours among the pictures, the share whose captions are also its "
    "caption's nearest neighbours. It rises where the model arranges pictures as it arranges the words for them. "
    "{chance}",
    "cka": "How alike the two arrangements are as a whole, up to rotation and scale: 1 is the same. Large distances "
    "count most, so a few directions shared by all prompts can carry it. {chance}",
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

# measures of a layer -> columns of the table
COLUMNS = {
    "overlap": "overlap",
    "overlap_chance": "chance",
    "cka": "CKA",
    "cka_chance": "chance",
    "dimension_image/1": "dimension, picture",
    "dimension_text/1": "caption",
    "imbalance_image_to_text": "picture → caption",
    "imbalance_text_to_image": "caption → picture",
}


def describe(results: dict) -> str:
    """The verdict in a few sentences."""
    band, mean = results["band"], results["band_mean"]
    known = [(layer, value) for layer, value in enumerate(band["profile"]) if value is not None]
    peak = max(known, key=lambda pair: pair[1])
    paragraphs = [
        f"The band of the rule is **layers {band['band']}** of {len(results['layers']) - 1} ({band['reason']}). "
        f"Overlap above chance at the last token is {known[0][1]:.2f} at representation {known[0][0]}, {peak[1]:.2f} "
        f"at its best, at {peak[0]}, and {known[-1][1]:.2f} at the end. Over the means of image tokens and caption "
        f"tokens the same rule gives {mean['band']}."
    ]
    tried = results.get("interventions", {"conditions": []})
    cut = [one for one in tried["conditions"] if one["group"] == "knock-out, window" and one["share"] is not None]
    if cut:
        worst = min(cut, key=lambda one: one["share"])
        paragraphs.append(
            f"Of {tried['n']} questions the intact model answers {tried['intact']['accuracy']:.1%}, blind "
            f"{tried['blind']['accuracy']:.1%}. The picture is read most in layers {worst['layers']}: without "
            f"attention to image tokens there, {worst['share']:.0%} of the score is left."
        )
    return "\n\n".join(paragraphs)


def table(results: dict) -> str:
    rows = []
    for number, layer in enumerate(results["layers"]):
        if layer["last"] is None:
            rows.append([number, "all points coincide", *[""] * (len(COLUMNS) - 1)])
        else:
            values = {key: plots.value_of(layer["last"], key)["value"] for key in COLUMNS}
            rows.append([number, *(f"{v:.1f}" if "dimension" in key else f"{v:.3f}" for key, v in values.items())])
    return markdown_table(["after layers", *COLUMNS.values()], rows)


def intervention_table(conditions: list[dict]) -> str:
    rows = []
    for one in conditions:
        low, high = one["ci95"]
        share = "" if one["share"] is None else f"{one['share']:.0%}"
        layers = one["layers"].replace("~", "all but ")
        rows.append([one["group"], layers, f"{one['accuracy']:.1%} [{low:.1%}, {high:.1%}]", share])
    return markdown_table(["intervention", "layers", "right [95 %]", "share of intact"], rows)


def page(results: dict, figures: list[str]) -> str:
    tried = results.get("interventions", {})
    words = {"chance": CHANCE[results["control"]], "n": tried.get("n")}
    words["donor"] = f"or when layers come from {tried['donor_name']}, " if tried.get("donor_name") else ""
    parts = [
        f"# Where vision and language meet in {results['model']}",
        describe(results),
        f"{results['n']} items ({results['data']}), each as a picture and as its caption with the same query; "
        f"{results['k']} neighbours. Shaded: the band, grey; colour around a line: its 95 % interval over items.",
    ]
    for name in figures:
        title = plots.METRICS[name][0] if name in plots.METRICS else name
        parts += [f"## {title[0].upper()}{title[1:]}", READ[name].format(**words), f"![{title}]({name}.png)"]
    if tried:
        parts.append(intervention_table(tried["conditions"]))
    parts += [
        "## Numbers, last token",
        table(results),
        "All of them, with intervals: [analysis.json](analysis.json).",
        f"Made by {made_line(results['made'])}.",
    ]
    return "\n\n".join(parts) + "\n"


def write(results: dict, folder: Path) -> None:
    """analysis.json, the figures and README.md in `folder`, from what `analyze` returns."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "analysis.json", results)
    (folder / "README.md").write_text(page(results, plots.draw(results, folder)), encoding="utf-8")
