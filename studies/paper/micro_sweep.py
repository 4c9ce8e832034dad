"""Fusion settings side by side on validation questions: which band, dose, span, alpha, norm.

    python -m vift_studies.paper.micro_sweep --models DIR --layers 0:2 0:4 0:8 4:8 --dose 1 2 4 --json sweep.json

Every model is one training seed; a setting is judged by its share of the distance from `unfused` to `caption_first`
(`gap_closed`). Only the validation split can be asked: what is chosen here is
measured on the test split by `vift_eval.answers.conditions`.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np

from vift_eval.answers.conditions import correct, evaluate, load
from vift_microworld import is_caption, visual_questions

SHORT = 4  # tokens: answers have at most two, and a caption shows by its second


def sweep(paths: list[str], settings: list[dict], count: int, seed: int = 0) -> dict:
    """
    Args:
        paths: checkpoints, one a seed.
        settings: fusion arguments of `generate()`.
        count, seed: which validation questions.

    Returns:
        {"base": one dict a model with the accuracy of the ways of asking that do not depend on the setting,
        "settings": [{"setting", "accuracy", "captions", "gap_closed"}], lists with one number a model}, best first.
    """
    questions = visual_questions(count, seed=seed, split="validation")
    base, rows = [], [{"setting": s, "accuracy": [], "captions": [], "gap_closed": []} for s in settings]
    for path in paths:
        model, processor = load(path)
        known = {}
        for mode in ("unfused", "blind", "gold", "caption_first"):
            short = {} if mode == "caption_first" else {"max_new_tokens": SHORT}
            answers = evaluate(model, processor, questions, mode, **short)
            known[mode] = float(correct(answers, questions).mean())
            if mode == "unfused":
                known["captions"] = float(np.mean([is_caption(answer) for answer in answers]))
        print(Path(path).name, *(f"{name} {value:.1%}" for name, value in known.items()), flush=True)
        base.append({"model": Path(path).name, **known})
        gap = known["caption_first"] - known["unfused"]
        for row in rows:
            answers = evaluate(model, processor, questions, "fused", max_new_tokens=SHORT, **row["setting"])
            accuracy = float(correct(answers, questions).mean())
            row["accuracy"].append(accuracy)
            row["captions"].append(float(np.mean([is_caption(answer) for answer in answers])))
            row["gap_closed"].append((accuracy - known["unfused"]) / gap if gap > 0 else float("nan"))
    rows.sort(key=lambda row: -np.mean(row["accuracy"]))
    return {"split": "validation", "n": count, "base": base, "settings": rows}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", required=True, help="checkpoints, one a seed")
    parser.add_argument("--layers", nargs="+", default=["0:2", "0:4", "0:8", "4:8"], help="bands")
    parser.add_argument("--dose", nargs="+", type=float, default=[1.0, 2.0, 4.0])
    parser.add_argument("--span", nargs="+", default=["all"])
    parser.add_argument("--alpha", nargs="+", type=float, default=[1.0])
    parser.add_argument("--norm", nargs="+", default=["off"], choices=("off", "on"))
    parser.add_argument("--count", type=int, default=300, help="questions")
    parser.add_argument("--question-seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=12, help="settings to print, best first")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    settings = [
        {"fusion_layers": band, "dose": dose, "fusion_span": span, "alpha": alpha, "fusion_norm": norm == "on"}
        for band, dose, span, alpha, norm in itertools.product(
            args.layers, args.dose, args.span, args.alpha, args.norm
        )
    ]
    results = sweep(args.models, settings, args.count, args.question_seed)
    for row in results["settings"][: args.show]:
        named = " ".join(f"{name.removeprefix('fusion_')}={value}" for name, value in row["setting"].items())
        values = "  ".join(
            f"{a:.1%} ({c:.0%}) gap {g:.2f}" for a, c, g in zip(row["accuracy"], row["captions"], row["gap_closed"])
        )
        print(f"{named:60s} {values}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
