"""Figures of `vift analyze`, one per metric: last token on the left, mean over the modality's tokens on the right."""

from pathlib import Path

from ..files import save_figure
from ..plots import LINES, STYLE, plt

POOLINGS = {"last": "last token of the prompt", "mean": "mean over image tokens / over the caption's tokens"}
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
PROBES = {
    "image": "fitted on pictures",
    "text": "fitted on captions",
    "transfer": "fitted on captions, read off pictures",
    "shuffled": "shuffled labels",
}


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
    axes.plot(xs, values, dash, color=color, label=label, marker="o", markersize=3, linewidth=1.5)
    if all(entry["ci95"] for _, entry in known):
        bounds = [[entry["ci95"][i] for _, entry in known] for i in (0, 1)]
        axes.fill_between(xs, *bounds, color=color, alpha=0.18, linewidth=0)


def frame(axes, results: dict, pooling: str) -> None:
    """The band of the rule, which stands for layers: layer i wrote representation i + 1."""
    band = results["band" if pooling == "last" else "band_mean"]
    axes.axvspan(band["first"] + 0.5, band["stop"] + 0.5, color="#888888", alpha=0.12, linewidth=0)
    axes.set_title(POOLINGS[pooling], fontsize=9, loc="left")
    axes.set_xlabel("representation (0: embeddings, l: after l layers)")
    axes.set_xlim(-0.3, len(results["layers"]) - 0.7)


def draw(results: dict, folder: Path) -> list[str]:
    """Writes the figures; their names."""
    with plt.rc_context(STYLE):
        figures = {name: _metric(results, *METRICS[name]) for name in METRICS}
        labels = next((list(one["mean"]["probes"]) for one in results["layers"] if one["mean"] is not None), [])
        if labels:
            figures["probes"] = _probes(results, labels)
        if "interventions" in results:
            figures["interventions"] = _interventions(results["interventions"])
        for name, figure in figures.items():
            save_figure(figure, folder / f"{name}.png", results["made"], dpi=130)
    plt.close("all")
    return list(figures)


def _metric(results: dict, title: str, lines: list[tuple[str, str]]):
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained", sharey=True)
    for axes, pooling in zip(panels, POOLINGS):
        for number, (key, label) in enumerate(lines):
            entries = [value_of(layer[pooling], key) for layer in results["layers"]]
            line(axes, entries, LINES[number % 2], label, "-" if number < 2 else ":")
        frame(axes, results, pooling)
    panels[0].set_ylabel(title)
    panels[0].set_ylim(bottom=min(0, panels[0].get_ylim()[0]))
    panels[0].legend(fontsize=8, frameon=False)
    return figure


def _probes(results: dict, names: list[str]):
    figure, grid = plt.subplots(
        len(names), 2, figsize=(9.5, 2.6 * len(names)), layout="constrained", sharey="row", squeeze=False
    )
    for name, panels in zip(names, grid):
        for axes, pooling in zip(panels, POOLINGS):
            for color, (key, label) in zip(("#4a78b8", "#7a4fa0", "#2a7f4f", "#888888"), PROBES.items()):
                entries = [value_of(layer[pooling], f"probes/{name}") for layer in results["layers"]]
                line(axes, [entry and entry[key] for entry in entries], color, label)
            chance = next(e["chance"] for e in entries if e)
            axes.axhline(chance, color="gray", linestyle=":", linewidth=1)
            frame(axes, results, pooling)
        panels[0].set_ylabel(f"accuracy: {name}")
        panels[0].set_ylim(0, 1.03)
    grid[0, 0].legend(fontsize=8, frameon=False)
    return figure


def _interventions(tried: dict):
    """One panel per kind: right answers over the layers that are cut, skipped or transplanted."""
    groups = list(dict.fromkeys(one["group"] for one in tried["conditions"]))
    rows = -(-len(groups) // 2)
    figure, grid = plt.subplots(rows, 2, figsize=(9.5, 2.7 * rows), layout="constrained", squeeze=False, sharey=True)
    for axes in grid.flat[len(groups) :]:
        axes.axis("off")
    for axes, group in zip(grid.flat, groups):
        entries = [one for one in tried["conditions"] if one["group"] == group]
        low = [100 * (one["accuracy"] - one["ci95"][0]) for one in entries]
        high = [100 * (one["ci95"][1] - one["accuracy"]) for one in entries]
        values = [100 * one["accuracy"] for one in entries]
        look = {"color": LINES[1], "width": 0.65, "ecolor": "#333333", "capsize": 2}
        axes.bar(range(len(entries)), values, yerr=[low, high], **look)
        for name, dash in (("intact", "-"), ("blind", ":"), ("donor", "--")):
            if name in tried:
                axes.axhline(100 * tried[name]["accuracy"], color="gray", linestyle=dash, linewidth=1.2, label=name)
        axes.set_xticks(range(len(entries)), [one["layers"] for one in entries], fontsize=7)
        axes.set_title(group, fontsize=9, loc="left")
        axes.grid(axis="x", visible=False)
    for axes in grid[:, 0]:
        axes.set_ylabel("right answers in %")
    grid[0, 0].set_ylim(0, max(5, *(118 * one["ci95"][1] for one in [tried["intact"], *tried["conditions"]])))
    grid[0, 0].legend(fontsize=8, frameon=False, ncols=3, loc="upper left")
    return figure
