"""The measuring steps of the study on real parts: each writes the rows of its answers, one a question.

    python -m vift_studies.smol.measure test --seeds 0 --out seed0/test.parquet       # in the work folder

Everything that is chosen is chosen on the validation split, in three circles: beta alone (alpha = 1, the top half of
the layers, as in the paper), bands of layers and their dose, and everything free. The test splits are read by `test`,
`cost` and `calibrate`.
"""

import time
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset, Image, List

from vift_eval.answers.baselines import static_vectors
from vift_eval.answers.conditions import ask
from vift_eval.answers.generate import decoded
from vift_eval.calibrate import calibrate, default_bands, replacements
from vift_eval.files import read_json
from vift_eval.models import load_model
from vift_hub.assemble import assemble, load_trained, pack
from vift_hub.init import build
from vift_pictures import FAMILIES, TWO_HOPS, is_caption, is_right, visual_questions

from ..answers import measure
from .plan import BASE, checkpoints

COUNT = {"validation": 3, "curve": 2, "test": 6, "style": 3, "facts": 5, "cost": 1, "calibrate": 1}  # of each family
SEEDS = {"validation": 21, "curve": 22, "static": 23, "calibrate": 24}  # questions that no other step sees
MAX_NEW_TOKENS, CAPTION_TOKENS = 24, 64
CAPTIONS = {"query": "Describe the picture in detail.", "joined": lambda caption, question: f"{caption} {question}",
            "caption_tokens": CAPTION_TOKENS}  # fmt: skip
BETAS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
DOSES = (0.75, 2.0)  # beta x number of fused layers
WEIGHTS = {"logit_mix": (0.25, 0.5, 0.75), "merged_weights": (0.25, 0.5, 0.75, 1.0)}
PAPER = {"alpha": 1.0, "fusion_answer": False}
# what identifies a setting of fusion, and of a baseline: columns of the rows
COLUMNS = {
    "alpha": "alpha",
    "beta": "beta",
    "dose": "dose",
    "fusion_layers": "layers",
    "fusion_rule": "rule",
    "weight": "weight",
}
MAIN = ("unfused", "blind", "oracle_text", "caption_first", "paper_literal", "paper_form", "wrong_image")


def top_half(model) -> str:
    number = model.config.get_text_config().num_hidden_layers
    return f"{number // 2}:{number}"


def layer_profiles(number: int) -> dict[str, list[float]]:
    """Weights of `merged_layers`: the text LLM of before back in one half of the layers, or more and more upwards."""
    half = number // 2
    return {
        "lower half": [1.0] * half + [0.0] * (number - half + 1),
        "upper half": [0.0] * half + [1.0] * (number - half) + [0.0],
        "rising": [layer / (number - 1) for layer in range(number)] + [0.0],
        "falling": [1 - layer / (number - 1) for layer in range(number)] + [0.0],
    }


def questions_of(split: str, purpose: str | None = None) -> Dataset:
    """In equal shares of the families (of two hops only where facts are held out)."""
    purpose = purpose or split
    families = TWO_HOPS if split == "facts" else tuple(FAMILIES)
    rows = visual_questions(COUNT[purpose] * len(families), SEEDS.get(purpose, 0), split)
    return Dataset.from_list([{k: v for k, v in row.items() if k != "messages"} for row in rows]).cast_column(
        "images", List(Image())
    )


def outcome(text: str, row: dict) -> str:
    if not text.strip():
        return "empty"
    if is_right(text, row["answers"], row["family"], row["question"]):
        return "right"
    return "caption" if is_caption(text, row["answers"], row["question"]) else "wrong"


def ask_rows(
    model, processor, questions, name: str, columns: dict, condition: str | None = None, **kwargs
) -> pd.DataFrame:
    """One row an answer, and a line of how it went. `name` is what the setting is called, `condition` what it is."""
    condition = condition or name
    if condition == "caption_first":
        kwargs |= CAPTIONS
    answers = ask(model, processor, questions, condition, batch_size=24, max_new_tokens=MAX_NEW_TOKENS, **kwargs)
    setting = {column: kwargs[key] for key, column in COLUMNS.items() if key in kwargs}
    rows = pd.DataFrame({
        **columns, "condition": name, **setting, "question": range(len(answers)), "family": questions["family"],
        "hops": questions["hops"], "answer": [answer.text for answer in answers],
        "outcome": [outcome(answer.text, row) for answer, row in zip(answers, questions)],
        "tokens": [decoded(answer) for answer in answers],
    })  # fmt: skip
    shares = rows["outcome"].value_counts(normalize=True)
    told = " ".join(map(str, [*columns.values(), name, *(f"{key} {value}" for key, value in setting.items())]))
    print(f"{told}: right {shares.get('right', 0):.1%}, captions {shares.get('caption', 0):.1%}", flush=True)
    return rows


def base_model():
    """The language model as it was before training, inside its start."""
    return build(**BASE, dtype=torch.bfloat16)[0].float()


class TextModel:
    """A VIFT's language model as `merge_language_model` takes one."""

    def __init__(self, model):
        self.model = model.model.language_model


def measure_vift(seeds: list[int], out: Path) -> None:
    """The trained LoRA and connector merged into the parts; beside it (`<out>/trained`) what is published."""
    (seed,) = seeds
    pack(
        Path(f"seed{seed}/stage2"), out / "trained", BASE | {"seed": seed}, {"fusion_layers": 0.5, "fusion_alpha": 1.0}
    )
    model, processor = assemble(out / "trained")
    model.save_pretrained(out)
    processor.save_pretrained(out)


def measure_curve(seeds: list[int]) -> pd.DataFrame:
    """Unfused, after stage 1 and along stage 2: what the shape of the training does by itself."""
    (seed,) = seeds
    questions, parts = questions_of("validation", "curve"), []
    model, processor = load_model(f"seed{seed}/stage1")
    ways = {
        "unfused": {},
        "paper_literal": {"condition": "fused", "beta": 0.1, "fusion_layers": top_half(model), **PAPER},
    }
    for name, given in ways.items():
        parts.append(ask_rows(model, processor, questions, name, {"seed": seed, "step": 0}, **given))
    for number, folder in checkpoints(Path(f"seed{seed}/stage2")):
        tuned = load_trained(base_model(), folder)
        for name, given in ways.items():
            parts.append(ask_rows(tuned, processor, questions, name, {"seed": seed, "step": number}, **given))
    return pd.concat(parts, ignore_index=True)


def measure_validation(seeds: list[int]) -> pd.DataFrame:
    """Sweeps, from the narrowest circle to the widest; then weights of the baselines."""
    (seed,) = seeds
    model, processor = load_model(f"seed{seed}/vift")
    questions, parts = questions_of("validation"), []

    def asked(sweep: str, name: str, condition: str | None = None, **kwargs) -> None:
        parts.append(ask_rows(model, processor, questions, name, {"seed": seed, "sweep": sweep}, condition, **kwargs))

    for condition in ("unfused", "blind", "oracle_text", "caption_first"):
        asked("plain", condition)
    for beta in BETAS:
        asked("beta", "fused", beta=beta, fusion_layers=top_half(model), **PAPER)
    number = model.config.get_text_config().num_hidden_layers
    for layers in default_bands(number):
        for dose in DOSES:
            asked("bands", "fused", dose=dose, fusion_layers=layers, **PAPER)
    for layers in replacements(number, most=4):
        for answer in (False, True):
            asked(
                "free",
                "fused" if not answer else "fused_answer_too",
                "fused",
                alpha=0.0,
                beta=1.0,
                fusion_layers=layers,
                fusion_answer=answer,
            )
    for alpha in (0.5, 0.8):
        asked(
            "free", "fused", alpha=alpha, beta=round(1 - alpha, 2), fusion_layers=top_half(model), fusion_answer=False
        )
    base = TextModel(base_model())
    for condition, weights in WEIGHTS.items():
        more = {"language_model": base} if condition == "merged_weights" else {}
        for weight in weights:
            asked("weights", condition, weight=weight, **more)
    for profile, weights in layer_profiles(number).items():
        asked(f"merged {profile}", "merged_layers", weights=weights, language_model=base)
    return pd.concat(parts, ignore_index=True)


def choose(seeds: list[int]) -> dict:
    """Per seed, the first best of each circle on validation: kwargs of `generate()`, and the baselines' weights."""
    chosen = {}
    for seed in seeds:
        rows = pd.read_parquet(f"seed{seed}/validation.parquet")
        rows["right"] = rows["outcome"].eq("right")

        def best(part: pd.DataFrame, columns: list[str]) -> dict:
            means = part.groupby(columns, sort=False, dropna=False)["right"].mean()
            values = dict(zip(columns, means.idxmax() if len(columns) > 1 else [means.idxmax()]))
            return {name: value for name, value in values.items() if not pd.isna(value)}

        names = ["condition", "alpha", "beta", "dose", "layers"]
        sweep = dict(list(rows.groupby("sweep", sort=False)))
        fused = pd.concat([sweep["beta"], sweep["bands"], sweep["free"]])
        merged = rows[rows["condition"].eq("merged_layers")]
        chosen[str(seed)] = {
            "paper_form": best(sweep["beta"], ["beta"]),
            "band": best(sweep["bands"], names),
            "free": best(fused, names),
            "logit_mix": best(rows[rows["condition"].eq("logit_mix")], ["weight"]),
            "merged_weights": best(rows[rows["condition"].eq("merged_weights")], ["weight"]),
            "merged_layers": best(merged, ["sweep"])["sweep"].removeprefix("merged "),
        }
    return chosen


def keywords(setting: dict) -> dict:
    """A chosen setting as keywords of `generate()`."""
    given = {key: setting[column] for key, column in COLUMNS.items() if column in setting}
    return given | {"fusion_answer": setting.get("condition") == "fused_answer_too"}


def ways_of(model, processor, chosen: dict) -> dict[str, dict]:
    """Name -> condition and keywords, the paper's own settings first."""
    half, base = top_half(model), TextModel(base_model())
    form = {"beta": chosen["paper_form"]["beta"], "fusion_layers": half, **PAPER}
    static = static_vectors(model, processor, questions_of("validation", "static"), half)
    fused = {
        "paper_literal": {"beta": 0.1}, "paper_literal_0.15": {"beta": 0.15},
        "paper_additive": {"beta": 0.1, "fusion_rule": "additive"}, "paper_form": {"beta": form["beta"]},
    }  # fmt: skip
    ways = {name: {} for name in ("unfused", "blind", "oracle_text", "caption_first")}
    ways |= {name: {"condition": "fused", "fusion_layers": half, **PAPER, **given} for name, given in fused.items()}
    ways |= {name: {"condition": "fused", **keywords(chosen[name])} for name in ("band", "free")}
    ways |= {name: form for name in ("wrong_image", "other_question", "random_vectors")}
    ways["wrong_image_literal"] = {"condition": "wrong_image"} | form | {"beta": 0.1}
    ways["static_vector"] = {"vectors": static, **form}
    ways["logit_mix"] = chosen["logit_mix"]
    ways["merged_weights"] = {"language_model": base, **chosen["merged_weights"]}
    profile = layer_profiles(model.config.get_text_config().num_hidden_layers)[chosen["merged_layers"]]
    ways["merged_layers"] = {"language_model": base, "weights": profile}
    return ways


def measure_test(seeds: list[int]) -> pd.DataFrame:
    """Every way to ask on the test split; the main ones on drawings of another style and on held-out facts."""
    (seed,) = seeds
    model, processor = load_model(f"seed{seed}/vift")
    ways, parts = ways_of(model, processor, read_json("choose.json")[str(seed)]), []
    for split in ("test", "style", "facts"):
        questions = questions_of(split)
        for name, given in ways.items():
            if split == "test" or name in MAIN:
                columns = {"seed": seed, "split": split}
                parts.append(ask_rows(model, processor, questions, name, columns, **given))
    return pd.concat(parts, ignore_index=True)


def measure_cost(seeds: list[int]) -> pd.DataFrame:
    """Time to the whole answer, one question at a time, the conditions taking turns."""
    (seed,) = seeds
    model, processor = load_model(f"seed{seed}/vift")
    ways = ways_of(model, processor, read_json("choose.json")[str(seed)])
    questions, parts = questions_of("test", "cost"), []
    for number in range(len(questions)):
        for name in ("unfused", "paper_literal", "paper_form", "caption_first"):
            start = time.process_time()
            rows = ask_rows(model, processor, questions.select([number]), name, {"seed": seed}, **ways[name])
            parts.append(rows.assign(question=number, ms=1000 * (time.process_time() - start)))
    return pd.concat(parts, ignore_index=True)


def measure_calibrate(seeds: list[int]) -> pd.DataFrame:
    """calibrate() on unlabelled prompts of the validation split, then its setting on the test split."""
    (seed,) = seeds
    model, processor = load_model(f"seed{seed}/vift")
    prompts = questions_of("validation", "calibrate")
    result = calibrate(
        model, processor, [row[0] for row in prompts["images"]], list(prompts["question"]),
        caption_query=CAPTIONS["query"], read_back=CAPTIONS["joined"], caption_tokens=CAPTION_TOKENS,
        answer_tokens=8, store=False,
    )  # fmt: skip
    setting = {
        "alpha": result["fusion_alpha"],
        "dose": result["fusion_dose"],
        "fusion_layers": result["fusion_layers"],
    }
    questions = questions_of("test")
    return ask_rows(model, processor, questions, "calibrated", {"seed": seed}, "fused", fusion_answer=False, **setting)


STEPS = {
    "curve": measure_curve, "validation": measure_validation, "choose": choose, "test": measure_test,
    "cost": measure_cost, "calibrate": measure_calibrate,
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    measure(__doc__.split("\n")[0], STEPS, {"vift": measure_vift}, argv)


if __name__ == "__main__":
    main()
