"""A few rows in the format of each public benchmark, made on the spot, and tasks that read them.

`write(folder)` makes `folder/<name>/test.parquet` and `folder/tasks/local_<name>.yaml`, which includes the shipped
YAML and changes where the data come from (LLaVA-Bench gets the preset that the group gives it).
"""

from pathlib import Path

import lmms_eval
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

ROOT = Path(__file__).parents[2]
OURS = ROOT / "eval" / "tasks"
THEIRS = Path(lmms_eval.__file__).parent / "tasks"
TEXT = Value("string")


def square(color: str) -> PILImage.Image:
    return PILImage.new("RGB", (48, 48), color)


def rows(columns: dict, **features) -> Dataset:
    known = {"image": Image(), "decoded_image": Image(), "images": Image()}
    default = {name: known.get(name, TEXT) for name in columns}
    return Dataset.from_dict(columns, features=Features(default | features))


def benchmarks() -> dict:
    """name -> (shipped YAML, rows, what the local task changes)."""
    questions = ["what color is the digit at the top left ?", "is the 3 left of the 5 ?", "how many digits are red ?"]
    pictures = [square(color) for color in ("red", "blue", "green")]
    return {
        "pope": (
            THEIRS / "pope/pope.yaml",
            rows({"question_id": ["0", "1"], "question": ["is the 1 above the 2 ?", "is the 2 left of the 1 ?"],
                  "answer": ["yes", "no"], "image": pictures[:2]}),
            {"test_split": "test"},
        ),
        "mathvision": (
            OURS / "vift_reasoning/vift_mathvision.yaml",
            rows({"id": ["0", "1", "2"],
                  "question": ["<image1>How many sides?", "Which comes next? <image1>",
                               "<image1> and <image2> differ by?"],
                  "options": [[], ["a", "b", "c", "d", "e"], []], "answer": ["4", "B", "2.5"],
                  "decoded_image": pictures}, options=List(TEXT)),
            {"test_split": "test"},
        ),
        "mathvista": (
            OURS / "vift_reasoning/vift_mathvista.yaml",
            rows({"pid": ["1", "2"], "question": ["How much is it?", "Which is it?"],
                  "query": [
                      "Hint: Please answer the question requiring an integer answer and provide the final value, "
                      "e.g., 1, 2, 3, at the end.\nQuestion: How much is it? (Unit: g)",
                      "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at "
                      "the end.\nQuestion: Which is it?\nChoices:\n(A) one\n(B) two"],
                  "answer": ["3", "two"], "choices": [[], ["one", "two"]],
                  "question_type": ["free_form", "multi_choice"],
                  "answer_type": ["integer", "text"], "decoded_image": pictures[:2]}, choices=List(TEXT)),
            {"test_split": "test"},
        ),
        "mathverse": (
            OURS / "vift_reasoning/vift_mathverse.yaml",
            rows({"sample_index": ["1", "2"], "problem_index": ["1", "1"],
                  "problem_version": ["Text Dominant", "Vision Only"], "question": ["Find angle B.", ""],
                  "question_for_eval": ["Find angle B.", "Find angle B."], "answer": ["A", "A"],
                  "question_type": ["multi-choice", "multi-choice"], "query_wo": ["unused", "unused"],
                  "query_cot": [
                      "Please first conduct reasoning, and then answer the question and provide the correct option "
                      "letter, e.g., A, B, C, D, at the end.\nQuestion: Find angle B.\nChoices:\nA:30\nB:60",
                      "Please first conduct reasoning, and then answer the question and provide the correct option "
                      "letter, e.g., A, B, C, D, at the end."],
                  "image": pictures[:2]}),
            {"dataset_name": "null", "test_split": "test"},
        ),
        "llava": (
            THEIRS / "llava-in-the-wild/llava-in-the-wild.yaml",
            rows({"question_id": ["0", "1", "2"], "question": questions, "gpt_answer": ["red", "yes", "two"],
                  "caption": ["a red square", "a blue square", "a green square"], "image": pictures,
                  "category": ["conv", "detail", "complex"]}),
            {"test_split": "test", "model_specific_generation_kwargs": "{vift: {fusion: instruction}}"},
        ),
        "sugarcrepe": (
            OURS / "composition/sugarcrepe.yaml",
            rows({"images": pictures[:2], "caption": ["top left red 7 .", "top left blue 2 ."],
                  "negative_caption": ["top left red 8 .", "top left red 2 ."]}),
            {"test_split": "test"},
        ),
        "aro_coco_order_ppl": (
            OURS / "composition/aro_coco_order_ppl.yaml",
            rows({"images": pictures[:2], "correct_caption": ["top left red 7 .", "top left blue 2 ."]}
                 | {f"hard_text_{i}": [f"7 red {i} .", f"blue left {i} ."] for i in (1, 2, 3, 4)}),
            {"test_split": "test"},
        ),
    }  # fmt: skip


def write(folder: Path) -> Path:
    """Returns the folder of the tasks."""
    tasks = folder / "tasks"
    tasks.mkdir(parents=True)
    for name, (shipped, data, changes) in benchmarks().items():
        (folder / name).mkdir()
        data.to_parquet(folder / name / "test.parquet")
        lines = [f"include: {shipped}", f"task: local_{name}"]
        lines += [f"dataset_path: {folder / name}", "dataset_kwargs: null"]
        lines += [f"{key}: {value}" for key, value in changes.items()]
        (tasks / f"local_{name}.yaml").write_text("\n".join(lines) + "\n")
    return tasks
