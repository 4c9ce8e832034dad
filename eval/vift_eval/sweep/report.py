"""A sweep's files: `results.json`, `results.parquet`, plots and a Markdown report.

The beta curve shows, for each band of layers, the score with its 95 % interval over beta (or dose) above the share of
answers that fail, by sign (`answers.outcomes`). The heat map shows the score over bands and betas. Where a sweep has
more axes (alpha, rule, span, models), each of their combinations is a picture of its own.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from ..answers.outcomes import SIGNS
from ..files import made_line, markdown_table, save_figure, write_json
from ..plots import INK, LINES, STYLE, layer_words, panels, plt

STYLES = {"caption": "-", "repeats": "--", "refusal": "-.", "empty": ":"}
WORDS = {
    "caption": "a caption instead of an answer", "repeats": "repeated words", "refusal": "a refusal", "empty": "empty",
}  # fmt: skip
AXES = {"beta": "β", "dose": "dose (β × number of fused layers)"}
PICTURE_AXES = ["model", "task", "metric", "alpha", "rule", "span"]


def write(results: dict, output: Path) -> list[Path]:
    """Writes all files into `output` and returns their paths."""
    table, made = pd.DataFrame(results["rows"]), results["made"]
    paths = [output / "results.json", output / "results.parquet"]
    write_json(paths[0], results)
    table.to_parquet(paths[1], index=False)
    x = "dose" if "dose" in results["spec"]["settings"][0] else "beta"
    sections = []
    varying = [axis for axis in ("model", "alpha", "rule", "span") if table[axis].nunique() > 1]
    for number, (key, part) in enumerate(table.groupby(PICTURE_AXES, sort=False), 1):
        name = dict(zip(PICTURE_AXES, key))
        title = ", ".join([f"{name['task']}: {name['metric']}", *(f"{axis} {name[axis]}" for axis in varying)])
        pictures = {output / f"curve-{number}.png": draw_curve, output / f"heat-{number}.png": draw_heat}
        for path, draw in pictures.items():
            with plt.rc_context(STYLE):
                figure = draw(part, x, title)
                save_figure(figure, path, made, dpi=120)
            plt.close(figure)
        paths += pictures
        sections.append(section(part, x, title, list(pictures)))
    report = output / "report.md"
    fixed = [f"{axis} {table[axis].iloc[0]}" for axis in ("alpha", "rule", "span") if axis not in varying]
    fixed += ["the answer's own tokens fused too"] if table["answer"].all() else []
    report.write_text(page(results, sections, fixed), encoding="utf-8")
    return [*paths, report]


def bands(part: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(part["layers"]))


def draw_curve(part: pd.DataFrame, x: str, title: str):
    shown = [sign for sign in SIGNS if part[f"rate_{sign}"].max() > 0]
    told = (
        f"{part['n'].iloc[0]} questions a point; bars: 95 % intervals; a line for each band of fused layers. Below: "
        f"the answers that fail, by sign ({', '.join(WORDS[sign] for sign in shown) or 'none does'})."
    )
    figure, grid = panels(f"{title}, by {AXES[x]}", told, (8.6, 6), 2, 1, sharex=True, height_ratios=(3, 2))
    above, below = grid[:, 0]
    step = 0.008 * (part[x].max() - part[x].min())  # side by side, so that no bar hides another
    for number, (color, band) in enumerate(zip(LINES * 9, bands(part))):
        line = part[part["layers"] == band].sort_values(x)
        at, error = line[x] + step * (number - (len(bands(part)) - 1) / 2), 1.96 * line["stderr"].fillna(0)
        above.errorbar(at, line["value"], error, color=color, marker="o", label=layer_words(band))
        for sign in shown:
            below.plot(line[x], 100 * line[f"rate_{sign}"], STYLES[sign], color=color)
    for sign in shown:
        below.plot([], [], STYLES[sign], color=INK, label=WORDS[sign])
    above.set_ylabel(part["metric"].iloc[0].replace("_", " "))
    for axes in (above, below) if shown else (above,):
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    below.set_ylabel("failing answers in %")
    below.set_ylim(0, 103)
    below.set_xticks(sorted(part[x].unique()), [f"{value:g}" for value in sorted(part[x].unique())])
    below.set_xlabel(AXES[x])
    return figure


def draw_heat(part: pd.DataFrame, x: str, title: str):
    values = pivot(part, x)
    shape = (2.2 + 0.85 * max(5, len(values.columns)), 0.8 + 0.5 * len(values))
    told = f"{part['n'].iloc[0]} questions a cell; the darker, the higher."
    figure, ((axes,),) = panels(f"{title}, by {AXES[x]} and fused layers", told, shape)
    image = axes.imshow(values, aspect="auto", cmap="Blues")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            text = f"{value:.3f}" if abs(value) <= 1 else f"{value:.1f}"
            color = INK if value <= middle else "white"
            axes.text(column, row, text, color=color, ha="center", va="center", fontsize=9)
    axes.set_xticks(range(len(values.columns)), [f"{value:g}" for value in values.columns])
    axes.set_yticks(range(len(values)), [layer_words(band) for band in values.index])
    axes.set_xlabel(AXES[x])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label=part["metric"].iloc[0].replace("_", " "))
    return figure


def pivot(part: pd.DataFrame, x: str) -> pd.DataFrame:
    return part.pivot_table(index="layers", columns=x, values="value", sort=False).reindex(
        index=bands(part), columns=sorted(part[x].unique())
    )


def section(part: pd.DataFrame, x: str, title: str, pictures: list[Path]) -> str:
    values = pivot(part, x)
    rows = [[band, *("" if np.isnan(v) else f"{v:.3f}" for v in row)] for band, row in values.iterrows()]
    table = markdown_table([f"layers \\ {x}", *(f"{value:g}" for value in values.columns)], rows)
    failing = ", ".join(f"{sign} {100 * part[f'rate_{sign}'].max():.0f} %" for sign in SIGNS)
    images = "\n\n".join(f"![{title}]({path.name})" for path in pictures)
    return (
        f"## {title}\n\n{table}\n\n{images}\n\nLargest standard error: {part['stderr'].max():.3f}. "
        f"Failing answers at most: {failing}.\n"
    )


def page(results: dict, sections: list[str], fixed: list[str]) -> str:
    spec = results["spec"]
    return (
        f"# Sweep of {', '.join(spec['tasks'])}\n\n"
        f"{len(spec['settings'])} settings, {results['asked']} of them different, {len(spec['models'])} model(s)"
        f"{'; all with ' + ', '.join(fixed) if fixed else ''}. A setting that is "
        "chosen here is chosen on these questions: confirm it on others.\n\n" + "\n".join(sections) + "\n"
        f"Made by {made_line(results['made'])}; {results['seconds']} s, {results['cpu_seconds']} s of CPU "
        "(of the last run of that command).\n"
    )
