"""Plots of the paper in a box, from `paper_figures.collect`: ways.png, bands.png, sweeps.png, data.png."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

from vift_eval.plots import LINES, STYLE  # noqa: E402

OUTCOMES = {
    "right": ("#2a7f4f", "right"),
    "wrong": ("#b8c4bd", "wrong, right kind"),
    "wrong_kind": ("#e0a030", "wrong kind"),
    "garbage": ("#b03030", "garbage"),
    "empty": ("#404040", "empty"),
    "captions": ("#4a78b8", "caption"),
}


def draw(results: dict, folder: Path) -> None:
    """Every plot whose figures are there."""
    with plt.rc_context(STYLE):
        if "ways" in results:
            _ways(results).savefig(folder / "ways.png", dpi=130)
        if "sweeps" in results:
            _bands(results).savefig(folder / "bands.png", dpi=130)
            _sweeps(results).savefig(folder / "sweeps.png", dpi=130)
        if "arms" in results:
            _data(results["arms"]["table"]).savefig(folder / "data.png", dpi=130)
    plt.close("all")


def _ways(results: dict):
    """Accuracy of every way of asking: mean with its interval, seeds as dots; beside it the time to answer."""
    ways = {name: way for name, way in results["ways"].items() if not name.startswith("band ")}
    names = sorted(ways, key=lambda name: ways[name]["mean"])
    cost = results.get("cost", {})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 0.27 * len(names) + 1.2), sharey=True,
                                         width_ratios=(2.2, 1), layout="constrained")  # fmt: skip
    for row, name in enumerate(names):
        way = ways[name]
        color = LINES[0] if name == "fused" else LINES[2] if name == "unfused" else LINES[1]
        low, high = way["ci95"]
        left.plot([100 * low, 100 * high], [row, row], color=color, linewidth=2.5)
        left.plot(100 * way["mean"], row, "o", color=color, markersize=6)
        left.plot([100 * value for value in way["seeds"]], [row] * len(way["seeds"]), "|", color="black", markersize=8)
        if name in cost:
            right.barh(row, cost[name]["cpu_ms"], color=color, height=0.6)
            right.text(cost[name]["cpu_ms"], row, f" {cost[name]['tokens']:.0f}", va="center", fontsize=7)
    left.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    left.set_xlabel(f"right answers in %, test split (n = {results['n_test']} a seed); ticks: seeds")
    right.set_xlabel("CPU ms an answer; figure: tokens")
    left.set_xlim(left=0)
    right.margins(x=0.15)
    return figure


def _bands(results: dict):
    """Accuracy by dose, a line a band; intervals of the best one and the paper's."""
    bands = results["sweeps"]["bands"]
    last = max(int(key.split()[0].split(":")[1]) for key in bands)
    shaded = {max(bands, key=lambda key: bands[key]["mean"]).split()[0], f"{last // 2}:{last}"}
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for color, name in zip(LINES, dict.fromkeys(key.split()[0] for key in bands)):
        entries = [(float(key.split()[1]), entry) for key, entry in bands.items() if key.split()[0] == name]
        doses, values = [dose for dose, _ in entries], [entry for _, entry in entries]
        axes.plot(doses, [100 * e["mean"] for e in values], "o-", color=color, label=f"layers {name}", markersize=4)
        if name in shaded:
            axes.fill_between(doses, *([100 * e["ci95"][i] for e in values] for i in (0, 1)), color=color, alpha=0.15)
    for way, dash in (("unfused", ":"), ("blind", "--"), ("caption_first", "-.")):
        level = 100 * results["sweeps"]["plain"][way]["mean"]
        axes.axhline(level, color="gray", linestyle=dash, linewidth=1)
        axes.text(max(doses), level, way.replace("_", " "), ha="right", va="bottom", fontsize=8, color="gray")
    axes.set_xscale("log")
    axes.set_xticks(doses, [f"{dose:g}" for dose in doses])
    axes.minorticks_off()
    axes.set_xlabel("dose: β × number of fused layers")
    axes.set_ylabel("right answers in %, validation")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _sweeps(results: dict):
    """What the answers are, by dose and by alpha, for the checkpoint's band and the paper's."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 5.6), sharey=True, layout="constrained")
    titles = {"config": f"the checkpoint's layers ({results['fusion']['fusion_layers']})", "top_half": "top half"}
    for row, group in zip(axes, ("dose", "alpha")):
        for panel, band in zip(row, titles):
            entries = [
                (key.split()[1], e) for key, e in results["sweeps"][group].items() if key.startswith(f"{band} ")
            ]
            bottom = [0.0] * len(entries)
            for name, (color, label) in OUTCOMES.items():
                shares = [100 * _share(entry, name) for _, entry in entries]
                panel.bar([value for value, _ in entries], shares, bottom=bottom, color=color, label=label, width=0.85)
                bottom = [b + s for b, s in zip(bottom, shares)]
            panel.set_title(f"{'dose (α = 1)' if group == 'dose' else 'α'}, {titles[band]}", fontsize=9)
            panel.grid(False)
    axes[0][0].set_ylabel("answers in %, validation")
    axes[1][0].set_ylabel("answers in %, validation")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    return figure


def _share(entry: dict, name: str) -> float:
    if name == "right":
        return entry["mean"]
    if name == "wrong":
        return 1 - entry["mean"] - sum(entry[other] for other in ("captions", "wrong_kind", "garbage", "empty"))
    return entry[name]


def _data(arms: dict):
    """Accuracy by share of the data: families trained on, held-out families, text ability."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), sharey=True, layout="constrained")
    families = {"vift": "ViFT, fused (never trained on any)", "vit": "visual instructions", "vit_text": "with text"}
    panels = {"seen": "families trained on", "unseen": "held-out families", "gold": "scene in words (text ability)"}
    for panel, (which, title) in zip(axes, panels.items()):
        for color, (prefix, label) in zip((LINES[0], LINES[1], LINES[3]), families.items()):
            mine = sorted((a for a in arms if a.rsplit("-", 1)[0] == prefix), key=lambda a: -int(a.split("-")[1]))
            share = [1 / int(arm.split("-")[1]) for arm in mine]
            values = [arms[arm][which] for arm in mine]
            panel.plot(share, [100 * v["mean"] for v in values], "o-", color=color, label=label, markersize=4)
            panel.fill_between(share, *([100 * v["ci95"][i] for v in values] for i in (0, 1)), color=color, alpha=0.12)
        panel.set_xscale("log")
        panel.set_xticks([1 / 64, 1 / 16, 1 / 4, 1], ["1/64", "1/16", "1/4", "1"])
        panel.minorticks_off()
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("share of the data")
    axes[0].set_ylabel("right answers in %, test")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure
