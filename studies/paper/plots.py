"""Plots of the paper in a box, from `table.collect`: conditions.png, bands.png, sweeps.png, data.png."""

from pathlib import Path

from vift_eval.files import save_figure
from vift_eval.plots import LINES, STYLE, draw_mean, plt

from ..answers import one, pick
from .plan import top_half
from .verdicts import best

OUTCOMES = {
    "right": ("#2a7f4f", "right"),
    "wrong": ("#b8c4bd", "wrong, right kind"),
    "wrong_kind": ("#e0a030", "wrong kind"),
    "garbage": ("#b03030", "garbage"),
    "empty": ("#404040", "empty"),
    "caption": ("#4a78b8", "caption"),
}


def draw(results: dict, folder: Path) -> None:
    """Every plot whose figures are there."""
    needed = {"conditions": "test", "bands": "validation", "sweeps": "validation", "data": "arms"}
    with plt.rc_context(STYLE):
        for plot in (conditions, bands, sweeps, data):
            if needed[plot.__name__] in results:
                save_figure(plot(results), folder / f"{plot.__name__}.png", results["made"], dpi=130)
    plt.close("all")


def conditions(results: dict):
    """Accuracy under every condition: mean with its interval, seeds as ticks; beside it the time to answer."""
    records = [record for record in results["test"] if record["condition"] != "band"]
    records.sort(key=lambda record: record["mean"])
    names = [record["condition"] for record in records]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 0.27 * len(names) + 1.2), sharey=True,
                                         width_ratios=(2.2, 1), layout="constrained")  # fmt: skip
    for row, record in enumerate(records):
        name = record["condition"]
        color = LINES[0] if name == "fused" else LINES[2] if name == "unfused" else LINES[1]
        draw_mean(left, row, record, color)
        for spent in pick(results.get("cost", []), condition=name):
            right.barh(row, spent["ms"], color=color, height=0.6)
            right.text(spent["ms"], row, f" {spent['tokens']:.0f}", va="center", fontsize=7)
    left.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    left.set_xlabel(f"right answers in %, test split ({results['n_test']} questions per seed); ticks: seeds")
    right.set_xlabel("CPU ms an answer; number: tokens")
    left.set_xlim(left=0)
    right.margins(x=0.15)
    return figure


def bands(results: dict):
    """Accuracy by dose, one line per band; intervals of the best one and the paper's."""
    records = pick(results["validation"], sweep="bands")
    shaded = {best(records)["layers"], top_half(results["num_layers"])}
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for color, layers in zip(LINES, dict.fromkeys(record["layers"] for record in records)):
        band = pick(records, layers=layers)
        doses = [record["dose"] for record in band]
        axes.plot(doses, [100 * r["mean"] for r in band], "o-", color=color, label=f"layers {layers}", markersize=4)
        if layers in shaded:
            axes.fill_between(doses, *([100 * r["ci95"][i] for r in band] for i in (0, 1)), color=color, alpha=0.15)
    doses = sorted({record["dose"] for record in records})
    for condition, dash in (("unfused", ":"), ("blind", "--"), ("caption_first", "-.")):
        level = 100 * one(results["validation"], sweep="plain", condition=condition)["mean"]
        axes.axhline(level, color="gray", linestyle=dash, linewidth=1)
        axes.text(max(doses), level, condition.replace("_", " "), ha="right", va="bottom", fontsize=8, color="gray")
    axes.set_xscale("log")
    axes.set_xticks(doses, [f"{dose:g}" for dose in doses])
    axes.minorticks_off()
    axes.set_xlabel("dose: β × number of fused layers")
    axes.set_ylabel("right answers in %, validation split")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def sweeps(results: dict):
    """What the answers are, by dose and by alpha, for the checkpoint's layers and the paper's."""
    own, top = results["fusion"]["fusion_layers"], top_half(results["num_layers"])
    titles = {str(own): f"the checkpoint's layers ({own})", top: f"the top half ({top})"}
    figure, axes = plt.subplots(2, 2, figsize=(9, 5.6), sharey=True, layout="constrained")
    for row, (sweep, title) in zip(axes, (("dose", "by dose (α = 1)"), ("alpha", "by α"))):
        for panel, (layers, where) in zip(row, titles.items()):
            records = pick(results["validation"], sweep=sweep, layers=layers)
            values, bottom = [str(record[sweep]) for record in records], [0.0] * len(records)
            for name, (color, label) in OUTCOMES.items():
                shares = [100 * share(record, name) for record in records]
                panel.bar(values, shares, bottom=bottom, color=color, label=label, width=0.85)
                bottom = [b + s for b, s in zip(bottom, shares)]
            panel.set_title(f"{title}, {where}", fontsize=9)
            panel.grid(False)
        row[0].set_ylabel("answers in %, validation split")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    return figure


def share(record: dict, outcome: str) -> float:
    if outcome == "right":
        return record["mean"]
    if outcome == "wrong":
        return 1 - record["mean"] - sum(record[name] for name in OUTCOMES if name not in ("right", "wrong"))
    return record[outcome]


def data(results: dict):
    """Accuracy by share of the data: families trained on, held-out families, text ability."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), sharey=True, layout="constrained")
    trainings = {
        "vift": "ViFT, fused (never trained on a visual question)",
        "vit": "visual instruction tuning",
        "vit_text": "the same with text batches",
    }
    panels = {
        "seen": "families trained on",
        "unseen": "held-out families",
        "oracle_text": "scene in words (text ability)",
    }
    for panel, (which, title) in zip(axes, panels.items()):
        for color, (training, label) in zip((LINES[0], LINES[1], LINES[3]), trainings.items()):
            arms = sorted(pick(results["arms"], training=training), key=lambda arm: -arm["divisor"])
            shares, values = [1 / arm["divisor"] for arm in arms], [arm[which] for arm in arms]
            panel.plot(shares, [100 * v["mean"] for v in values], "o-", color=color, label=label, markersize=4)
            bounds = ([100 * v["ci95"][i] for v in values] for i in (0, 1))
            panel.fill_between(shares, *bounds, color=color, alpha=0.12)
        panel.set_xscale("log")
        panel.set_xticks([1 / 64, 1 / 16, 1 / 4, 1], ["1/64", "1/16", "1/4", "1"])
        panel.minorticks_off()
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("share of the data")
    axes[0].set_ylabel("right answers in %, test split")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure
