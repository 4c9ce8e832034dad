"""One look for every figure: matplotlib without a screen, colours, settings, and means with their intervals."""

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

LINES = ("#2a7f4f", "#4a78b8", "#b03030", "#e0a030", "#7a4fa0", "#404040")
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "font.size": 9}

__all__ = ["LINES", "STYLE", "draw_mean", "plt"]


def draw_mean(axes, row: int, score: dict, color: str) -> None:
    """A share {"mean", "ci95", "seeds"} on a row of its own, in %: a dot on its interval, the seeds as ticks."""
    axes.plot([100 * bound for bound in score["ci95"]], [row, row], color=color, linewidth=2.5)
    axes.plot(100 * score["mean"], row, "o", color=color, markersize=6)
    seeds = [100 * value for value in score["seeds"]]
    axes.plot(seeds, [row] * len(seeds), "|", color="black", markersize=8)
