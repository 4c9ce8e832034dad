"""The measuring steps of the paper in a box; each writes one JSON file (the data step: a folder).

    python -m vift_studies.paper.measure test --seeds 0 --json seed0/test.json      # in the work folder

Answers are kept as one letter a question (`OUTCOMES`), so that the page can pair and resample them. Everything that is
chosen (`choose`) is chosen on the validation split; the test split is read by `test`, `calibrate`, `cost` and `arms`.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
import yaml
from datasets import disable_progress_bars
from transformers import Qwen2ForCausalLM
from transformers.utils import logging

from modeling_vift.calibration_vift import DOSES, calibrate, default_bands, replacements
from modeling_vift import resolve_fusion
from vift_eval.answers.baselines import ask, cost, merge_language_model, static_vectors
from vift_eval.answers.conditions import FUSION_FIELDS, MODES, load, scene_from_caption
from vift_microworld import (
    FAMILIES,
    data,
    is_caption,
    language,
    normalize_answer,
    visual_instructions,
    visual_questions,
)
from vift_microworld.scenes import COLORS, PLACES

from . import plan as paper

OUTCOMES = {
    "r": "right",
    "w": "wrong, of the right kind",
    "k": "wrong kind (a colour for a number)",
    "c": "caption",
    "g": "garbage: no answer of any kind",
    "e": "empty",
}
SHORT = 4  # tokens: answers have at most two words, and a caption shows by its second
COUNT = {"test": 750, "validation": 300, "calibrate": 64, "static": 96, "cost": 24}
VALIDATION_SEED, CALIBRATION_SEED = 11, 12  # questions that no other step sees
ALPHA_SWEEP = (0.0, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
AS_IN_THE_PAPER = {"alpha": 1.0, "fusion_answer": False}  # the prompt is fused, not the answer's own tokens
PAPER_DOSE = 2.0  # about the paper's: 0.1 to 0.15 times 14 layers
DOSE_SWEEP = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0, 16.0)
WEIGHTS = {
    "logit_mix": (0.25, 0.5, 0.75),
    "logit_contrast": (-0.25, -0.5, -1.0),
    "merged_weights": (0.1, 0.25, 0.5, 0.75),
}
# ways of fusing besides the config's: keywords of generate()
ABLATIONS = {
    "prompt_only": {"fusion_answer": False},
    "alpha_one": {"alpha": 1.0},
    "span_after_image": {"fusion_span": "after_image"},
    "span_reference": {"fusion_span": "reference"},
    "rule_independent": {"fusion_rule": "independent", "fusion_answer": False},
    "norm_kept": {"fusion_norm": True},
}
WORDS = {
    "color": set(COLORS),
    "place": {normalize_answer(place) for place in PLACES},
    "number": {str(n) for n in range(20)},
    "truth": {"yes", "no"},
}


def held_out(seed: int) -> tuple[str, ...]:
    """The question families that the visual-instruction runs of this seed never see: three splits, one a seed."""
    return tuple(FAMILIES)[seed % 3 :: 3]


def kind(answer: str) -> str | None:
    return next((name for name, words in WORDS.items() if normalize_answer(answer) in words), None)


def outcome(prediction: str, answer: str) -> str:
    """One letter of `OUTCOMES`."""
    said = normalize_answer(prediction)
    if said == normalize_answer(answer):
        return "r"
    if not said:
        return "e"
    if is_caption(prediction):
        return "c"
    if kind(said) is None:
        return "g"
    return "w" if kind(said) == kind(answer) else "k"


def outcomes(predictions: list[str], questions) -> str:
    return "".join(outcome(p, a) for p, a in zip(predictions, questions["answer"]))


def accuracy(letters: str) -> float:
    return letters.count("r") / len(letters)


def read(name: str) -> dict:
    return json.loads(Path(f"{name}.json").read_text(encoding="utf-8"))


def show(name: str, letters: str) -> None:
    print(f"{name}: right {accuracy(letters):.1%}, captions {letters.count('c') / len(letters):.1%}", flush=True)


def text_llm(seed: int):
    return Qwen2ForCausalLM.from_pretrained(f"seed{seed}/phase0/language_model", dtype=torch.float32)


def read_back(caption: str, question: str) -> str:
    """The model's own caption as the scene in words, before the question (as in `caption_first`)."""
    return f"{scene_from_caption(caption)} {question}"


def write_data(seeds: list[int], folder: Path) -> None:
    """Parquet files for the arms, and stage 2's settings: `<rows>-<divisor>.parquet` holds rows / divisor."""
    (seed,) = seeds
    recipe = {name: yaml.safe_load((paper.RECIPES / f"{name}.yaml").read_text()) for name in ("stage1", "stage2")}
    stage2 = recipe["stage2"]
    full, texts = stage2["caption_rows"], stage2["text_rows"]
    seen = tuple(family for family in FAMILIES if family not in held_out(seed))

    def asked(settings: dict) -> dict:
        return {name: settings[name] for name in ("no_query_share", "queries")}

    sources = {
        "web": lambda n: data.web_captions(recipe["stage1"]["rows"] // n, seed=seed, **asked(recipe["stage1"])),
        "detailed": lambda n: data.detailed_captions(full // n, seed=seed, **asked(stage2)),
        "text": lambda n: data.text_instructions(texts // n, seed=seed + 1, turns=stage2["text_turns"]),
        "visual": lambda n: visual_instructions(full // n, seed=seed, families=seen),
        # ViFT-A: a tenth as many questions as captions
        "added": lambda n: visual_instructions(full // n // 10, seed=seed, families=seen),
    }
    folder.mkdir(parents=True)
    for names, divisor in paper.ARMS.values():
        for name in names:
            file = folder / f"{name}-{1 if name == 'web' else divisor}.parquet"
            if not file.exists():
                rows = sources[name](1 if name == "web" else divisor)
                rows.select_columns(["messages", "images", "modality"]).to_parquet(file)
    for name in ("stage2", "vit-baseline"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(paper.training_settings(name)), encoding="utf-8")


def layer_count(model, layers) -> int:
    """How many layers a band has; beta = dose / this is at most 2."""
    return len(resolve_fusion(model.config, True, fusion_layers=layers, beta=0.0).layers)


def static_settings(model) -> list[tuple]:
    """(layers, dose, alpha) at which a mean text stream is tried: added low or everywhere, or in the place of the
    prompt's own states at one layer."""
    num_layers = model.config.get_text_config().num_hidden_layers
    added = [(f"0:{stop}", dose, 1.0) for stop in (num_layers // 2, num_layers) for dose in (0.5, 1.0, 2.0, 4.0)]
    return added + [(f"{layer}:{layer + 1}", 1.0, 0.0) for layer in (1, num_layers // 2)]


def measure_validation(seeds: list[int]) -> dict:
    """Sweeps: bands x doses, alpha and dose on the config's band and the paper's, weights of the rivals."""
    (seed,) = seeds
    model, processor = load(f"seed{seed}/vift")
    questions = visual_questions(COUNT["validation"], seed=VALIDATION_SEED, split="validation")
    groups = ("plain", "bands", "replace", "alpha", "dose", "rivals", "static")
    found: dict[str, dict] = {group: {} for group in groups}

    def asked(group: str, key: str, way: str = "fused", subject=model, **kwargs) -> None:
        predictions = ask(subject, processor, questions, way, max_new_tokens=SHORT, **kwargs)
        found[group][key] = outcomes(predictions, questions)
        show(f"{group} {key}", found[group][key])

    for way in ("unfused", "fused", "blind", "caption_first"):
        asked("plain", way, way)
    num_layers = model.config.get_text_config().num_hidden_layers
    for band in default_bands(num_layers):
        for dose in (d for d in DOSES if d <= 2 * layer_count(model, band)):
            asked("bands", f"{band} {dose}", fusion_layers=band, dose=dose, **AS_IN_THE_PAPER)
    for layer in replacements(num_layers):
        asked("replace", layer, fusion_layers=layer, dose=1.0, alpha=0.0)
    top = f"{num_layers // 2}:{num_layers}"
    for name, layers in (("config", model.config.fusion_layers), ("top_half", top)):
        strength = {} if name == "config" else {"dose": PAPER_DOSE}
        for alpha in ALPHA_SWEEP:
            asked("alpha", f"{name} {alpha}", fusion_layers=layers, **AS_IN_THE_PAPER | {"alpha": alpha}, **strength)
        for dose in DOSE_SWEEP:
            if dose <= 2 * layer_count(model, layers):
                asked("dose", f"{name} {dose}", fusion_layers=layers, dose=dose, **AS_IN_THE_PAPER)
    language_model = text_llm(seed)
    for way, weights in WEIGHTS.items():
        for weight in weights:
            if way == "merged_weights":
                asked("rivals", f"{way} {weight}", "unfused", merge_language_model(model, language_model, weight))
            else:
                asked("rivals", f"{way} {weight}", way, weight=weight)
    for layers, dose, alpha in static_settings(model):
        vectors = static_vectors(model, processor, calibration_questions("static"), layers)
        setting = {"fusion_layers": layers, "dose": dose, "alpha": alpha}
        asked("static", f"{layers} {dose} {alpha}", "static_vector", vectors=vectors, **setting)
    found["fusion"] = {name: getattr(model.config, name) for name in FUSION_FIELDS}
    return found


def calibration_questions(purpose: str):
    return visual_questions(COUNT[purpose], seed=CALIBRATION_SEED, split="validation")


def choose(seeds: list[int]) -> dict:
    """From validation: one weight a rival and one dose a band for all seeds; the setting tuned for each seed."""
    found = {seed: read(f"seed{seed}/validation") for seed in seeds}

    def best(group: str, keys) -> str:
        return max(keys, key=lambda key: np.mean([accuracy(found[seed][group][key]) for seed in seeds]))

    weights = {
        way: float(best("rivals", [f"{way} {w}" for w in options]).split()[1]) for way, options in WEIGHTS.items()
    }
    settings = list(found[seeds[0]]["bands"])
    bands = {}
    for band in dict.fromkeys(setting.split()[0] for setting in settings):
        bands[band] = float(best("bands", [s for s in settings if s.split()[0] == band]).split()[1])
    tuned = {}
    for seed in seeds:
        options = {f"{setting} 1.0 prompt": letters for setting, letters in found[seed]["bands"].items()}
        options |= {f"{layer} 1.0 0.0": letters for layer, letters in found[seed]["replace"].items()}
        tuned[str(seed)] = as_setting(max(options, key=lambda s: accuracy(options[s])))
    static = as_setting(best("static", list(found[seeds[0]]["static"])))
    return {"weights": weights, "bands": bands, "tuned": tuned, "static": static}


def as_setting(key: str) -> dict:
    """ "0:4 2.0 1.0 prompt" -> keywords of generate(); without the last word, answers are fused as the config says."""
    layers, dose, alpha, *prompt_only = key.split()
    setting = {"fusion_layers": layers, "dose": float(dose), "alpha": float(alpha)}
    return setting | ({"fusion_answer": False} if prompt_only else {})


def way_settings(seed: int, model, processor, chosen: dict) -> dict[str, dict]:
    """way -> keywords of `ask`: the modes, the rivals as chosen, ablations, and each band at its best dose."""
    vectors = static_vectors(model, processor, calibration_questions("static"), chosen["static"]["fusion_layers"])
    ways = {mode: {} for mode in MODES}
    ways |= {way: {"weight": weight} for way, weight in chosen["weights"].items()}
    ways["merged_weights"]["language_model"] = text_llm(seed)
    ways["static_vector"] = {"vectors": vectors, **chosen["static"]}
    return ways


def measure_test(seeds: list[int]) -> dict:
    (seed,) = seeds
    model, processor = load(f"seed{seed}/vift")
    chosen = read("choose")
    questions = visual_questions(COUNT["test"], split="test")
    asked = {way: (way, kwargs) for way, kwargs in way_settings(seed, model, processor, chosen).items()}
    asked |= {name: ("fused", kwargs) for name, kwargs in ABLATIONS.items()}
    for band, dose in chosen["bands"].items():
        asked[f"band {band}"] = ("fused", {"fusion_layers": band, "dose": dose, **AS_IN_THE_PAPER})
    found = {"families": list(questions["family"]), "ways": {}}
    for name, (way, kwargs) in asked.items():
        predictions = ask(model, processor, questions, way, max_new_tokens=SHORT, **kwargs)
        found["ways"][name] = outcomes(predictions, questions)
        show(name, found["ways"][name])
    return found


def measure_calibrate(seeds: list[int]) -> dict:
    """calibrate() on unlabelled prompts against the setting tuned with labels, on the test split."""
    (seed,) = seeds
    model, processor = load(f"seed{seed}/vift")
    prompts = calibration_questions("calibrate")
    result = calibrate(
        model, processor, [row[0] for row in prompts["images"]], list(prompts["question"]),
        caption_query=language.DETAILED_QUERIES[0], read_back=read_back, caption_tokens=48, answer_tokens=8,
        store=False,
    )  # fmt: skip
    teacher = outcomes(result.pop("answers"), prompts)
    questions = visual_questions(COUNT["test"], split="test")
    settings = {
        "tuned": read("choose")["tuned"][str(seed)],
        "calibrated": {
            "alpha": result["fusion_alpha"], "dose": result["fusion_dose"], "fusion_layers": result["fusion_layers"],
        },
    }  # fmt: skip
    found = {"settings": settings, "scores": result, "teacher": teacher, "ways": {}}
    for name, kwargs in settings.items():
        predictions = ask(model, processor, questions, "fused", max_new_tokens=SHORT, **kwargs)
        found["ways"][name] = outcomes(predictions, questions)
        show(f"{name} {kwargs}", found["ways"][name])
    return found


def measure_cost(seeds: list[int]) -> dict:
    (seed,) = seeds
    model, processor = load(f"seed{seed}/vift")
    questions = visual_questions(COUNT["cost"], seed=1, split="test")
    ways = way_settings(seed, model, processor, read("choose"))
    del ways["merged_weights"]  # merged once; an answer costs what an unfused one does
    return {"ways": cost(model, processor, questions, ways)}


def measure_arms(seeds: list[int]) -> dict:
    """Every arm: asked unfused, fused as the config says, and with the scene in words (text ability)."""
    (seed,) = seeds
    questions = visual_questions(COUNT["test"], split="test")
    found = {"held_out": held_out(seed), "families": list(questions["family"]), "arms": {}}
    for arm in (arm for arm in paper.ARMS if Path(f"seed{seed}/{arm}").is_dir()):
        model, processor = load(f"seed{seed}/{arm}")
        ways = ("unfused", "gold") if arm.startswith("vit") else ("unfused", "fused", "gold")
        found["arms"][arm] = {}
        for way in ways:
            predictions = ask(model, processor, questions, way, max_new_tokens=SHORT)
            found["arms"][arm][way] = outcomes(predictions, questions)
            show(f"{arm} {way}", found["arms"][arm][way])
    return found


STEPS = {
    "validation": measure_validation,
    "choose": choose,
    "test": measure_test,
    "calibrate": measure_calibrate,
    "cost": measure_cost,
    "arms": measure_arms,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("step", choices=("data", *STEPS))
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--json", type=Path, required=True, help="the file to write (data: the folder)")
    args = parser.parse_args(argv)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    disable_progress_bars()
    logging.disable_progress_bar()
    if args.step == "data":
        write_data(args.seeds, args.json)
    else:
        paper.write_json(args.json, STEPS[args.step](args.seeds))


if __name__ == "__main__":
    main()
