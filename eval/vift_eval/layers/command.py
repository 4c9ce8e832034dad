"""See where vision and language meet in a model: `vift-analyze`.

    vift-analyze checkpoints/vift-micro --output runs/layers                     # the micro-world
    vift-analyze llava-hf/llava-1.5-7b-hf --data pairs.jsonl --output runs/llava --dtype bfloat16
    vift-analyze runs/tuned --output runs/layers --interventions --donor runs/stage1

A line of `--data` is {"image": path, "caption": words}, with "query", "answer" and "label" if you have them
(`pairs`); a folder of pictures with `metadata.jsonl` is read too. Every item is shown to the model as a
picture and as its caption, with the same query; states are captured once (a run that was stopped goes on), and each
layer is then measured: neighbourhood overlap, CKA, intrinsic dimension, information imbalance, paired cosine, probes.
`--output` gets README.md, one figure per metric, analysis.json and the captured states. The method: arXiv 2606.03871;
docs/layers.md says how to read the figures.
"""

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from ..cli import OneLineParser, UserError, run
from ..files import command_line, made_by, read_json
from ..models import BUNDLED, load_model
from .pairs import load_pairs, micro_pairs

NEIGHBORS = 30
ESTIMATORS = 2  # another number when a figure is computed in another way: layers measured before are measured again
MODELS = "VIFT, LLaVA, LLaVA-NeXT, LLaVA-OneVision, Qwen2/2.5/3-VL, SmolVLM, Idefics3, Gemma 3, InternVL"


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser("vift-analyze", __doc__)
    parser.add_argument("model", nargs="?", default=str(BUNDLED), help=f"folder or Hub id: {MODELS}")
    parser.add_argument("--data", help="JSON lines or folder of image and caption pairs; without it, the micro-world")
    parser.add_argument("--output", type=Path, required=True, help="folder for page, figures, numbers and states")
    parser.add_argument("--n", type=int, default=1000, help="items (default 1000)")
    parser.add_argument(
        "--k", type=int, help=f"neighbours of the overlap (default {NEIGHBORS}, at most a tenth of the items)"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dtype", default="float32", help="of the weights: float32, bfloat16, float16")
    parser.add_argument("--device", help="such as cuda:0 (default: a GPU if there is one)")
    parser.add_argument(
        "--no-probes", action="store_true", help="leave out the probes, which take longest at large widths"
    )
    parser.add_argument("--interventions", action="store_true", help="also knock out attention and skip layers")
    parser.add_argument("--donor", help="checkpoint whose layers are transplanted, with --interventions")
    parser.add_argument("--questions", type=int, default=300, help="questions of the interventions (default 300)")
    parser.add_argument("--no-fusion", action="store_true", help="interventions on a VIFT: answers without fusion")
    return parser


def load(name: str, args: argparse.Namespace):
    """(model, processor) of any vision-language model that transformers knows, or of a VIFT."""
    import torch

    model, processor = load_model(name, dtype=args.dtype, argument="model", any_kind=True)
    return model.to(args.device or ("cuda" if torch.cuda.is_available() else "cpu")), processor


def check_arguments(args: argparse.Namespace) -> None:
    for name, least in (("n", 40), ("batch_size", 1), ("questions", 10)):
        if getattr(args, name) < least:
            raise UserError(f"--{name.replace('_', '-')}={getattr(args, name)} must be at least {least}")
    if args.donor and not args.interventions:
        raise UserError("--donor needs --interventions")


def measure_layers(captured, output: Path, k: int, labels: dict) -> list[dict]:
    """Every layer; one line of `layers.jsonl` each as it is done, so that a stopped run goes on."""
    from vift_layers.capture import STATE

    from .measure import measure

    state = read_json(output / "capture" / STATE)["fingerprint"]
    key = {"capture": state, "k": k, "probes": sorted(labels), "estimators": ESTIMATORS}
    file, done = output / "layers.jsonl", {}
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the line at which the run was stopped
                continue
            if row["key"] == key:
                done[row["layer"]] = row["measures"]
    with file.open("a", encoding="utf-8") as out:
        for layer in tqdm(range(captured.num_layers + 1), desc="layers"):
            if layer not in done:
                done[layer] = measure(captured, layer, k, labels)
                out.write("\n" + json.dumps({"key": key, "layer": layer, "measures": done[layer]}) + "\n")
                out.flush()
    return [done[layer] for layer in range(captured.num_layers + 1)]


def profile_of(layers: list[dict], pooling: str = "last") -> list[float | None]:
    """Overlap above chance, a value a representation."""
    values = [layer[pooling] for layer in layers]
    return [None if one is None else one["overlap"]["value"] - one["overlap_chance"]["value"] for one in values]


def analyze(args: argparse.Namespace, command: str) -> dict:
    from vift_layers.band import band_rule
    from vift_layers.capture import capture
    from vift_layers.jackknife import spare

    check_arguments(args)
    pairs = micro_pairs(args.n) if args.data is None else load_pairs(args.data, args.n)
    if len(pairs) < 40:
        raise UserError(f"--data={args.data} has {len(pairs)} pairs: at least 40 are needed")
    k = args.k or min(NEIGHBORS, len(pairs) // 10)
    most = len(pairs) - 1 - spare(len(pairs))
    if not 1 <= k <= most:
        raise UserError(f"--k={k} must be in 1 ... {most} for {len(pairs)} pairs")
    model, processor = load(args.model, args)
    names = [] if args.no_probes else sorted(set.intersection(*(set(pair["labels"]) for pair in pairs)))
    labels = {name: [pair["labels"][name] for pair in pairs] for name in names}
    with tqdm(total=len(pairs), desc="captured") as bar:
        captured = capture(
            model, processor, pairs, args.output / "capture", args.batch_size, progress=lambda n: bar.update(n - bar.n)
        )
    layers = measure_layers(captured, args.output, k, labels)
    models = [name for name in (args.model, args.donor) if name]
    results = {
        "made": made_by(command, *models),
        "model": Path(args.model).name,
        "data": "micro-world, validation split" if args.data is None else Path(args.data).name,
        "n": len(pairs),
        "k": k,
        "control": "control" in captured.forms,
        "layers": layers,
        "band": band_rule(profile_of(layers)).to_dict(),
        "band_mean": band_rule(profile_of(layers, "mean")).to_dict(),
    }
    if args.interventions:
        from .answers import intervene

        questions = micro_pairs(args.questions, seed=22) if args.data is None else pairs[: args.questions]
        donor = load(args.donor, args)[0] if args.donor else None
        options = {"fusion": False} if args.no_fusion else {}
        results["interventions"] = intervene(
            model, processor, questions, donor,
            lambda name, accuracy: print(f"{name}: {accuracy:.1%}", file=sys.stderr, flush=True), **options,
        )  # fmt: skip
        results["interventions"]["donor_name"] = Path(args.donor).name if args.donor else None
    return results


def write_analysis(args: argparse.Namespace, command: str) -> None:
    results = analyze(args, command)
    from .page import write

    write(results, args.output)
    print(f"band {results['band']['band']}: {results['band']['reason']}\nwrote {args.output / 'README.md'}")


def main(argv: list[str] | None = None) -> int:
    args, command = build_parser().parse_args(argv), command_line("vift-analyze", argv)
    return run("vift-analyze", write_analysis, args, command, stopped="stopped; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
