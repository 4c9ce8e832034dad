"""The measuring steps of the paper in a box: each writes the rows of its answers (`data`: a folder, `choose`: JSON).

    python -m vift_studies.paper.measure test --seeds 0 --out seed0/test.parquet      # in the work folder

Everything that is chosen (`choose`) is chosen on the validation split; the test split is read by `test`, `calibrate`,
`cost` and `arms`.
"""

import time
from pathlib import Path

import pandas as pd
import torch
import yaml
from transformers import Qwen2ForCausalLM

from modeling_vift import resolve_fusion
from vift_eval.answers.baselines import static_vectors
from vift_eval.answers.conditions import PAPER, ask, read_back
from vift_eval.answers.outcomes import outcome
from vift_eval.calibrate import DOSES, calibrate, default_bands, replacements
from vift_eval.files import read_json
from vift_eval.models import load_model
from vift_microworld import data, language, visual_instructions, visual_questions
from vift_train.micro import RECIPES, load_recipe, queries_of, training_fields

from ..answers import answer_rows, ask_rows, measure, seen
from .plan import ARMS, ASKED, FUSED_OTHERWISE, top_half

COUNT = {"test": 750, "validation": 300, "calibrate": 64, "static": 96, "cost": 24}
VALIDATION_SEED, CALIBRATION_SEED = 11, 12  # questions that no other step sees
ALPHA_SWEEP = (0.0, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
DOSE_SWEEP = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0, 16.0)
WEIGHTS = {
    "logit_mix": (0.25, 0.5, 0.75),
    "logit_contrast": (-0.25, -0.5, -1.0),
    "merged_weights": (-0.25, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0),
}
LAYER_WEIGHTS = (0.0, 0.5, 0.75, 1.0)  # tried in turn for each layer
KEYWORDS = ("fusion_layers", "dose", "alpha")  # a setting of fusion, as conditions take it


def load(seed: int, name: str = "vift"):
    return load_model(f"seed{seed}/{name}")


def text_llm(seed: int):
    return Qwen2ForCausalLM.from_pretrained(f"seed{seed}/phase0/language_model", dtype=torch.float32)


def calibration_questions(purpose: str):
    return visual_questions(COUNT[purpose], seed=CALIBRATION_SEED, split="validation")


def write_settings(name: str, folder: Path) -> None:
    """A recipe of stage 2 as `vift-train` takes it."""
    settings = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    fields = training_fields(settings) | {"warmup_steps": 0.03}  # a share: the arms differ in length
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")


def write_rows(rows, file: Path) -> None:
    rows.select_columns(["messages", "images", "modality"]).to_parquet(file)


def write_data(seeds: list[int], folder: Path) -> None:
    """Parquet files for the arms, and stage 2's settings: `<rows>-<divisor>.parquet` holds rows / divisor."""
    (seed,) = seeds
    recipe = load_recipe()
    stage1, stage2 = recipe["stage1"], recipe["stage2"]
    full, texts = stage2["caption_rows"], stage2["text_rows"]
    sources = {
        "web": lambda n: data.web_captions(stage1["rows"], seed=seed, **queries_of(stage1)),
        "detailed": lambda n: data.detailed_captions(full // n, seed=seed, **queries_of(stage2)),
        "text": lambda n: data.text_instructions(texts // n, seed=seed + 1, turns=stage2["text_turns"]),
        "visual": lambda n: visual_instructions(full // n, seed=seed, families=seen(seed)),
        # ViFT-A: a tenth as many questions as captions
        "added": lambda n: visual_instructions(full // n // 10, seed=seed, families=seen(seed)),
    }
    folder.mkdir(parents=True)
    for arm in ARMS:
        for name, file in arm.files.items():
            if not (folder / file).exists():
                write_rows(sources[name](arm.divisor), folder / file)
    for name in ("stage2", "vit-baseline"):
        write_settings(name, folder)


def layer_count(model, layers) -> int:
    """How many layers a band has; beta = dose / this is at most 2."""
    return len(resolve_fusion(model.config, True, fusion_layers=layers, beta=0.0).layers)


def static_settings(model) -> list[dict]:
    """Settings at which a mean text stream is tried: added low or everywhere, or in the place of the prompt's own
    states at one layer."""
    num_layers = model.config.get_text_config().num_hidden_layers
    half = num_layers // 2
    added = [(f"0:{stop}", dose, 1.0) for stop in (half, num_layers) for dose in (0.5, 1.0, 2.0, 4.0)]
    replacing = [(f"{layer}:{layer + 1}", 1.0, 0.0) for layer in (1, half)]
    return [dict(zip(KEYWORDS, values)) for values in (*added, *replacing)]


def layer_weights(num_layers: int, answered):
    """
    One round of coordinate descent over the weights of `merged_layers`, from half and half: yields what to ask.

    Args:
        answered: gives the rows of what was yielded last.
    """
    best, most = [0.5] * (num_layers + 1), -1
    tried = [best]
    for place in range(num_layers + 1):
        tried += [best[:place] + [weight] + best[place + 1 :] for weight in LAYER_WEIGHTS if weight != best[place]]
        for weights in tried:
            yield weights
            if (right := answered()["outcome"].eq("right").sum()) > most:
                best, most = weights, right
        tried = []


def measure_validation(seeds: list[int]) -> pd.DataFrame:
    """Sweeps: bands x doses, alpha and dose on the checkpoint's band and the paper's, weights of the baselines."""
    (seed,) = seeds
    model, processor = load(seed)
    questions = visual_questions(COUNT["validation"], seed=VALIDATION_SEED, split="validation")
    parts = []

    def asked(sweep: str, condition: str, **kwargs) -> None:
        columns = {"seed": seed, "sweep": sweep}
        parts.append(ask_rows(model, processor, questions, condition, columns, **kwargs))

    def in_band(sweep: str, layers, doses) -> None:
        for dose in (dose for dose in doses if dose <= 2 * layer_count(model, layers)):
            asked(sweep, "band", fusion_layers=layers, dose=dose, alpha=1.0)

    for condition in ("unfused", "fused", "blind", "caption_first"):
        asked("plain", condition)
    num_layers = model.config.get_text_config().num_hidden_layers
    for layers in default_bands(num_layers):
        in_band("bands", layers, DOSES)
    for layers in replacements(num_layers):
        asked("replace", "replaced", fusion_layers=layers, dose=1.0, alpha=0.0)
    own = resolve_fusion(model.config, True)
    own_dose = own.beta * len(own.layers)
    for layers, dose in ((model.config.fusion_layers, own_dose), (top_half(num_layers), PAPER["dose"])):
        for alpha in ALPHA_SWEEP:
            asked("alpha", "band", fusion_layers=layers, dose=dose, alpha=alpha)
        in_band("dose", layers, DOSE_SWEEP)
    language_model = text_llm(seed)
    for condition, weights in WEIGHTS.items():
        more = {"language_model": language_model} if condition == "merged_weights" else {}
        for weight in weights:
            asked("weights", condition, weight=weight, **more)
    for weights in layer_weights(num_layers, lambda: parts[-1]):
        asked("merged", "merged_layers", weights=weights, language_model=language_model)
    for setting in static_settings(model):
        vectors = static_vectors(model, processor, calibration_questions("static"), setting["fusion_layers"])
        asked("static", "static_vector", vectors=vectors, **setting)
    return pd.concat(parts, ignore_index=True)


def choose(seeds: list[int]) -> dict:
    """From validation: one weight per baseline and one dose per band for all seeds; a tuned setting for each seed."""
    rows = pd.concat([pd.read_parquet(f"seed{seed}/validation.parquet") for seed in seeds], ignore_index=True)
    rows["right"] = rows["outcome"].eq("right")
    rows = rows.rename(columns={"layers": "fusion_layers"})

    def best(part: pd.DataFrame, columns: tuple[str, ...]) -> dict:
        """The first of the settings with the highest mean over seeds of their accuracy."""
        by_seed = part.groupby([*columns, "seed"], sort=False)["right"].mean()
        means = by_seed.groupby(list(columns), sort=False).mean()
        return dict(zip(columns, means.idxmax()))

    sweep = dict(list(rows.groupby("sweep")))
    weights = dict(list(sweep["weights"].groupby("condition", sort=False)))
    bands = dict(list(sweep["bands"].groupby("fusion_layers", sort=False)))
    tuned, merged = [], []
    for seed in seeds:
        part = sweep["merged"][sweep["merged"]["seed"].eq(seed)]
        right = part.groupby(part["weights"].map(tuple), sort=False)["right"].mean()
        merged.append({"seed": seed, "weights": [float(weight) for weight in right.idxmax()]})
        part = rows[rows["sweep"].isin(["bands", "replace"]) & rows["seed"].eq(seed)]
        tuned.append({"seed": seed, **best(part, ("condition", *KEYWORDS))})
    return {
        "weights": {condition: best(part, ("condition", "weight"))["weight"] for condition, part in weights.items()},
        "bands": [best(part, KEYWORDS) for part in bands.values()],
        "tuned": tuned,
        "merged": merged,
        "static": best(sweep["static"], KEYWORDS),
    }


def keywords(seed: int, model, processor, chosen: dict) -> dict[str, dict]:
    """What each of `ASKED` takes besides the questions: the baselines' weights and vectors as chosen."""
    vectors = static_vectors(model, processor, calibration_questions("static"), chosen["static"]["fusion_layers"])
    given = {condition: {} for condition in ASKED}
    given |= {condition: {"weight": weight} for condition, weight in chosen["weights"].items()}
    weights = next(one["weights"] for one in chosen["merged"] if one["seed"] == seed)
    given["merged_layers"] = {"weights": weights, "language_model": text_llm(seed)}
    given["merged_weights"]["language_model"] = text_llm(seed)
    given["static_vector"] = {"vectors": vectors, **chosen["static"]}
    return given


def measure_test(seeds: list[int]) -> pd.DataFrame:
    """Every condition, and each band at its best dose."""
    (seed,) = seeds
    model, processor = load(seed)
    chosen = read_json("choose.json")
    asked = list(keywords(seed, model, processor, chosen).items())
    asked += [(condition, {}) for condition in FUSED_OTHERWISE]
    asked += [("band", setting) for setting in chosen["bands"]]
    questions = visual_questions(COUNT["test"], split="test")
    parts = [ask_rows(model, processor, questions, name, {"seed": seed}, **given) for name, given in asked]
    return pd.concat(parts, ignore_index=True)


def measure_calibrate(seeds: list[int]) -> pd.DataFrame:
    """calibrate() on unlabelled prompts, in all bands and in that of the logit lens, against tuning with labels."""
    (seed,) = seeds
    model, processor = load(seed)
    prompts = calibration_questions("calibrate")
    images = [row[0] for row in prompts["images"]]

    def chosen(**options) -> dict:
        return calibrate(
            model, processor, images, list(prompts["question"]), caption_query=language.DETAILED_QUERIES[0],
            read_back=read_back, caption_tokens=48, answer_tokens=8, store=False, **options,
        )  # fmt: skip

    results = {"calibrated": chosen(), "lens": chosen(bands="lens")}
    outcomes = [outcome(answer, right) for answer, right in zip(results["lens"]["answers"], prompts["answer"])]
    teacher = {"seed": seed, "choice": "teacher", "question": range(len(prompts)), "outcome": outcomes}
    tuned = next(one for one in read_json("choose.json")["tuned"] if one["seed"] == seed)
    settings = {"tuned": {name: tuned[name] for name in ("condition", *KEYWORDS)}}
    for choice, result in results.items():
        names = {"alpha": "fusion_alpha", "dose": "fusion_dose", "fusion_layers": "fusion_layers"}
        settings[choice] = {"condition": "fused"} | {name: result[key] for name, key in names.items()}
    questions = visual_questions(COUNT["test"], split="test")
    parts = [
        ask_rows(model, processor, questions, columns={"seed": seed, "choice": choice}, **setting)
        for choice, setting in settings.items()
    ]
    return pd.concat([*parts, pd.DataFrame(teacher)], ignore_index=True)


def measure_cost(seeds: list[int]) -> pd.DataFrame:
    """Time to the whole answer, one question at a time, the conditions taking turns."""
    (seed,) = seeds
    model, processor = load(seed)
    questions = visual_questions(COUNT["cost"], seed=1, split="test")
    given = keywords(seed, model, processor, read_json("choose.json"))
    del given["merged_weights"], given["merged_layers"]  # merged once; an answer costs what an unfused one does
    parts = []
    for number in range(len(questions)):
        for condition, kwargs in given.items():
            one, start = questions.select([number]), time.process_time()
            answers = ask(model, processor, one, condition, max_new_tokens=48, **kwargs)
            ms = 1000 * (time.process_time() - start)
            parts.append(answer_rows(one, answers, condition, seed=seed, ms=ms).assign(question=number))
    return pd.concat(parts, ignore_index=True)


def measure_arms(seeds: list[int]) -> pd.DataFrame:
    """Every arm: unfused, fused as the config says, and with the scene in words (text ability)."""
    (seed,) = seeds
    questions = visual_questions(COUNT["test"], split="test")
    parts = []
    for arm in (arm for arm in ARMS if Path(f"seed{seed}/{arm.name}").is_dir()):
        model, processor = load(seed, arm.name)
        columns = {"seed": seed, "training": arm.training, "divisor": arm.divisor}
        for condition in ("unfused", "oracle_text") if "visual" in arm.data else ("unfused", "fused", "oracle_text"):
            parts.append(ask_rows(model, processor, questions, condition, columns))
    return pd.concat(parts, ignore_index=True)


STEPS = {
    "validation": measure_validation,
    "choose": choose,
    "test": measure_test,
    "calibrate": measure_calibrate,
    "cost": measure_cost,
    "arms": measure_arms,
}


def main(argv: list[str] | None = None) -> None:
    measure(__doc__.split("\n")[0], STEPS, {"data": write_data}, argv)


if __name__ == "__main__":
    main()
