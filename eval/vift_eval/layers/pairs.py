"""Pairs of an image and its words for `vift analyze`: the micro-world, or your own.

A pair is {"image": PIL RGB, "caption", "query", "labels": {name: class}, "answer" (or None), "question": row}. Your
own come from a JSON-lines file {"image": path, "caption": words} with, if you like, "query" (or "question"), "label",
"answer"; or from a folder of such pictures with `metadata.jsonl` ("file_name", "text"), as image folders of the Hub
have it.
"""

from pathlib import Path

from vift_hub.cli import UserError
from vift_microworld import language, sample_scenes, visual_questions

from ..files import json_rows
from ..images import open_image

QUERY = "What is in the image?"  # where the data names none
IMAGES, CAPTIONS = ("image", "file_name", "image_path"), ("caption", "text", "txt")  # names that a column may have


def micro_pairs(count: int, split: str = "validation", seed: int = 21) -> list[dict]:
    """Questions of the micro-world about picture and scene in words; classes that a probe can look for."""
    rows = visual_questions(count, seed=seed, split=split)
    scenes = sample_scenes(count, seed, split, "questions")
    pairs = []
    for row, scene in zip(rows, scenes):
        if language.scene_words(scene) != row["scene_text"]:
            raise AssertionError("the scenes of visual_questions are drawn in another way now")
        digits = [item.digit for item in scene.objects]
        middle = [item.color for item in scene.objects if item.where == "middle center"]
        labels = {
            "number of digits": len(digits),
            "largest digit": max(digits),
            "middle cell": (middle or ["none"])[0],
        }
        pairs.append(
            {
                "image": row["images"][0].convert("RGB"),
                "caption": row["scene_text"],
                "query": row["question"],
                "labels": {name: str(value) for name, value in labels.items()},
                "answer": row["answer"],
                "row": row,
            }
        )
    return pairs


def load_pairs(source: str, count: int) -> list[dict]:
    """The first `count` pairs of a file or folder.

    Raises:
        UserError: unreadable, or a row without image or caption (named by its line).
    """
    path = Path(source)
    file = path / "metadata.jsonl" if path.is_dir() else path
    pairs = []
    for number, row in json_rows(file, count, f"--data={source}"):
        row = row if isinstance(row, dict) else {}
        image, caption = (next((row[key] for key in keys if row.get(key)), None) for keys in (IMAGES, CAPTIONS))
        if image is None or caption is None:
            raise UserError(f'{file}, line {number}: not {{"image": path, "caption": words}}')
        query = next((row[key] for key in ("query", "question") if row.get(key) is not None), QUERY)
        pairs.append(
            {
                "image": open_image(file.parent / str(image))[0],  # an absolute path stays
                "caption": str(caption),
                "query": str(query),
                "labels": {"label": str(row["label"])} if row.get("label") is not None else {},
                "answer": None if row.get("answer") is None else str(row["answer"]),
            }
        )
    return pairs
