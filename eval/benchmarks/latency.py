"""What fusion costs: time to first token, time a token, peak memory, beside a plain model and six other ways.

    OMP_NUM_THREADS=1 python eval/benchmarks/latency.py --json docs/performance.json --page docs/performance.md
    OMP_NUM_THREADS=1 python eval/benchmarks/latency.py --quick             # three cells, about a minute
    python eval/benchmarks/latency.py --device cuda --json docs/performance.json      # the 7B shape in bf16

Cells that are in the JSON file already are not run again, and `--seconds 300` stops before the cell that would start
later than that: call it again to go on. Ways, on the same weights (random; a quarter of a 0.5B model, see `SHAPES`):

    plain          transformers' own Llava
    fused          `generate()` of VIFT, top half of the layers; short prompts with both runs in one pass
    apart          the same with the text run always in a pass of its own
    kept           the same with the prompt's text stream already there (a repeated question; a static vector)
    answer         `fusion_answer=True`: the answer's own tokens too; only in the decoding timed apart
    two_passes     naive fusion: a whole text run with all hidden states, then hooks that add them
    three_passes   the same and a whole unfused run with the image, as in the authors' release
    guidance       `guidance_scale` of transformers, the prompt without its image as the negative one
    caption        a caption of 32 tokens first, then the question with the caption in the image's place
    repeng         a static vector in each of the same layers by repeng's hooks, if it can be imported

The limit of the first token's time over plain: 1 + T l_last c / ((I + T) L c + tower), c = matrix FLOPs of a layer a
token (attention and head left out), I image and T text tokens, L layers, l_last the highest fused one. Times are CPU
seconds of one thread (on a GPU: of the clock, all work done), the ways taking turns; ratios are medians over rounds
(`ONCE`: of one). Decoding is timed apart in the cells `DECODE`, over 234 tokens. Memory is the highest sum of
PyTorch's allocations during a call, weights and inputs not counted.
"""

import argparse
import functools
import itertools
import json
import math
import os
import platform
import re
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration, LogitsProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging

from modeling_vift import TextStreamCache, VIFTConfig, VIFTForConditionalGeneration

ROOT = Path(__file__).resolve().parents[2]
IMAGE, CAPTION = 5, 32
# Qwen2.5-0.5B and SigLIP-so400m with a quarter of the layers and of the vocabulary: the same shares of the work
TEXT = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 6, "vocab_size": 37984,
    "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 7,
    "num_attention_heads": 16, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}
SHAPES = {  # (language model, tower)
    "0.5B/4": (TEXT, VISION),
    "7B": (VIFTConfig().text_config.to_dict(), VIFTConfig().vision_config.to_dict()),
    "tiny": (TEXT | SMALL | {"num_attention_heads": 2}, VISION | {"num_attention_heads": 2} | SMALL),
}
WAYS = ("plain", "fused", "apart", "kept", "answer", "two_passes", "three_passes", "guidance", "caption", "repeng")
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


MOST, MOST_PIXELS, LARGE = 8200, 1024, 1000  # tokens; large cells are not packed and go without `apart`
DECODE = [("0.5B/4", 64, 64, 1, False), ("0.5B/4", 729, 64, 1, False), ("0.5B/4", 64, 64, 4, False),
          ("micro", 9, 16, 1, True), ("micro", 9, 64, 16, True), ("7B", 729, 64, 1, False)]  # fmt: skip
QUICK = [("0.5B/4", 64, 64, 1, False), ("0.5B/4", 256, 64, 1, False), ("micro", 9, 16, 1, True)]


class Clock(LogitsProcessor):
    """Notes the time at which each token's logits are there: this process's on a CPU, the clock's on a GPU."""

    def __init__(self, device: str = "cpu"):
        self.device, self.stamps = device, []
        self.start = self.now()

    def now(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def __call__(self, input_ids, scores):
        self.stamps.append(self.now())
        return scores

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.stamps[0] - self.start

    @property
    def steps(self) -> list[float]:
        """Seconds of each further one."""
        return [after - before for before, after in itertools.pairwise(self.stamps)]


def build(shape: str, image_tokens: int, device: str):
    """(VIFT, Llava of transformers with the same weights: the same tensors, other modules)."""
    if shape == "micro":
        path = ROOT / "checkpoints" / "vift-micro"
        fused = AutoModelForImageTextToText.from_pretrained(path, trust_remote_code=True, dtype=torch.float32)
        config = fused.config
    else:
        text, vision = SHAPES[shape]
        vision = vision | {"image_size": vision["patch_size"] * round(image_tokens**0.5)}
        config = VIFTConfig(
            vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=image_tokens,
            vision_feature_layer=-1, tie_word_embeddings=text["tie_word_embeddings"],
        )  # fmt: skip
        torch.manual_seed(0)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        with torch.device(device):
            fused = VIFTForConditionalGeneration._from_config(config, dtype=dtype)
    given = {name: value for name, value in config.to_dict().items() if name in LlavaConfig().to_dict()}
    with torch.device("meta"):
        plain = LlavaForConditionalGeneration(LlavaConfig(**(given | {"model_type": "llava"})))
    plain.to_empty(device="cpu")
    plain.load_state_dict(fused.state_dict(), assign=True)
    plain.tie_weights()
    # buffers that no checkpoint holds
    for ours, theirs in zip(plain.modules(), fused.modules(), strict=True):
        for name in ours._non_persistent_buffers_set:
            setattr(ours, name, getattr(theirs, name))
    for model in (fused, plain):
        model.eval()
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return fused, plain


class Cell:
    """One prompt shape, asked in every way; `run(way, tokens)` gives the `Clock` of one call."""

    def __init__(self, shape, image_tokens, text_tokens, batch, tower, device="cpu"):
        self.fused, self.plain = build(shape, image_tokens, device)
        self.device = device
        config = self.fused.config
        self.layers, self.image_tokens = config.text_config.num_hidden_layers, image_tokens
        self.band = list(range(self.layers // 2, self.layers))
        random = torch.Generator().manual_seed(0)
        low = max(IMAGE, config.image_token_id) + 1
        text = torch.randint(low, config.text_config.vocab_size, (batch, text_tokens), generator=random)
        before = text_tokens // 4  # a system prompt
        pictures = torch.full((batch, image_tokens), config.image_token_id)
        ids = torch.cat([text[:, :before], pictures, text[:, before:]], dim=1).to(device)
        text = text.to(device)
        self.text = {"input_ids": text, "attention_mask": torch.ones_like(text)}
        self.prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        self.columns = [*range(before), *range(before + image_tokens, ids.shape[1])]
        size, batch_of = config.vision_config.image_size, {"generator": random}
        here = (device, self.fused.dtype)
        pixels = torch.rand(batch, 3, size, size, **batch_of).to(*here)
        features = (torch.randn(batch, image_tokens, config.text_config.hidden_size, **batch_of) * 0.02).to(*here)
        self.image = lambda: (
            {"pixel_values": pixels}
            if tower
            else {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=list(features))}}
        )
        self.stream = self.fused.text_stream(**self.prompt, fusion_layers=self.band)
        self.vectors = {layer: torch.randn(config.text_config.hidden_size).to(*here) for layer in self.band}
        self.limit = self._limit(config, text_tokens, tower)

    def _limit(self, config, text_tokens: int, tower: bool) -> float:
        c, v = config.text_config, config.vision_config
        heads = c.hidden_size + 2 * c.num_key_value_heads * c.hidden_size // c.num_attention_heads
        layer = c.hidden_size * (heads + c.hidden_size + 3 * c.intermediate_size)
        vision = v.num_hidden_layers * (4 * v.hidden_size**2 + 2 * v.hidden_size * v.intermediate_size)
        vision += c.hidden_size * (v.hidden_size + c.hidden_size)
        whole = (self.image_tokens + text_tokens) * self.layers * layer + tower * self.image_tokens * vision
        return 1 + text_tokens * max(self.band) * layer / whole

    @torch.no_grad()
    def run(self, way: str, tokens: int) -> Clock:
        clock = Clock(self.device)
        greedy = {"max_new_tokens": tokens, "do_sample": False, "logits_processor": [clock]}
        ask = functools.partial(self.plain.generate, **self.prompt, **self.image(), **greedy)
        if way == "plain":
            ask()
        elif way in ("fused", "apart", "kept", "answer"):
            fusion = {"fusion": True, "alpha": 1.0, "beta": 0.1, "fusion_layers": self.band}
            fusion["fusion_answer"] = way == "answer"
            stream = {"apart": TextStreamCache(0), "kept": self.stream}.get(way)
            self.fused.generate(**self.prompt, **self.image(), **greedy, **fusion, text_stream=stream)
        elif way in ("two_passes", "three_passes"):
            states = self.plain(**self.text, output_hidden_states=True).hidden_states
            if way == "three_passes":
                self.plain(**self.prompt, **self.image(), output_hidden_states=True)
            self._with_hooks(states, ask)
        elif way == "guidance":
            negative = {f"negative_prompt_{name.removeprefix('input_')}": value for name, value in self.text.items()}
            negative["negative_prompt_attention_mask"] = negative.pop("negative_prompt_attention_mask")
            ask(guidance_scale=1.5, **negative)
        elif way == "caption":
            said = self.plain.generate(**self.prompt, **self.image(), max_new_tokens=CAPTION, do_sample=False)
            ids = torch.cat([said[:, -CAPTION:], self.text["input_ids"]], dim=1)
            self.plain.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **greedy)
        elif way == "repeng":
            self._with_repeng(ask)
        return clock

    def _with_hooks(self, states, ask) -> None:
        columns = torch.tensor(self.columns)

        def add(layer, module, args):
            if args[0].shape[1] == 1:
                return None
            args[0][:, columns] += 0.1 * states[layer]
            return args

        layers = self.plain.model.language_model.layers
        hooks = [layers[layer].register_forward_pre_hook(functools.partial(add, layer)) for layer in self.band]
        ask()
        [hook.remove() for hook in hooks]

    def _with_repeng(self, ask) -> None:
        class Wrapped:  # repeng looks for `.model.layers`
            model = self.plain.model.language_model

        control = repeng().ControlModel(Wrapped(), [layer - 1 for layer in self.band])
        control.set_raw_control({layer - 1: 0.1 * self.vectors[layer] for layer in self.band})
        try:
            ask()
        finally:
            control.unwrap()

    def peak(self, way: str) -> int:
        """Bytes."""
        from torch.profiler import ProfilerActivity, profile

        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.run(way, 2)
            return torch.cuda.max_memory_allocated() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            self.run(way, 2)
        events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
        return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@functools.cache
def repeng():
    """The library, or None: 0.4.0 names `np.float_`, which NumPy 2 took away."""
    np.float_ = np.float64
    try:
        import repeng
    except ImportError:
        return None
    return repeng


def measure(cell: Cell, ways, tokens: int, seconds: float, rounds=(2, 15)) -> dict:
    """Ratios to plain of one cell, medians over as many rounds as `seconds` hold."""
    peaks = {way: cell.peak(way) for way in ways if way not in ONCE}  # the first call of each way warms up too
    first, token = ({way: [] for way in ways} for _ in range(2))
    start, number = time.monotonic(), 0
    while number < rounds[0] or (number < rounds[1] and time.monotonic() - start < seconds):
        for way in (*ways[number % len(ways) :], *ways[: number % len(ways)]):
            if way in ONCE and number:
                continue
            clock = cell.run(way, tokens)
            first[way].append(clock.first)
            token[way].append(statistics.median(clock.steps))
        number += 1

    def ratios(found):
        over = {way: [x / y for x, y in zip(found[way], found["plain"])] for way in ways}
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
    plain, *others = (statistics.median(found) for found in steps.values())
    return {way: round(median / plain, 4) for way, median in zip(("fused", "answer"), others, strict=True)}


def summary(cells: dict, decoded: dict) -> dict:
    """Geometric means over the cells."""
    mean = lambda values: round(statistics.geometric_mean(values), 4)  # noqa: E731
    rivals = [way for way in WAYS[WAYS.index("two_passes") :] if any(way in cell["ttft"] for cell in cells.values())]
    asked = lambda way: [cell for cell in cells.values() if way in cell["ttft"]]  # noqa: E731
    overhead = lambda cell, way: cell["ttft"][way] - 1  # noqa: E731
    return {
        "cells": len(cells),
        "ttft_over_limit_geomean": mean(cell["ttft"]["fused"] / cell["limit"] for cell in cells.values()),
        "ttft_over_plain": mean(cell["ttft"]["fused"] for cell in cells.values()),
        "ttft_over_limit_worst": max(round(cell["ttft"]["fused"] / cell["limit"], 4) for cell in cells.values()),
        "kept_ttft_over_plain": mean(cell["ttft"]["kept"] for cell in cells.values()),
        "decode_over_plain": mean(found["fused"] for found in decoded.values()) if decoded else None,
        "answer_decode_over_plain": mean(found["answer"] for found in decoded.values()) if decoded else None,
        "token_of_grid_over_plain": mean(cell["token"]["fused"] for cell in cells.values()),
        "peak_memory_over_plain": mean(cell["peak"]["fused"] for cell in cells.values()),
        "naive_overhead_over_fused_least": {
            way: round(min(overhead(cell, way) / max(overhead(cell, "fused"), 1e-3) for cell in asked(way)), 2)
            for way in ("two_passes", "three_passes")
            if asked(way)
        },
        "ttft_of_others": {way: mean(cell["ttft"][way] for cell in asked(way)) for way in rivals},
        "token_of_others": {way: mean(cell["token"][way] for cell in asked(way)) for way in rivals},
        "slower_than": {
            way: [name for name, cell in cells.items() if cell["ttft"]["fused"] > cell["ttft"].get(way, math.inf)]
            for way in rivals
        },
    }


def name_of(cell: tuple) -> str:
    return " ".join(map(str, cell[:4])) + (" with tower" if cell[4] else "")


def summarize(report: dict) -> None:
    """Sorts the cells and writes the figures over them into the report: CPU, the micro model there, GPU."""
    parts = {"cpu": {}, "cpu_micro": {}, "gpu": {}}
    places = {name_of(cell): place for place, cell in enumerate(grid() + gpu_grid())}
    for name, cell in sorted(report["cells"].items(), key=lambda item: places.get(item[0], len(places))):
        parts[{"micro": "cpu_micro", "7B": "gpu"}.get(name.split()[0], "cpu")][name] = cell
    report["cells"] = {name: cell for part in parts.values() for name, cell in part.items()}
    for key, part in parts.items():
        if part:
            report[key] = summary(part, {name: x for name, x in report["decode"].items() if name in part})


def table(cells: dict) -> str:
    ways = [way for way in WAYS[1:] if any(way in cell["ttft"] for cell in cells.values())]
    lines = [
        "| cell | plain, ms | limit | " + " | ".join(way.replace("_", " ") for way in ways) + " | token | memory |"
    ]
    lines.append("|---" * (len(ways) + 5) + "|")
    for name, cell in cells.items():
        shown = [f"{cell['plain']['ttft_ms']:.0f}", f"{cell['limit']:.2f}"]
        shown += [f"{cell['ttft'][way]:.2f}" if way in cell["ttft"] else "" for way in ways]
        shown += [f"{cell['token']['fused']:.3f}", f"{cell['peak']['fused']:.2f}"]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def plot(cells: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.24 * len(cells) + 1.4), layout="constrained")
    marks = {
        "two_passes": "s",
        "three_passes": "D",
        "guidance": "^",
        "caption": "v",
        "repeng": "x",
        "kept": "o",
        "apart": "o",
    }
    places = range(len(cells))
    for way, mark in marks.items():
        values = [cell["ttft"].get(way) for cell in cells.values()]
        axes.scatter(values, places, marker=mark, s=26, color="0.6" if way != "kept" else "tab:green", label=way)
    axes.scatter([cell["ttft"]["fused"] for cell in cells.values()], places, s=46, color="tab:blue", label="fused")
    axes.scatter([cell["limit"] for cell in cells.values()], places, marker="|", s=160, color="black", label="limit")
    axes.set_yticks(places, list(cells))
    axes.margins(y=0.5 / len(cells))
    axes.invert_yaxis()
    axes.set_xscale("log")
    ticks = [1, 1.2, 1.5, 2, 3, 5, 10]
    axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("time to first token over plain")
    axes.set_ylabel("model, image tokens, text tokens, batch")
    figure.legend(loc="outside upper center", ncols=8, fontsize=8)
    axes.grid(axis="x", color="0.9")
    figure.savefig(path, dpi=110)


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
    parser.add_argument("--page", type=Path, help="whose table is written anew, and the plot beside it")
    args = parser.parse_args(argv)
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    gpu = args.device == "cuda"
    cells = QUICK if args.quick else gpu_grid() if gpu else grid()
    if args.cell:
        cells = [(args.cell[0], *map(int, args.cell[1:4]), args.cell[4] in ("1", "tower"))]
    ways = [way for way in WAYS if way in args.ways and (way != "repeng" or repeng())]
    report = {"cells": {}, "decode": {}}
    if args.json and args.json.exists():
        report |= json.loads(args.json.read_text())
        summarize(report)
    start = time.monotonic()
    for cell in cells:
        name = name_of(cell)
        decoding = cell in DECODE or args.decode
        if name in report["cells"] and (not decoding or name in report["decode"]):
            continue
        if time.monotonic() - start > args.seconds:
            print("stopped in time; call again to go on")
            break
        asked = None  # before the next model is made
        asked = Cell(*cell, args.device)
        if name not in report["cells"]:
            skipped = ("apart", "answer") if asked.prompt["input_ids"].numel() > LARGE else ("answer",)
            report["cells"][name] = measure(
                asked, [way for way in ways if way not in skipped], args.tokens, args.cell_seconds
            )
        if decoding:
            report["decode"][name] = decode(asked)
        print(name, json.dumps(report["cells"][name]), report["decode"].get(name, ""), flush=True)
        summarize(report)
        where = torch.cuda.get_device_name() + ", bf16" if gpu else f"one thread of {os.cpu_count()} cores, fp32"
        report["machine_gpu" if gpu else "machine"] = f"{where}, {platform.machine()}, torch {torch.__version__}"
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(report["cells"]))
    print(json.dumps({key: report[key] for key in ("cpu", "cpu_micro", "gpu") if key in report}, indent=1))
    if args.page:
        shown = re.sub(
            r"(<!-- table -->\n).*?(<!-- end -->)",
            lambda found: found[1] + table(report["cells"]) + "\n" + found[2],
            args.page.read_text(encoding="utf-8"),
            flags=re.S,
        )
        args.page.write_text(shown, encoding="utf-8")
        plot(report["cells"], args.page.with_suffix(".png"))


if __name__ == "__main__":
    main()
