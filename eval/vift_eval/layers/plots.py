"""Figures of `vift analyze`, one per metric: last token on the left, mean over the modality's tokens on the right."""

from pathlib import Path

from ..files import save_figure
from ..plots import FAINT, INK, LINES, STYLE, layer_words, panels, plt

POOLINGS = {"last": "last token of the prompt", "mean": "means of image or caption tokens"}
# figure -> (y label, [(key of a layer's measures, legend)])
METRICS = {
    "overlap": (
        "neighbourhood overlap",
        [("overlap", "picture and its caption"), ("overlap_chance", "picture and another caption, or chance")],
    ),
    "cka": (
        "linear CKA, debiased",
        [("cka", "picture and its caption"), ("cka_chance", "picture and another caption, or chance")],
    ),
    "dimension": (
        "intrinsic dimension (TwoNN, Gride)",
        [
            ("dimension_image/1", "picture, k = 1"),
            ("dimension_text/1", "caption, k = 1"),
            ("dimension_image/8", "picture, k = 8"),
            ("dimension_text/8", "caption, k = 8"),
        ],
    ),
    "imbalance": (
        "information imbalance",
        [("imbalance_image_to_text", "picture tells caption"), ("imbalance_text_to_image", "caption tells picture")],
    ),
    "cosine": ("cosine", [("cosine", "picture and its caption"), ("cosine_other", "picture and another caption")]),
}
TOLD = {
    "overlap": "Of a picture's nearest neighbours, the share whose captions are its own caption's nearest neighbours. "
    "Only what is above the orange line speaks of content.",
    "cka": "How alike the two arrangements are as a whole, up to rotation and scale; 1: the same.",
    "dimension": "How many directions the cloud of prompts has near a point; k: how far one looks.",
    "imbalance": "0: who knows a prompt's neighbours in one form knows them in the other; 1: it tells nothing.",
    "cosine": "Whether a picture and its caption point the same way. Only the gap of the lines speaks of content.",
    "probes": "Held-out accuracy of a linear classifier on each layer's states. A high green line: one code for "
    "pictures and words. Dotted: the largest class.",
}
SHADED = "Shaded: the band of docs/layers.md, where overlap above chance is high."
PROBES = {
    "image": (LINES[0], "fitted on pictures, read off pictures"),
    "text": (LINES[1], "fitted on captions, read off captions"),
    "transfer": (LINES[2], "fitted on captions, read off pictures"),
    "shuffled": (FAINT, "shuffled labels"),
}
GROUPS = {  # of interventions, in words
    "knock-out, window": "the text can't see the picture in these layers",
    "knock-out, from here up": "the text can't see it from this layer up",
    "skip, image tokens": "image tokens skip these layers",
    "skip, all tokens": "all tokens skip these layers",
    "transplant, cumulative": "lowest layers taken from the donor",
    "transplant, window": "these layers taken from the donor",
    "transplant, complement": "all layers but these from the donor",
}
LEVELS = {"intact": ("-", "the model as it is"), "blind": (":", "without the picture"), "donor": ("--", "the donor")}


def value_of(measures: dict | None, key: str) -> dict | None:
    for part in key.split("/"):
        measures = None if measures is None else measures.get(part)
    return measures


def line(axes, entries: list[dict | None], color: str, label: str, dash: str = "-") -> None:
    """Values over representations, with their intervals; where there is none, no point."""
    known = [(x, entry) for x, entry in enumerate(entries) if entry is not None]
    if not known:
        return
    xs, values = [x for x, _ in known], [entry["value"] for _, entry in known]
    axes.plot(xs, values, dash, color=color, label=label, marker="o")
    if all(entry["ci95"] for _, entry in known):
        bounds = [[entry["ci95"][i] for _, entry in known] for i in (0, 1)]
        axes.fill_between(xs, *bounds, color=color, alpha=0.18, linewidth=0)


def frame(axes, results: dict, pooling: str) -> None:
    """The band of the rule, which stands for layers: layer i wrote representation i + 1."""
    band = results["band" if pooling == "last" else "band_mean"]
    axes.axvspan(band["first"] + 0.5, band["stop"] + 0.5, color="#8a857a", alpha=0.13, linewidth=0)
    axes.set_title(f"{POOLINGS[pooling]}; band: {layer_words(band['band'])}")
    axes.set_xlabel("after how many layers (0: the embeddings)")
    axes.set_xlim(-0.3, len(results["layers"]) - 0.7)


def draw(results: dict, folder: Path) -> list[str]:
    """Writes the figures; their names."""
    with plt.rc_context(STYLE):
        figures = {name: _metric(results, name) for name in METRICS}
        labels = next((list(one["mean"]["probes"]) for one in results["layers"] if one["mean"] is not None), [])
        if labels:
            figures["probes"] = _probes(results, labels)
        if "interventions" in results:
            figures["interventions"] = _interventions(results)
        for name, figure in figures.items():
            save_figure(figure, folder / f"{name}.png", results["made"], dpi=130)
    plt.close("all")
    return list(figures)


def _told(results: dict, name: str) -> str:
    return f"{TOLD[name]} {results['n']} items; colour around a line: its 95 % interval. {SHADED}"


def _metric(results: dict, name: str):
    title, lines = METRICS[name]
    if name == "cka" and all(value_of(layer["mean"], "cka_chance") is None for layer in results["layers"]):
        title = "linear CKA, plain estimator"  # results of former versions
    title = f"{title[0].upper()}{title[1:]}, layer by layer: {results['model']}"
    figure, (row,) = panels(title, _told(results, name), (10.4, 3.5), 1, 2, sharey=True)
    for axes, pooling in zip(row, POOLINGS):
        for number, (key, label) in enumerate(lines):
            entries = [value_of(layer[pooling], key) for layer in results["layers"]]
            line(axes, entries, LINES[number % 2], label, "-" if number < 2 else ":")
        frame(axes, results, pooling)
    row[0].set_ylim(bottom=min(0, row[0].get_ylim()[0]))
    figure.legend(*row[1].get_legend_handles_labels(), loc="outside lower center", ncols=len(lines))
    return figure


def _probes(results: dict, names: list[str]):
    title, size = f"What a probe reads, layer by layer: {results['model']}", (10.4, 2.7 * len(names) + 0.4)
    figure, grid = panels(title, _told(results, "probes"), size, len(names), 2, sharey="row")
    for name, row in zip(names, grid):
        for axes, pooling in zip(row, POOLINGS):
            for key, (color, label) in PROBES.items():
                entries = [value_of(layer[pooling], f"probes/{name}") for layer in results["layers"]]
                line(axes, [entry and entry[key] for entry in entries], color, label)
            chance = next(e["chance"] for e in entries if e)
            axes.axhline(chance, color=INK, linestyle=":", linewidth=1)
            frame(axes, results, pooling)
        row[0].set_ylabel(f"accuracy: {name}")
        row[0].set_ylim(0, 1.03)
    figure.legend(*grid[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _interventions(results: dict):
    """One panel per kind: right answers over the layers that are cut, skipped or transplanted."""
    tried = results["interventions"]
    groups = list(dict.fromkeys(one["group"] for one in tried["conditions"]))
    rows = -(-len(groups) // 2)
    told = (
        f"Right answers of {tried['n']} questions when something is done to some layers; thin bars: 95 % intervals."
        + (f" The donor is {tried['donor_name']}." if tried.get("donor_name") else "")
    )
    title = f"Which layers the answer needs: {results['model']}"
    figure, grid = panels(title, told, (10.4, 2.6 * rows + 0.4), rows, 2, sharey=True)
    for axes in grid.flat[len(groups) :]:
        axes.axis("off")
    for axes, group in zip(grid.flat, groups):
        entries = [one for one in tried["conditions"] if one["group"] == group]
        low = [100 * (one["accuracy"] - one["ci95"][0]) for one in entries]
        high = [100 * (one["ci95"][1] - one["accuracy"]) for one in entries]
        values = [100 * one["accuracy"] for one in entries]
        axes.bar(range(len(entries)), values, yerr=[low, high], color="#8fb3d1", width=0.65, ecolor=INK)
        for name, (dash, words) in LEVELS.items():
            if name in tried:
                color = LINES[1] if name == "intact" else INK
                axes.axhline(100 * tried[name]["accuracy"], color=color, linestyle=dash, linewidth=1.3, label=words)
        ticks = [layer_words(one["layers"].removeprefix("~")) for one in entries]
        ticks = [tick.removeprefix("layers ").removeprefix("layer ").replace(" to ", "–") for tick in ticks]
        axes.set_xticks(range(len(entries)), ticks)
        axes.set_title(GROUPS.get(group, group))
        axes.set_xlabel("layers")
        axes.grid(axis="x", visible=False)
    for axes in grid[:, 0]:
        axes.set_ylabel("right answers in %")
    grid[0, 0].set_ylim(0, max(5, *(106 * one["ci95"][1] for one in [tried["intact"], *tried["conditions"]])))
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
