"""What fusion costs: time to first token, time per token, peak memory, beside a plain model and five other ways.

    OMP_NUM_THREADS=1 python studies/benchmarks/latency.py --json docs/results/performance/performance.json --page
    OMP_NUM_THREADS=1 python studies/benchmarks/latency.py --quick             # three cells, about a minute
    python studies/benchmarks/latency.py --device cuda --json gpu.json         # the 7B shape in bf16

Cells that are in the JSON file already are not run again, and `--seconds 300` stops before the cell that would start
later than that: call it again to go on. Ways, on the same weights (random; a quarter of a 0.5B model, see `ways.py`):

    plain          transformers' own Llava
    fused          `generate()` of VIFT, top half of the layers
    kept           the same with the prompt's text stream already there (a repeated question; a static vector)
    answer         `fusion_answer=True`: the answer's own tokens too; only in the decoding timed apart
    two_passes     naive fusion: a whole text run with all hidden states, then hooks that add them
    three_passes   the same and a whole unfused run with the image, as in the authors' release
    guidance       `guidance_scale` of transformers, the prompt without its image as the negative one
    caption        a caption of 32 tokens first, then the question with the caption in the image's place
    repeng         a static vector in each of the same layers by repeng's hooks, if it can be imported

The limit of the first token's time over plain: 1 + T l_last c / ((I + T) L c + tower), c = matrix FLOPs of a layer
per token (attention and head left out), I image and T text tokens, L layers, l_last the highest fused one. Times are
CPU seconds of one thread (on a GPU: of the clock, all work done), the ways taking turns; ratios are medians over
rounds (`ONCE`: of one). Decoding is timed apart in the cells `DECODE`, over 234 tokens. Memory is the highest sum of
PyTorch's allocations during a call, weights and inputs not counted.
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers.utils import logging
from ways import ROOT, WAYS, Cell, repeng  # beside this file

from vift_eval.files import command_line, made_by, made_line, markdown_table, read_json, save_figure, write_json

ONCE = ("three_passes", "caption")  # far slower: one round, no memory


def grid() -> list[tuple]:
    """(model, image tokens, text tokens, batch, tower included); at most `MOST` tokens, fewer with the tower."""
    sizes = list(itertools.product((1, 4, 16), (64, 256, 729, 2916), (16, 64, 256)))
    whole = [("0.5B/4", i, t, b, False) for b, i, t in sizes if b * (i + t) <= MOST]
    whole += [("0.5B/4", i, t, b, True) for b, i, t in sizes if b * i <= MOST_PIXELS or (b, i, t) == (1, 2916, 64)]
    return whole + [("micro", 9, t, b, True) for t in (16, 64) for b in (1, 4, 16)]


def gpu_grid() -> list[tuple]:
    whole = [("7B", i, t, b, False) for b in (1, 4) for i in (64, 256, 729) for t in (16, 64, 256)]
    return whole + [("7B", 729, 64, 1, True), ("7B", 729, 64, 16, False)]


MOST, MOST_PIXELS = 8200, 1024  # tokens of all rows
DECODE = [("0.5B/4", 64, 64, 1, False), ("0.5B/4", 729, 64, 1, False), ("0.5B/4", 64, 64, 4, False),
          ("micro", 9, 16, 1, True), ("micro", 9, 64, 16, True), ("7B", 729, 64, 1, False)]  # fmt: skip
ROUNDS = (2, 15)  # at least and at most
PARTS = {"cpu": "0.5B shape", "cpu_micro": "micro model", "gpu": "7B shape"}
QUICK = [("0.5B/4", 64, 64, 1, False), ("0.5B/4", 256, 64, 1, False), ("micro", 9, 16, 1, True)]


def measure(cell: Cell, ways, tokens: int, seconds: float) -> dict:
    """Ratios to plain of one cell, medians over as many rounds as `seconds` hold."""
    peaks = {way: cell.peak(way) for way in ways if way not in ONCE}  # the first call of each way warms up too
    first, token = ({way: [] for way in ways} for _ in range(2))
    start, number = time.monotonic(), 0
    while number < ROUNDS[0] or (number < ROUNDS[1] and time.monotonic() - start < seconds):
        for way in (*ways[number % len(ways) :], *ways[: number % len(ways)]):
            if way in ONCE and number:
                continue
            clock = cell.run(way, tokens)
            first[way].append(clock.first)
            token[way].append(statistics.median(clock.steps))
        number += 1

    def ratios(seconds):
        over = {way: [x / y for x, y in zip(seconds[way], seconds["plain"])] for way in ways}
        return {way: round(statistics.median(values), 4) for way, values in over.items()}

    return {
        "limit": round(cell.limit, 4),
        "rounds": number,
        "plain": {
            "ttft_ms": round(1000 * statistics.median(first["plain"]), 2),
            "token_ms": round(1000 * statistics.median(token["plain"]), 2),
            "peak_mb": round(peaks["plain"] / 2**20, 2),
        },
        "ttft": ratios(first),
        "token": ratios(token),
        "peak": {way: round(peak / peaks["plain"], 4) for way, peak in peaks.items()},
    }


def decode(cell: Cell, calls: int = 6, tokens: int = 40) -> dict:
    """A decoded token over plain, fused and with `fusion_answer`: medians of all steps of calls taken in turn."""
    steps: dict = {"plain": [], "fused": [], "answer": []}
    for number in range(calls):
        for way in list(steps)[:: 1 - 2 * (number % 2)]:
            steps[way] += cell.run(way, tokens).steps
    plain, *others = (statistics.median(seconds) for seconds in steps.values())
    return {way: round(median / plain, 4) for way, median in zip(("fused", "answer"), others, strict=True)}


def summary(cells: dict, decoded: dict) -> dict:
    """Geometric means over the cells, by way."""
    first, token, peak = (pd.DataFrame({n: c[what] for n, c in cells.items()}).T for what in ("ttft", "token", "peak"))
    over_limit = first["fused"] / pd.Series({name: cell["limit"] for name, cell in cells.items()})
    overhead = (first - 1).div((first["fused"] - 1).clip(lower=1e-3), axis=0)
    others = [way for way in WAYS[WAYS.index("two_passes") :] if way in first]

    def mean(ratios):
        return round(float(np.exp(np.log(ratios).mean())), 4)

    def of_decoding(way):
        return mean(pd.Series([ratios[way] for ratios in decoded.values()])) if decoded else None

    return {
        "cells": len(cells),
        "ttft_over_limit_geomean": mean(over_limit),
        "ttft_over_plain": mean(first["fused"]),
        "ttft_over_limit_worst": round(float(over_limit.max()), 4),
        "kept_ttft_over_plain": mean(first["kept"]),
        "decode_over_plain": of_decoding("fused"),
        "answer_decode_over_plain": of_decoding("answer"),
        "token_of_grid_over_plain": mean(token["fused"]),
        "peak_memory_over_plain": mean(peak["fused"]),
        "naive_overhead_over_fused_least": {
            way: round(float(overhead[way].min()), 2) for way in ("two_passes", "three_passes") if way in others
        },
        "ttft_of_others": {way: mean(first[way]) for way in others},
        "token_of_others": {way: mean(token[way]) for way in others},
        "slower_than": {way: list(first.index[first["fused"] > first[way]]) for way in others},
    }


def name_of(cell: tuple) -> str:
    return " ".join(map(str, cell[:4])) + (" with tower" if cell[4] else "")


def parts_of(cells: dict) -> dict[str, dict]:
    """Cells by `PARTS`, in the order of the grid."""
    parts = {key: {} for key in PARTS}
    places = {name_of(cell): place for place, cell in enumerate(grid() + gpu_grid())}
    for name, cell in sorted(cells.items(), key=lambda item: places.get(item[0], len(places))):
        parts[{"micro": "cpu_micro", "7B": "gpu"}.get(name.split()[0], "cpu")][name] = cell
    return parts


def summarize(report: dict) -> None:
    """Sorts the cells and writes the figures over them into the report: CPU, the micro model there, GPU."""
    parts = parts_of(report["cells"])
    report["cells"] = {name: cell for part in parts.values() for name, cell in part.items()}
    for key, part in parts.items():
        if part:
            report[key] = summary(part, {name: x for name, x in report["decode"].items() if name in part})


def table(cells: dict) -> str:
    ways = [way for way in WAYS[1:] if any(way in cell["ttft"] for cell in cells.values())]
    header = ["cell", "plain, ms", "limit", *(way.replace("_", " ") for way in ways), "token", "memory"]
    rows = []
    for name, cell in cells.items():
        ratios = [f"{cell['ttft'][way]:.2f}" if way in cell["ttft"] else "" for way in ways]
        start = [name, f"{cell['plain']['ttft_ms']:.0f}", f"{cell['limit']:.2f}"]
        rows.append([*start, *ratios, f"{cell['token']['fused']:.3f}", f"{cell['peak']['fused']:.2f}"])
    return markdown_table(header, rows)


def page(report: dict) -> str:
    rows = []
    for key, words in PARTS.items():
        if part := report.get(key):
            mean, worst = part["ttft_over_limit_geomean"], part["ttft_over_limit_worst"]
            row = {
                "models": words,
                "cells": part["cells"],
                "first token over limit (worst)": f"{mean} ({worst})",
                "over plain": part["ttft_over_plain"],
                "kept, over plain": part["kept_ttft_over_plain"],
                "decoded token over plain": part["decode_over_plain"],
                "memory over plain": part["peak_memory_over_plain"],
                "least overhead of three passes over fused": part["naive_overhead_over_fused_least"].get(
                    "three_passes"
                ),
            }
            rows.append(row)
    parts = [
        "# What fusion costs: the measurements",
        "Geometric means over cells; a cell is a prompt's shape. What follows from them: "
        "[performance.md](../../performance.md).",
        markdown_table(list(rows[0]), [row.values() for row in rows]),
        "![Time to the first token over plain, by way and by prompt](performance.png)",
        "`plain` in milliseconds; the columns after `limit` are times to the first token over plain; `token` and "
        "`memory` are fused over plain, a decoded token and the peak of the activations. The name of a cell: model, "
        "image tokens, text tokens, batch.",
        table(report["cells"]),
        "Every ratio, and the rounds it is the median of: [performance.json](performance.json).",
        f"Made by {made_line(report['made'])}.",
    ]
    return "\n\n".join(parts) + "\n"


WORDS = {  # of the ways, in the picture
    "repeng": "repeng: a fixed vector, reads no question",
    "kept": "fused, the text run kept from before",
    "limit": "limit: the text run's matrix work alone",
    "fused": "fused",
    "guidance": "guidance of transformers",
    "two_passes": "fused naively: two passes",
    "caption": "a caption of 32 tokens first",
    "three_passes": "fused naively: three passes",
}


def plot(cells: dict, path: Path, made: dict) -> None:
    """Left: every way over all prompts of the first of `PARTS` that is there. Right: fusion by the prompt's shape."""
    from vift_eval.plots import INK, LINES, STYLE, panels, plt

    parts = parts_of(cells)
    part, words = next((part, words) for part, words in zip(parts.values(), PARTS.values()) if part)
    told = (
        "Time until the first token of the answer; 1: the same weights without fusion. Left: a faint dot is a prompt "
        f"shape ({len(part)} of the {words}), a full dot the geometric mean. Right: fused, by the prompt (batch 1, "
        "vision tower not counted); dashed: the limit."
    )
    with plt.rc_context(STYLE):
        options = {"width_ratios": (1.5, 1)}
        figure, ((left, right),) = panels("What fusion costs: the first token", told, (10.4, 3.9), 1, 2, **options)
        times = {way: [{"limit": c["limit"], **c["ttft"]}.get(way) for c in part.values()] for way in WORDS}
        times = {way: values for way, values in times.items() if None not in values}
        for row, (way, values) in enumerate(times.items()):
            color = LINES[0] if way == "fused" else "#8d99a5"
            mean = float(np.exp(np.log(values).mean()))
            left.scatter(values, [row] * len(values), s=14, color=color, alpha=0.35, linewidth=0)
            left.scatter([mean], [row], s=60, color=color, zorder=3)
            left.text(mean, row - 0.22, f"{mean:.2f}", ha="center", fontsize=9)
        left.set_yticks(range(len(times)), [WORDS[way] for way in times])
        left.set(ylim=(len(times) - 0.5, -0.8), xscale="log", xlabel="times as long as without fusion")
        ticks = [tick for tick in (1, 1.5, 2, 3, 5, 8) if tick <= 1.05 * max(map(max, times.values()))]
        left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        left.minorticks_off()
        left.grid(axis="y", visible=False)
        left.tick_params(axis="y", length=0)
        left.set_title("all ways")
        shapes = {tuple(map(int, name.split()[1:4])): cell for name, cell in part.items() if "tower" not in name}
        for color, image in zip(LINES, sorted({image for image, _, batch in shapes if batch == 1})):
            texts = sorted(text for i, text, batch in shapes if (i, batch) == (image, 1))
            found = [shapes[image, text, 1] for text in texts]
            times = [cell["ttft"]["fused"] for cell in found]
            right.plot(texts, times, "o-", color=color)
            right.text(texts[-1] * 1.25, times[-1], f"{image} image tokens", color=color, va="center")
            right.plot(texts, [cell["limit"] for cell in found], "--", color=color, linewidth=1)
            right.set_xscale("log")
            right.set_xticks(texts, [str(text) for text in texts])
        right.axhline(1, color=INK, linewidth=1)
        right.set(xlabel="text tokens of the prompt", ylabel="times as long as without fusion")
        right.set_title("fused, by the prompt")
        right.minorticks_off()
        save_figure(figure, path, made, dpi=130)
    plt.close(figure)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three cells")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="cuda: the 7B shape")
    parser.add_argument("--cell", nargs=5, metavar=("MODEL", "IMAGE", "TEXT", "BATCH", "TOWER"), help="this one only")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--tokens", type=int, default=12, help="new tokens a call")
    parser.add_argument("--cell_seconds", type=float, default=20.0, help="more rounds until then; at least two")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no cell after that")
    parser.add_argument("--decode", action="store_true", help="time decoding apart in every cell, not in five only")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", action="store_true", help="README.md and performance.png beside the JSON file")
    args = parser.parse_args(argv)
    if args.page and not args.json:
        parser.error("--page needs --json: where is the page to be?")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    gpu = args.device == "cuda"
    cells = QUICK if args.quick else gpu_grid() if gpu else grid()
    if args.cell:
        cells = [(args.cell[0], *map(int, args.cell[1:4]), args.cell[4] in ("1", "tower"))]
    ways = [way for way in WAYS if way in args.ways and (way != "repeng" or repeng())]
    report = {"cells": {}, "decode": {}}
    if args.json and args.json.exists():
        report |= read_json(args.json)
    start = time.monotonic()
    for cell in cells:
        name = name_of(cell)
        decoding = cell in DECODE or args.decode
        if name in report["cells"] and (not decoding or name in report["decode"]):
            continue
        if time.monotonic() - start > args.seconds:
            print("stopped in time; call again to go on")
            break
        prompt = None  # before the next model is made
        prompt = Cell(*cell, args.device)
        if name not in report["cells"]:
            measured = [way for way in ways if way != "answer"]
            report["cells"][name] = measure(prompt, measured, args.tokens, args.cell_seconds)
        if decoding:
            report["decode"][name] = decode(prompt)
        print(name, json.dumps(report["cells"][name]), report["decode"].get(name, ""), flush=True)
        summarize(report)
        report["made"] = made_by(command_line(__file__, argv), ROOT / "checkpoints" / "vift-micro")
        if gpu:
            report["made"]["machine"] += f", {torch.cuda.get_device_name()}, bf16"
        if args.json:
            write_json(args.json, report)
    print(table(report["cells"]))
    print(json.dumps({key: report[key] for key in PARTS if key in report}, indent=1))
    if args.page:
        args.json.with_name("README.md").write_text(page(report), encoding="utf-8")
        plot(report["cells"], args.json.with_name("performance.png"), report["made"])


if __name__ == "__main__":
    main()
