"""Plots of the paper in a box, from `table.collect`: conditions.png, bands.png, sweeps.png, data.png."""

from pathlib import Path

from vift_eval.files import save_figure
from vift_eval.plots import FAINT, INK, LINES, STYLE, draw_mean, layer_words, panels, plt

from ..answers import one, pick
from .plan import top_half
from .verdicts import best

OUTCOMES = {
    "right": (LINES[0], "right"),
    "wrong": ("#b9c6d2", "wrong, but of the right kind"),
    "wrong_kind": (LINES[4], "of a wrong kind"),
    "garbage": (LINES[3], "garbage"),
    "empty": (INK, "empty"),
    "caption": (LINES[1], "a caption instead of an answer"),
}
NAMES = {  # of conditions, in words; another condition has its own name
    "oracle_text": "the scene in words, no picture",
    "caption_first": "its own caption first, then the question",
    "fused": "fused, as the model is shipped",
    "span_after_image": "fused, tokens after the picture only",
    "norm_kept": "fused, states keep their length",
    "merged_weights": "weights merged, not fused",
    "prompt_only": "fused, in the prompt only",
    "rule_independent": "fused, in the prompt, not compounding",
    "span_reference": "fused, span of the authors' code",
    "wrong_image": "fused, picture of another question",
    "logit_mix": "with and without picture, averaged",
    "blind": "the question alone, no picture",
    "forced_first_token": "first token of the answer without picture",
    "all_layers": "the paper's form, all layers",
    "top_half": "the paper's form, top half",
    "lowest_half": "the paper's form, lowest half",
    "alpha_one": "fused, with α = 1",
    "static_vector": "fused with one mean vector for all",
    "other_question": "fused, text of another question",
    "random_vectors": "fused with random vectors",
    "unfused": "not fused",
    "logit_contrast": "without picture, subtracted",
}


def draw(results: dict, folder: Path) -> None:
    """Every plot whose figures are there."""
    needed = {"conditions": "test", "bands": "validation", "sweeps": "validation", "data": "arms"}
    with plt.rc_context(STYLE):
        for plot in (conditions, bands, sweeps, data):
            if needed[plot.__name__] in results:
                save_figure(plot(results), folder / f"{plot.__name__}.png", results["made"], dpi=130)
    plt.close("all")


def runs(results: dict) -> str:
    return f"{len(results['seeds'])} training runs that share nothing"


def conditions(results: dict):
    """Accuracy under every condition: mean with its interval, seeds as ticks; beside it the time to answer."""
    records = [record for record in results["test"] if record["condition"] != "band"]
    records.sort(key=lambda record: record["mean"])
    told = (
        f"{runs(results)}, {results['n_test']} test questions each. Dot: mean. Bar: its 95 % interval over questions. "
        "Black ticks: the runs. Blue: fusion as the bundled model is shipped; orange: the same model without it. On "
        "the right the time until the answer is complete, where it was measured, and the tokens that were generated."
    )
    figure, ((left, right),) = panels(
        "Right answers, by how the model is asked", told, (10.4, 0.31 * len(records) + 0.7), 1, 2,
        sharey=True, width_ratios=(1.75, 1),
    )  # fmt: skip
    for row, record in enumerate(records):
        name = record["condition"]
        color = {"fused": LINES[0], "unfused": LINES[1]}.get(name, "#8d99a5")
        draw_mean(left, row, record, color)
        edge = max(*record["ci95"], *record["seeds"])
        left.text(100 * edge + 1.2, row, f"{100 * record['mean']:.0f}", va="center", fontsize=9)
        for spent in pick(results.get("cost", []), condition=name):
            right.barh(row, spent["ms"], color=color, height=0.6)
            words = f"{spent['ms']:.0f} ms, {spent['tokens']:.0f} tokens"
            right.text(spent["ms"] + 2, row, words, va="center", fontsize=8.5)
    names = [NAMES.get(record["condition"], record["condition"].replace("_", " ")) for record in records]
    left.set_yticks(range(len(names)), names)
    left.set(xlabel="right answers in %", xlim=(-1.5, 85), ylim=(-0.7, len(names) - 0.3))
    right.set_xlabel("CPU time of one question, ms")
    right.margins(x=0.45)
    right.set_xlim(left=0)
    for axes in (left, right):
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    return figure


def bands(results: dict):
    """Accuracy by dose, one line per band; intervals of the best one and the paper's."""
    records = pick(results["validation"], sweep="bands")
    paper, top = top_half(results["num_layers"]), best(records)["layers"]
    by_band = {layers: pick(records, layers=layers) for layers in dict.fromkeys(r["layers"] for r in records)}
    plain = {
        name: 100 * one(results["validation"], sweep="plain", condition=name)["mean"]
        for name in ("unfused", "fused", "blind", "caption_first")
    }
    told = (
        f"The paper's form of fusion in {len(by_band)} bands of the {results['num_layers']} layers. "
        f"{runs(results)}, {results['n_validation']} validation questions each; shaded: 95 % intervals of the best "
        f"band and the paper's. Above the frame: {plain['fused']:.0f} % with the bundled model's setting, which "
        f"replaces states (α = 0), and {plain['caption_first']:.0f} % when the model writes a caption first."
    )
    figure, ((axes,),) = panels("Right answers by dose, where states are added (α = 1)", told, (8.4, 4.2))
    for color, layers in zip(LINES, sorted(by_band, key=lambda layers: -by_band[layers][-1]["mean"])):
        band = by_band[layers]
        doses = [record["dose"] for record in band]
        words = layer_words(layers) + (": the paper's top half" if layers == paper else "")
        axes.plot(doses, [100 * r["mean"] for r in band], "o-", color=color, label=words)
        if layers in (paper, top):
            axes.fill_between(doses, *([100 * r["ci95"][i] for r in band] for i in (0, 1)), color=color, alpha=0.13)
    doses = sorted({record["dose"] for record in records})
    for condition, words in (("unfused", "without fusion"), ("blind", "without the picture")):
        axes.axhline(plain[condition], color=FAINT, linestyle="--", linewidth=1)
        side, at = ("left", doses[0]) if condition == "blind" else ("right", doses[-1])
        axes.text(at, plain[condition] + 0.3, f"{words}: {plain[condition]:.0f} %", va="bottom", ha=side, color=FAINT)
    axes.set_xscale("log")
    axes.set_xticks(doses, [f"{dose:g}" for dose in doses])
    axes.minorticks_off()
    axes.set_xlabel("dose: β × number of fused layers")
    axes.set_ylabel("right answers in %")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def sweeps(results: dict):
    """What the answers are, by dose and by alpha, for the checkpoint's layers and the paper's."""
    own, top = results["fusion"]["fusion_layers"], top_half(results["num_layers"])
    titles = {str(own): "the bundled model's", top: "the paper's top half"}
    told = (
        "h'(v,q) = α · h(v,q) + β · h(q): above, more and more of the text run is added (dose = β × number of fused "
        "layers); below, less and less of the run with the picture is kept (read from right to left). "
        f"{runs(results)}, {results['n_validation']} validation questions each."
    )
    figure, axes = panels("What the answers are, by dose and by α", told, (9.6, 5.4), 2, 2, sharey=True)
    for row, (sweep, words) in zip(axes, (("dose", "dose, at α = 1"), ("alpha", "α"))):
        for panel, (layers, whose) in zip(row, titles.items()):
            records = pick(results["validation"], sweep=sweep, layers=layers)
            values, bottom = [f"{record[sweep]:g}" for record in records], [0.0] * len(records)
            for name, (color, label) in OUTCOMES.items():
                shares = [100 * share(record, name) for record in records]
                panel.bar(values, shares, bottom=bottom, color=color, label=label, width=0.85)
                bottom = [b + s for b, s in zip(bottom, shares)]
            panel.set_title(f"by {sweep.replace('alpha', 'α')}: {layer_words(layers)}, {whose}")
            panel.set_xlabel(words)
            panel.set_ylim(0, 100)
            panel.grid(visible=False)
        row[0].set_ylabel("answers in %")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def share(record: dict, outcome: str) -> float:
    if outcome == "right":
        return record["mean"]
    if outcome == "wrong":
        return 1 - record["mean"] - sum(record[name] for name in OUTCOMES if name not in ("right", "wrong"))
    return record[outcome]


def data(results: dict):
    """Accuracy by share of the data: families trained on, held-out families, text ability."""
    trainings = {
        "vift": (LINES[0], "ViFT, fused: never trained on a question about a picture"),
        "vit": (LINES[1], "visual instruction tuning"),
        "vit_text": (LINES[2], "the same with text batches"),
    }
    kinds = {
        "seen": "kinds trained on with pictures",
        "unseen": "kinds held out from that",
        "oracle_text": "the scene in words: text ability",
    }
    dip = dip_of(pick(results["arms"], training="vift"))
    told = (
        f"{runs(results)}; shaded: 95 % intervals over questions of the test split. Visual instruction tuning trains "
        "on ten of the fifteen kinds of questions with pictures; five are held out, others in each run."
    )
    if dip:
        told += (
            f" ViFT's dip at 1/{dip['divisor']} of the data is one of the text ability (right): the training has "
            f"broken it there, down to {100 * dip['oracle_text']['mean']:.1f} %, and not mended it yet."
        )
    figure, (axes,) = panels("Right answers, by how much data is trained on", told, (10.6, 3.7), 1, 3, sharey=True)
    for panel, (which, title) in zip(axes, kinds.items()):
        for training, (color, label) in trainings.items():
            arms = sorted(pick(results["arms"], training=training), key=lambda arm: -arm["divisor"])
            shares, values = [1 / arm["divisor"] for arm in arms], [arm[which] for arm in arms]
            look = "o-" if len(arms) > 1 else "D"
            panel.plot(shares, [100 * v["mean"] for v in values], look, color=color, label=label, zorder=3)
            bounds = ([100 * v["ci95"][i] for v in values] for i in (0, 1))
            panel.fill_between(shares, *bounds, color=color, alpha=0.13)
        if dip:
            panel.annotate("the dip", (1 / dip["divisor"], 100 * dip[which]["mean"]), (0, -16),
                           textcoords="offset points", ha="center", color=LINES[0], fontsize=9)  # fmt: skip
        panel.set_xscale("log")
        panel.set_xticks([1 / 64, 1 / 16, 1 / 4, 1], ["1/64", "1/16", "1/4", "all"])
        panel.minorticks_off()
        panel.set_title(title)
        panel.set_xlabel("share of the data")
        panel.set_ylim(0, 85)
    axes[0].set_ylabel("right answers in %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def dip_of(arms: list[dict]) -> dict | None:
    """The arm between two others whose text ability is lowest, where it lies 10 points and more below both."""
    arms = sorted(arms, key=lambda arm: arm["divisor"])
    around = [
        (min(before["oracle_text"]["mean"], after["oracle_text"]["mean"]) - arm["oracle_text"]["mean"], arm)
        for before, arm, after in zip(arms, arms[1:], arms[2:])
    ]
    deepest, arm = max(around, key=lambda pair: pair[0], default=(0, None))
    return arm if deepest >= 0.1 else None
