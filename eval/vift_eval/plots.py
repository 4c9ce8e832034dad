"""One look for every figure: matplotlib without a screen, colours, a title with its explanation, layers in words."""

import textwrap

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

INK, FAINT, GRID = "#22222a", "#6b6862", "#e4e1da"
# the first is what a figure is about; told apart with any colour vision, and by their lightness
LINES = ("#1769aa", "#d9822b", "#2a8c6a", "#a23b72", "#7f7bd0", "#404040")
STYLE = {
    "font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT,
    "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": GRID, "grid.linewidth": 0.8, "axes.titlesize": 10.5, "axes.titlelocation": "left",
    "axes.titleweight": "bold", "axes.titlepad": 8, "legend.frameon": False, "legend.fontsize": 9,
    "lines.linewidth": 1.7, "lines.markersize": 4.5, "errorbar.capsize": 2,
}  # fmt: skip
HEAD, LINE = 0.40, 0.175  # inches of a title, and of each line of its explanation

__all__ = ["FAINT", "INK", "LINES", "STYLE", "draw_mean", "layer_words", "panels", "plt"]


def panels(title: str, told: str, size: tuple[float, float], rows: int = 1, columns: int = 1, **options):
    """
    A figure with room: `title` in bold, below it `told`, which says how to read it, below them the axes.

    Args:
        size: inches of the axes, without title and explanation.
        options: of `plt.subplots`.

    Returns:
        (figure, array of axes, (rows, columns)); the layout is matplotlib's "constrained".
    """
    width, height = size
    lines = textwrap.wrap(told, int(14.6 * width))
    top = HEAD + LINE * len(lines) + 0.12
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, height + top), layout="constrained", squeeze=False, **options
    )
    figure.get_layout_engine().set(rect=(0, 0, 1, height / (height + top)), w_pad=0.08, h_pad=0.06)
    at = 1 / (height + top)
    figure.text(0.1 / width, 1 - 0.12 * at, title, size=13, weight="bold", va="top")
    figure.text(0.1 / width, 1 - HEAD * at, "\n".join(lines), size=9.5, color=FAINT, va="top", linespacing=1.3)
    return figure, axes


def layer_words(layers: str) -> str:
    """
    Layers as a reader counts them: "0:4" is "layers 0 to 3", "1:2" "layer 1", "~0:2" "all but layers 0 to 1".

    A number alone is a share of the top ("0.5": "top 50 % of the layers"); what else there is stays as it is.
    """
    if layers.startswith("~"):
        return f"all but {layer_words(layers[1:])}"
    first, band, stop = layers.partition(":")
    if band and first.isdigit() and stop.isdigit():
        return f"layer {first}" if int(stop) - int(first) == 1 else f"layers {first} to {int(stop) - 1}"
    if layers == "config's":
        return "the config's layers"
    share = layers.replace(".", "", 1).isdigit()
    return f"top {100 * float(layers):g} % of the layers" if share else f"layers {layers}"


def draw_mean(axes, row: int, score: dict, color: str) -> None:
    """A share {"mean", "ci95", "seeds"} on a row of its own, in %: a dot on its interval, the seeds as ticks."""
    axes.plot([100 * bound for bound in score["ci95"]], [row, row], color=color, linewidth=4, alpha=0.45)
    axes.plot(100 * score["mean"], row, "o", color=color, markersize=7)
    seeds = [100 * value for value in score["seeds"]]
    axes.plot(seeds, [row] * len(seeds), "|", color=INK, markersize=9, markeredgewidth=1.1)
