"""The world's data as rows, in the forms of the micro-world.

    captions        {"image": picture, "captions": [...]}: all concepts, also those whose facts are held out
    instructions    {"instruction", "output"}: text only
    questions       a user turn with a picture, `id`, `family`, `hops`, `question`, `answers`, `answer` (the first),
                    `scene_text`: for evaluation only

What may be trained on: captions, instructions and `prompts.chat`. A row depends on (seed, split, purpose, index) only.
"""

import random

from .language import captions, scene_words
from .questions import FAMILIES, TWO_HOPS, ask, instruction
from .scenes import Scene, check_split, render, sample_scenes


def captioned_scene(index: int, seed: int, split: str, kind: str) -> tuple[Scene, list[str]]:
    """Scene `index` of a split with several captions; `kind` is "web" (short, noisy) or "detailed"."""
    if kind not in ("web", "detailed"):
        raise ValueError(f"kind must be 'web' or 'detailed', got {kind!r}")
    scene = sample_scenes(1, seed, split, str(index))[0]
    return scene, captions(scene, random.Random(f"{seed}/{split}/{kind}/{index}"), kind)


def _caption_rows(count: int, seed: int, split: str, kind: str) -> list[dict]:
    rows = [captioned_scene(index, seed, split, kind) for index in range(count)]
    return [{"image": render(scene), "captions": said} for scene, said in rows]


def web_captions(count: int, seed: int = 0, split: str = "train") -> list[dict]:
    """Stage 1: short, partial, slightly noisy captions."""
    return _caption_rows(count, seed, split, "web")


def detailed_captions(count: int, seed: int = 0, split: str = "train") -> list[dict]:
    """Stage 2: complete captions."""
    return _caption_rows(count, seed, split, "detailed")


def text_instructions(count: int, seed: int = 0) -> list[dict]:
    """Stage 2: facts, comparisons and scenes in words; no fact of a held-out concept."""
    return [instruction(random.Random(f"{seed}/instruction/{index}")) for index in range(count)]


def question(index: int, seed: int, split: str, families: tuple[str, ...]) -> tuple[Scene, dict]:
    """Question `index` of a split: families take turns. The row lacks its picture."""
    family = families[index % len(families)]
    scene, asked, answers = ask(family, random.Random(f"{seed}/{split}/question/{index}"), split)
    row = {
        "id": f"{split}/{seed}/{index}",
        "family": family,
        "hops": 2 if family in TWO_HOPS else 1,
        "question": asked,
    }
    return scene, row | {"answer": answers[0], "answers": list(answers), "scene_text": scene_words(scene)}


def families_of(split: str) -> tuple[str, ...]:
    """The families that a split has: all, or those of two hops where the facts are held out."""
    return tuple(TWO_HOPS if check_split(split) == "facts" else FAMILIES)


def visual_questions(count: int, seed: int = 0, split: str = "test", families: tuple[str, ...] = ()) -> list[dict]:
    """Evaluation only: a question about a picture a row; families (default: all of the split) in equal shares."""
    rows = []
    for index in range(count):
        scene, row = question(index, seed, split, tuple(families) or families_of(split))
        content = [{"type": "image", "text": None}, {"type": "text", "text": row["question"]}]
        turn = {"messages": [{"role": "user", "content": content}], "images": [render(scene)], "modality": "image"}
        rows.append(turn | row)
    return rows


def visual_instructions(count: int, seed: int = 0, families: tuple[str, ...] = ()) -> list[dict]:
    """Training scenes' questions with their answers: for the visual-instruction-tuned baseline only."""
    rows = visual_questions(count, seed, "train", families)
    for row in rows:
        answer = [{"type": "text", "text": row["answer"]}]
        row["messages"] = [*row["messages"], {"role": "assistant", "content": answer}]
    return rows
