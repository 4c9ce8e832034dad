"""The functions of the YAML tasks in `eval/tasks`: documents, prompts and scores.

Micro-world: `questions.json` beside the YAML holds one row, {"count", "seed", "split"}; the documents are made from
it, so that they are those of `vift demo` with the same seed (the first n of any count are the same).

Mathematics: the prompts of arXiv 2502.11427's evaluation. MathVista: the benchmark's own query with its hint line.
MathVerse: the benchmark's chain-of-thought query. MathVision: reasoning first, then the letter or the value.

Captions that differ in composition (SugarCrepe, arXiv 2306.14610; ARO, arXiv 2210.01936): which of two or more
captions fits the picture, asked with letters; the right one's place is spread evenly and depends on its words only.
The `_ppl` tasks compare likelihoods instead (`--force_simple`).
"""

import hashlib
import re

from datasets import Dataset, Features, Image, Value

from vift_hub.pictures import to_rgb
from vift_microworld import exact_match, is_caption, language, normalize_answer, visual_questions

# --- the micro-world ----------------------------------------------------------------------------------------------

MICRO = Features(
    {"image": Image()} | {name: Value("string") for name in ("id", "family", "question", "answer", "scene_text")}
)


def micro_docs(spec: Dataset) -> Dataset:
    """Visual questions, families in equal shares."""
    rows = visual_questions(spec[0]["count"], seed=spec[0]["seed"], split=spec[0]["split"])
    columns = {name: list(rows[name]) for name in MICRO if name != "image"}
    return Dataset.from_dict({"image": [images[0] for images in rows["images"]], **columns}, features=MICRO)


def micro_text_docs(spec: Dataset) -> Dataset:
    """The same questions with the scene in words instead of the picture."""
    return micro_docs(spec).remove_columns("image")


def micro_image(doc) -> list:
    return [doc["image"]]


def micro_text(doc) -> str:
    return f"{doc['scene_text']} {doc['question']}"


def micro_score(doc, results) -> dict:
    right = exact_match(results[0], doc["answer"])
    return {"exact_match": float(right), "caption_rate": float(is_caption(results[0]))}


def micro_caption_query(doc) -> str:
    return language.DETAILED_QUERIES[0]


def micro_caption_score(doc, results) -> dict:
    """Whole caption right (all objects, no other), and F1 over objects with place, colour and digit."""
    described, shown = objects(results[0]), objects(doc["scene_text"])
    hits = len(described & shown)
    return {
        "caption_exact": float(described == shown),
        "object_f1": 2 * hits / (len(described) + len(shown)) if described else 0.0,
    }


def objects(text: str) -> set[str]:
    """The objects of a caption or a scene in words, such as "top left red 7"."""
    return {normalize_answer(part) for part in re.split(r"[,:.]", text) if re.search(r"\d$", normalize_answer(part))}


# --- mathematics --------------------------------------------------------------------------------------------------

MATHVISION_CHOICE = (
    "Please first conduct reasoning, and then answer the question and provide the correct option letter, e.g., "
    "A, B, C, D, E, at the end.\nQuestion: "
)
MATHVISION_OPEN = (
    "Please first conduct reasoning, and then answer the question and provide the final value, e.g., 1, 2.5, 300, at "
    "the end.\nQuestion: "
)


def mathvista_query(doc, lmms_eval_specific_kwargs=None) -> str:
    return doc["query"]


def mathverse_query(doc, lmms_eval_specific_kwargs=None) -> str:
    return doc["query_cot"]


def mathvision_query(doc, lmms_eval_specific_kwargs=None) -> str:
    question = doc["question"]
    if "<image2>" not in question:  # with one picture, its mark in the text says nothing
        question = question.replace("<image1>", "")
    if not doc["options"]:
        return MATHVISION_OPEN + question
    options = "".join(f"{chr(ord('A') + i)}: {option}\n" for i, option in enumerate(doc["options"]))
    return f"{MATHVISION_CHOICE}{question}\nChoices:\n{options}"


# --- captions that differ in composition --------------------------------------------------------------------------

TRUE = ("caption", "true_caption", "correct_caption")
FALSE = ("negative_caption", "false_caption", "hard_text_1", "hard_text_2", "hard_text_3", "hard_text_4")


def pair_image(doc) -> list:
    image = doc["image"] if "image" in doc else doc["images"]
    return [to_rgb(image[0] if isinstance(image, list) else image)[0]]


def pair_choices(doc) -> list[str]:
    """The captions, the right one at `pair_target`."""
    right = next(doc[name] for name in TRUE if name in doc)
    choices = [doc[name] for name in FALSE if name in doc]
    choices.insert(int(hashlib.sha256(right.encode()).hexdigest(), 16) % (len(choices) + 1), right)
    return choices


def pair_target(doc) -> int:
    return pair_choices(doc).index(next(doc[name] for name in TRUE if name in doc))


def pair_letter(doc) -> str:
    return "ABCDE"[pair_target(doc)]


def pair_text(doc) -> str:
    lines = [f"{'ABCDE'[i]}. {choice}" for i, choice in enumerate(pair_choices(doc))]
    return "\n".join(
        ["Which caption fits the image?", *lines, "Answer with the option's letter from the given choices directly."]
    )


def pair_describe(doc) -> str:
    return "Describe the image briefly."


def pair_score(doc, results) -> dict:
    """The first letter that stands alone counts; `no_letter` is the share of answers without one."""
    letter = re.search(r"\b([A-E])\b", results[0])
    return {
        "accuracy": float(letter is not None and letter[1] == pair_letter(doc)),
        "no_letter": float(letter is None),
    }
