"""Does the logit lens say where to fuse? The bundled model: its profile beside what fusion brings, layer by layer.

    python studies/benchmarks/lens.py --json docs/results/lens/lens.json        # five minutes of one core

Validation: the profile (`vift_layers.lens`), taken from 64 unlabelled prompts with the model's own caption as the
teacher, against accuracy on 300 questions when one layer alone is fused (the best of four doses at alpha 1), or
replaced (alpha 0, beta 1): Spearman's correlation over the layers. Test: 750 questions with the setting that
`calibrate(bands="lens")` chooses, and with that of `calibrate()`, with the CPU seconds each took.
"""

import argparse
import time
from pathlib import Path

import torch
from scipy.stats import spearmanr

from vift_eval.answers.conditions import evaluate, read_back
from vift_eval.answers.outcomes import outcome
from vift_eval.calibrate import calibrate
from vift_eval.files import command_line, made_by, write_json
from vift_eval.models import BUNDLED, load_model
from vift_microworld import language, visual_questions

DOSES = (0.25, 0.5, 1.0, 2.0)  # of one layer, where beta is the dose; it is at most 2


def accuracy(model, processor, questions, **setting) -> float:
    answers = evaluate(model, processor, questions, "fused", max_new_tokens=4, fusion_answer=False, **setting)
    return sum(outcome(*pair) == "right" for pair in zip(answers, questions["answer"])) / len(questions)


def measure(prompts: int = 64, validation: int = 300, test: int = 750) -> dict:
    model, processor = load_model(str(BUNDLED))
    rows, found = visual_questions(prompts, seed=12, split="validation"), {}
    images = [row[0] for row in rows["images"]]
    for name, options in (("lens", {"bands": "lens"}), ("all", {})):
        start = time.process_time()
        found[name] = calibrate(
            model, processor, images, list(rows["question"]), caption_query=language.DETAILED_QUERIES[0],
            read_back=read_back, caption_tokens=48, answer_tokens=8, store=False, **options,
        )  # fmt: skip
        found[name]["cpu_seconds"] = round(time.process_time() - start, 1)
    profile = found["lens"]["lens"]
    asked, layers = visual_questions(validation, seed=11, split="validation"), []
    for layer in range(len(profile) - 1):
        band = f"{layer}:{layer + 1}"
        added = [accuracy(model, processor, asked, fusion_layers=band, dose=dose, alpha=1.0) for dose in DOSES]
        replaced = accuracy(model, processor, asked, fusion_layers=band, dose=1.0, alpha=0.0)
        layers.append({
            "layer": layer, "lens": profile[layer], "added": round(max(added), 4), "replaced": round(replaced, 4)
        })  # fmt: skip
        print(layers[-1], flush=True)
    asked, names = visual_questions(test, split="test"), ("fusion_layers", "fusion_dose", "fusion_alpha")
    for choice in found.values():
        setting = {name.removeprefix("fusion_") if name != "fusion_layers" else name: choice[name] for name in names}
        choice["test"] = round(accuracy(model, processor, asked, **setting), 4)
    columns = {name: [row[name] for row in layers] for name in ("lens", "added", "replaced")}
    return {
        "profile": profile,
        "layers": layers,
        "spearman": {
            name: round(float(spearmanr(columns["lens"], columns[name]).statistic), 3)
            for name in ("added", "replaced")
        },
        "chosen": {
            name: {key: choice[key] for key in (*names, "score", "test", "cpu_seconds")}
            for name, choice in found.items()
        },
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    results = {"made": made_by(command_line(__file__, argv), BUNDLED)} | measure()
    print(f"Spearman over layers {results['spearman']}; test {results['chosen']}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, results)


if __name__ == "__main__":
    main()
