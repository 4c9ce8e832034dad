"""See where vision and language meet in a model: `vift analyze`.

    vift analyze --output runs/layers                       # the bundled model and the micro-world
    vift analyze --model llava-hf/llava-1.5-7b-hf --data pairs.jsonl --output runs/llava --dtype bfloat16
    vift analyze --model runs/tuned --output runs/layers --interventions --donor runs/stage1

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

from vift_hub.cli import OneLineParser, UserError, add_model, add_running, run
from vift_hub.output import lock

from ..files import command_line, made_by, read_json
from ..models import BUNDLED, config_of, load_model

NEIGHBORS = 30
ESTIMATORS = 2  # another number when a figure is computed in another way: layers measured before are measured again
MODELS = "VIFT, LLaVA, LLaVA-NeXT, LLaVA-OneVision, Qwen2/2.5/3-VL, SmolVLM, Idefics3, Gemma 3, InternVL"


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser("vift analyze", __doc__, words=("--model",), needed=("--output",))
    add_model(parser, str(BUNDLED), help=f"folder or Hub id: {MODELS} (default: the bundled model)")
    parser.add_argument("--data", help="JSON lines or folder of image and caption pairs; without it, the micro-world")
    parser.add_argument("--output", type=Path, help="folder for page, figures, numbers and states")
    parser.add_argument("--n", type=int, default=1000, help="so many items (default 1000)")
    parser.add_argument(
        "--k", type=int, help=f"neighbours of the overlap (default {NEIGHBORS}, at most a tenth of the items)"
    )
    parser.add_argument(
        "--no-probes",
        dest="probes",
        action="store_false",
        help="leave out the probes, which take longest at large widths",
    )
    parser.add_argument("--interventions", action="store_true", help="also knock out attention and skip layers")
    parser.add_argument("--donor", help="checkpoint whose layers are transplanted, with --interventions")
    parser.add_argument("--questions", type=int, default=300, help="questions of the interventions (default 300)")
    parser.add_argument(
        "--no-fusion", dest="fusion", action="store_false", help="interventions on a VIFT: answers without fusion"
    )
    add_running(parser)
    parser.set_defaults(dtype="float32")
    return parser


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
        for layer in tqdm(range(captured.num_layers + 1), desc="layers", disable=None):
            if layer not in done:
                done[layer] = measure(captured, layer, k, labels)
                out.write("\n" + json.dumps({"key": key, "layer": layer, "measures": done[layer]}) + "\n")
                out.flush()
    return [done[layer] for layer in range(captured.num_layers + 1)]


def profile_of(layers: list[dict], pooling: str = "last") -> list[float | None]:
    """Overlap above chance, a value a representation."""
    values = [layer[pooling] for layer in layers]
    return [None if one is None else one["overlap"]["value"] - one["overlap_chance"]["value"] for one in values]


def analyze(
    model: str,
    output: str | Path,
    *,
    data: str | None = None,
    n: int = 1000,
    k: int | None = None,
    batch_size: int = 32,
    dtype: str = "float32",
    device: str | None = None,
    probes: bool = True,
    interventions: bool = False,
    donor: str | None = None,
    questions: int = 300,
    fusion: bool = True,
    trust_remote_code: bool = False,
    command: str = "vift.analyze",
) -> dict:
    """
    What `vift analyze` does, from Python; the arguments are its options.

    Args:
        model: folder or Hub id of a VIFT, or of a vision-language model that transformers knows.
        output: folder for page, figures, numbers and states; a second call goes on there.
        command: what the page says it was made by.

    Returns:
        what `analysis.json` holds: "layers" (measures by layer), "band" (where image and words meet), ...

    Raises:
        ValueError: an argument out of range, a model or data that can't be read.
    """
    output = Path(output)
    for name, value, least in (("n", n, 40), ("batch-size", batch_size, 1), ("questions", questions, 10)):
        if value < least:
            raise UserError(f"--{name}={value} must be at least {least}")
    if donor and not interventions:
        raise UserError("--donor needs --interventions")
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={output} is a file; name a folder")
    for name, value in (("--model", model), ("--donor", donor)):
        if value is not None:
            config_of(value, argument=name, any_kind=True)
    import torch

    from vift_layers.band import band_rule
    from vift_layers.capture import capture
    from vift_layers.jackknife import spare

    from .page import write
    from .pairs import load_pairs, micro_pairs

    pairs = micro_pairs(n) if data is None else load_pairs(data, n)
    if len(pairs) < 40:
        raise UserError(f"--data={data} has {len(pairs)} pairs: at least 40 are needed")
    most = len(pairs) - 1 - spare(len(pairs))
    neighbors = min(NEIGHBORS, len(pairs) // 10) if k is None else k
    if not 1 <= neighbors <= most:
        raise UserError(f"--k={k} must be in 1 ... {most} for {len(pairs)} pairs")

    def load(name: str, argument: str):
        loaded, processor = load_model(name, None, dtype, argument, True, trust_remote_code)
        return loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), processor

    held = lock(output, "--output")
    loaded, processor = load(model, "--model")
    names = sorted(set.intersection(*(set(pair["labels"]) for pair in pairs))) if probes else []
    labels = {name: [pair["labels"][name] for pair in pairs] for name in names}
    with tqdm(total=len(pairs), desc="captured", disable=None) as bar:
        captured = capture(
            loaded, processor, pairs, output / "capture", batch_size, progress=lambda done: bar.update(done - bar.n)
        )
    layers = measure_layers(captured, output, neighbors, labels)
    results = {
        "made": made_by(command, *(name for name in (model, donor) if name)),
        "model": Path(model).name,
        "data": "micro-world, validation split" if data is None else Path(data).name,
        "n": len(pairs),
        "k": neighbors,
        "control": "control" in captured.forms,
        "layers": layers,
        "band": band_rule(profile_of(layers)).to_dict(),
        "band_mean": band_rule(profile_of(layers, "mean")).to_dict(),
    }
    if interventions:
        from .answers import intervene

        asked = micro_pairs(questions, seed=22) if data is None else pairs[:questions]
        results["interventions"] = intervene(
            loaded, processor, asked, load(donor, "--donor")[0] if donor else None,
            lambda name, accuracy: print(f"{name}: {accuracy:.1%}", file=sys.stderr, flush=True),
            **({} if fusion else {"fusion": False}),
        )  # fmt: skip
        results["interventions"]["donor_name"] = Path(donor).name if donor else None
    write(results, output)
    held.release()
    return results


def write_analysis(args: argparse.Namespace, command: str) -> None:
    options = {name: value for name, value in vars(args).items() if name != "words"}
    band = analyze(**options, command=command)["band"]
    print(f"band {band['band']}: {band['reason']}")
    print(f"wrote {args.output / 'README.md'}: open it")
    print(f"vift train --train-layers {band['band']} ... trains these layers only")


def main(argv: list[str] | None = None) -> int:
    args, command = build_parser().parse_args(argv), command_line("vift analyze", argv)
    on = "stopped; the same command goes on from here"
    return run("vift analyze", write_analysis, args, command, extra="microworld", stopped=on)


if __name__ == "__main__":
    sys.exit(main())
