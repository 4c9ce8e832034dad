"""The estimators of `vift_layers.geometry` against maintained libraries, and what a large analysis costs.

    python studies/benchmarks/estimators.py agree --reference OTHER/bin/python --json FILE
    python studies/benchmarks/estimators.py naive --json FILE
    python studies/benchmarks/estimators.py cost --json FILE

What they wrote is in docs/results/estimators. `agree`: DADApy and scikit-dimension pin other versions than ours, so
they run in an environment of their own (`reference.py`; `python -m venv OTHER && OTHER/bin/pip install dadapy==0.3.3
scikit-dimension`), on the same points; CKA is compared with ckatorch, if it can be imported here (`pip install
--no-deps ckatorch`). `naive`: the same figures by the plain loop, a point at a time, each metric by itself, side by
side in turn. `cost`: 2500 items, 28 layers of width 3584 (random vectors in the place of hidden states), written as
`capture` writes them and measured layer by layer; CPU time after each layer, and peak memory.
"""

import argparse
import json
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from vift_eval.files import command_line, made_by, read_json, write_json
from vift_eval.layers.measure import measure_pooling
from vift_layers import geometry as g
from vift_layers.capture import POOLINGS, Capture, mark, open_files, write

K = 30


def clouds() -> dict[str, np.ndarray]:
    """Pairs a, b of 1000 points in 64 dimensions, of several intrinsic dimensions."""
    points = {}
    for d in (2, 5, 10, 20):
        rng = np.random.default_rng(d)
        inner = rng.standard_normal((1000, d))
        basis, other = (np.linalg.qr(rng.standard_normal((64, d)))[0] for _ in range(2))
        points[f"d{d}_a"] = inner @ basis.T
        points[f"d{d}_b"] = (inner + 0.5 * rng.standard_normal(inner.shape)) @ other.T
    return points


def by_us(points: dict[str, np.ndarray]) -> dict:
    figures = {}
    for name in sorted({key.split("_")[0] for key in points}):
        a, b = points[f"{name}_a"], points[f"{name}_b"]
        near = [g.neighbors(one, 64) for one in (a, b)]
        figures[name] = {
            "gride": [g.gride(g.gride_mu(near[0], k), k) for k in (1, 2, 4, 8, 16, 32)],
            "overlap": float(g.overlap(*near, K).mean()),
            "imbalance_ab": float(g.information_imbalance(near[0], b).mean()),
            "imbalance_ba": float(g.information_imbalance(near[1], a).mean()),
            "twonn": g.gride(g.gride_mu(near[0], 1), 1),
            "cka": float(g.cka(a, b)[0]),
        }
    return figures


def agree(args) -> dict:
    points = clouds()
    ours = by_us(points)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "points.npz"
        np.savez(file, **points)
        script, figures = Path(__file__).with_name("reference.py"), Path(scratch) / "figures.json"
        subprocess.run([args.reference, script, file, figures], check=True)
        theirs = read_json(figures)
    try:
        import torch
        from ckatorch.core import cka_base

        for name, row in theirs.items():
            pair = (torch.tensor(points[f"{name}_{which}"]) for which in "ab")
            row["cka"] = float(cka_base(*pair, unbiased=True))
    except ImportError:
        print("ckatorch can't be imported: CKA is not compared")
    differences: dict = {}
    for name, row in theirs.items():
        for key, value in row.items():
            difference = float(np.max(np.abs(np.array(ours[name][key]) / np.array(value) - 1)))
            differences[key] = max(differences.get(key, 0.0), difference)
    for key, value in differences.items():
        print(f"{key:14s} largest relative difference {value:.2e}")
    return {"ours": ours, "theirs": theirs, "differences": differences}


def naive(x: np.ndarray, y: np.ndarray, k: int) -> dict:
    """One layer the plain way: every metric by itself, a point at a time, distances from differences in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)

    def order(z, i):
        distances = np.sqrt(((z - z[i]) ** 2).sum(axis=1))
        distances[i] = np.inf
        return np.argsort(distances), distances

    n = len(x)
    overlap = np.mean([len({*order(x, i)[0][:k]} & {*order(y, i)[0][:k]}) / k for i in range(n)])
    sorted_x = [np.sort(order(x, i)[1])[:2] for i in range(n)]
    sorted_y = [np.sort(order(y, i)[1])[:2] for i in range(n)]
    imbalance = []
    for a, b in ((x, y), (y, x)):
        ranks = [1 + int(np.flatnonzero(order(b, i)[0] == order(a, i)[0][0])[0]) for i in range(n)]
        imbalance.append(2 / n * np.mean(ranks))
    gram = [z @ z.T * (1 - np.eye(n)) for z in (x - x.mean(0), y - y.mean(0))]

    def hsic(a, b):
        whole = a.sum() * b.sum() / ((n - 1) * (n - 2))
        return (a * b).sum() + whole - 2 / (n - 2) * (a.sum(axis=0) @ b.sum(axis=0))

    cka = hsic(*gram) / np.sqrt(hsic(gram[0], gram[0]) * hsic(gram[1], gram[1]))
    dimension = [n / np.log([far / near for near, far in pairs]).sum() for pairs in (sorted_x, sorted_y)]
    return {"overlap": overlap, "dimension": dimension, "imbalance": imbalance, "cka": cka}


def blockwise(x: np.ndarray, y: np.ndarray, k: int) -> dict:
    """The same figures by `vift_layers.geometry`."""
    near = [g.neighbors(z, k) for z in (x, y)]
    return {
        "overlap": g.overlap(*near, k).mean(),
        "dimension": [g.gride(g.gride_mu(one, 1), 1) for one in near],
        "imbalance": [g.information_imbalance(one, z).mean() for one, z in zip(near, (y, x))],
        "cka": g.cka(x, y)[0],
    }


def side_by_side(args) -> dict:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((args.items, args.width)).astype(np.float32)
    y = (x + rng.standard_normal(x.shape)).astype(np.float32)
    seconds, values = {"naive": [], "blockwise": []}, {}
    for _ in range(args.rounds):
        for name, function in (("naive", naive), ("blockwise", blockwise)):
            start = time.process_time()
            values[name] = function(x, y, K)
            seconds[name].append(round(time.process_time() - start, 3))
    flat = {name: np.hstack([np.atleast_1d(v) for v in one.values()]) for name, one in values.items()}
    results = {
        "items": args.items, "width": args.width, "cpu_seconds": seconds,
        "factor": round(min(seconds["naive"]) / min(seconds["blockwise"]), 1),
        "largest_relative_difference": float(np.max(np.abs(flat["blockwise"] / flat["naive"] - 1))),
    }  # fmt: skip
    print(json.dumps(results, indent=1))
    return results


def peak() -> float:
    """GiB of this process at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def cost(args) -> dict:
    rng, batch = np.random.default_rng(0), 32
    results = {"items": args.items, "layers": args.layers, "width": args.width, "threads": 1}
    results["before_gib"] = round(peak(), 2)
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        where = Path(scratch)
        open_files(where, ("image", "text"), (args.layers + 1, args.items, args.width), "random")
        start = time.process_time()
        shared = rng.standard_normal((64, args.width), dtype=np.float32)
        for first in range(0, args.items, batch):
            rows = min(batch, args.items - first)
            inner = rng.standard_normal((rows, 64), dtype=np.float32)
            for form in ("image", "text"):
                states = []
                for _ in range(args.layers + 1):
                    noise = rng.standard_normal((rows, args.width), dtype=np.float32)
                    states.append({pooling: inner @ shared + noise for pooling in POOLINGS})
                write(where, form, first, states)
            mark(where, first + rows)
        results["write_cpu_seconds"] = round(time.process_time() - start, 1)
        results["peak_after_writing_gib"] = round(peak(), 2)
        results["files_gib"] = round(sum(file.stat().st_size for file in where.glob("*.npy")) / 1024**3, 2)
        capture = Capture(args.items, args.layers, ("image", "text"), where)
        after, start = [], time.process_time()
        for layer in range(args.layers + 1):
            measure_pooling(capture, "last", layer, K, {})
            after.append(round(time.process_time() - start, 1))
            print(f"layer {layer}: {after[-1]} s of CPU, peak {peak():.2f} GiB", flush=True)
        results |= {"cpu_seconds_after_layer": after, "peak_gib": round(peak(), 2)}
    layers = np.arange(1, len(after) + 1)
    slope = float((layers * after).sum() / (layers * layers).sum())
    results["seconds_a_layer"] = round(slope, 2)
    deviation = float(np.max(np.abs(np.array(after) - slope * layers)) / after[-1])
    results["largest_deviation_from_linear"] = round(deviation, 3)
    return results


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("agree", "naive", "cost"))
    parser.add_argument("--reference", help="python of the environment that has dadapy and scikit-dimension")
    parser.add_argument("--items", type=int)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--width", type=int, default=3584)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--scratch", help="where `cost` puts its files (4 GiB)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    args.items = args.items or {"naive": 600, "cost": 2500}.get(args.what)
    results = {"agree": agree, "naive": side_by_side, "cost": cost}[args.what](args)
    if args.json:
        write_json(args.json, {"made": made_by(command_line(__file__, argv))} | results)


if __name__ == "__main__":
    main()
