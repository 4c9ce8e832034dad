"""The micro-world's data sets, as `datasets.Dataset`s with documented features.

Training rows (`TRAINING_FEATURES`):

    messages   chat turns, each {"role", "content": [{"type": "image" | "text", "text"}]}
    images     list of pictures (48 x 48 PNG), [] for a text-only row
    modality   "image" or "text"

Question rows (`QUESTION_FEATURES`) have the same three columns, with the user turn only, and

    id          "split/seed/index"
    family      one of questions.FAMILIES
    question    the words of the question
    answer      the short answer, scored by `scoring.exact_match`
    scene_text  the scene in words, as the condition oracle_text shows it

What may be trained on: `web_captions` (stage 1), `detailed_captions` and `text_instructions`
(stage 2). `visual_questions` are for evaluation only; `visual_instructions` are the same questions
with their answers, for the visual-instruction-tuned baseline only.
"""

import io
import random

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from . import language, questions
from .scenes import Scene, render, sample_scenes

_CONTENT = List({"type": Value("string"), "text": Value("string")})
TRAINING_FEATURES = Features(
    {
        "messages": List({"role": Value("string"), "content": _CONTENT}),
        "images": List(Image()),
        "modality": Value("string"),
    }
)
QUESTION_FEATURES = Features(
    {
        **TRAINING_FEATURES,
        "id": Value("string"),
        "family": Value("string"),
        "question": Value("string"),
        "answer": Value("string"),
        "scene_text": Value("string"),
    }
)
# Share of stage-2 captions given without any query, as plain image-caption pairs are.
NO_QUERY_SHARE = 0.5
# Share of the turns of a text conversation that ask for a description of the scene in words.
TEXT_CAPTION_SHARE = 0.1


def _rng(seed: int, split: str, purpose: str, index: int) -> random.Random:
    return random.Random(f"{seed}/{split}/{purpose}/{index}")


def encode_pictures(scenes: list[Scene]) -> list[dict]:
    """PNG bytes of the rendered scenes, in the form the `Image` feature stores."""
    encoded = []
    for picture in render(scenes):
        buffer = io.BytesIO()
        PILImage.fromarray(picture).save(buffer, format="PNG", compress_level=1)
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    return encoded


def user_turn(text: str | None, image: bool) -> dict:
    content = [{"type": "image", "text": None}] if image else []
    if text:
        content.append({"type": "text", "text": text})
    return {"role": "user", "content": content}


def assistant_turn(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def _training_dataset(rows: list[list[dict]], scenes: list[Scene] | None) -> Dataset:
    columns = {
        "messages": rows,
        "images": [[p] for p in encode_pictures(scenes)] if scenes else [[] for _ in rows],
        "modality": ["image" if scenes else "text"] * len(rows),
    }
    return Dataset.from_dict(columns, features=TRAINING_FEATURES)


def web_captions(
    count: int, seed: int = 0, split: str = "train", no_query_share: float = 0.0, queries: tuple[str, ...] = ("web",)
) -> Dataset:
    """Stage 1: short, partial, slightly noisy captions; `queries` name `language.QUERY_POOLS`."""
    return _captions(count, seed, split, "web", no_query_share, queries)


def detailed_captions(count: int, seed: int = 0, split: str = "train", no_query_share: float = NO_QUERY_SHARE,
                      queries: tuple[str, ...] = ("caption", "asking", "naming")) -> Dataset:  # fmt: skip
    """Stage 2: complete captions; `queries` name `language.QUERY_POOLS`; all but "web" ask for the whole caption."""
    return _captions(count, seed, split, "detailed", no_query_share, queries)


def _captions(count: int, seed: int, split: str, kind: str, no_query_share: float, queries) -> Dataset:
    scenes = sample_scenes(count, seed, split, kind)
    rows = []
    for i, scene in enumerate(scenes):
        rng = _rng(seed, split, kind, i)
        query = None
        if rng.random() >= no_query_share:
            query = language.caption_query(scene, rng, tuple(queries))
        web = kind == "web" or query == language.WEB_QUERY  # which asks for a caption as the web has them
        caption = language.web_caption(scene, rng) if web else language.caption_for(scene, query)
        rows.append([user_turn(query, image=True), assistant_turn(caption)])
    return _training_dataset(rows, scenes)


def text_conversation(scene: Scene, rng: random.Random, turns: int = 1) -> list[dict]:
    """A text-only conversation of `turns` questions; the first user turn shows the scene in words.

    One conversation in twelve needs no scene (arithmetic and comparison).
    """
    messages = []
    with_scene = rng.random() >= 1 / 12
    for turn in range(turns):
        if not with_scene:
            question, answer = questions.text_problem(rng)
        elif rng.random() < TEXT_CAPTION_SHARE:
            question = rng.choice((*language.CAPTION_QUERIES, language.WEB_QUERY))
            answer = language.caption_for(scene, question)
            if question == language.WEB_QUERY:
                answer = language.web_caption(scene, rng)
        else:
            _, question, answer = questions.ask_any(scene, rng)
        if with_scene and turn == 0:
            question = f"{language.scene_words(scene)} {question}"
        messages += [user_turn(question, image=False), assistant_turn(answer)]
    return messages


def text_instructions(count: int, seed: int = 0, split: str = "train", turns: int = 1) -> Dataset:
    """Stage 2 (and phase 0, with several turns): instructions about scenes described in words."""
    scenes = sample_scenes(count, seed, split, "text")
    rows = [text_conversation(scene, _rng(seed, split, "text", i), turns) for i, scene in enumerate(scenes)]
    return _training_dataset(rows, None)


def _questions(count: int, seed: int, split: str, purpose: str, families=None) -> dict[str, list]:
    families = tuple(questions.FAMILIES if families is None else families)
    if not families or (unknown := set(families) - set(questions.FAMILIES)):
        named = f"{sorted(unknown)[0]!r} is unknown" if families else "none is given"
        raise ValueError(f"families must be one or more of {', '.join(questions.FAMILIES)}; {named}")
    scenes = sample_scenes(count, seed, split, purpose)
    columns: dict[str, list] = {name: [] for name in QUESTION_FEATURES}
    for i, scene in enumerate(scenes):
        rng = _rng(seed, split, purpose, i)
        family = families[i % len(families)]  # families take turns; a scene may not allow one
        pair = questions.ask(scene, family, rng)
        if pair is None:
            if all(questions.ask(scene, name, _rng(seed, split, purpose, i)) is None for name in families):
                raise ValueError(f"families={families} allow no question about scene {i}: name one more")
            family, *pair = questions.ask_any(scene, rng, families)
        question, answer = pair
        row = {"messages": [user_turn(question, image=True)], "modality": "image", "id": f"{split}/{seed}/{i}"}
        row |= {"family": family, "question": question, "answer": answer, "scene_text": language.scene_words(scene)}
        for name, value in row.items():
            columns[name].append(value)
    columns["images"] = [[picture] for picture in encode_pictures(scenes)]
    return columns


def visual_questions(count: int, seed: int = 0, split: str = "test") -> Dataset:
    """Evaluation only: one question about one picture a row, families in equal shares."""
    return Dataset.from_dict(_questions(count, seed, split, "questions"), features=QUESTION_FEATURES)


def visual_instructions(count: int, seed: int = 0, split: str = "train", families=None) -> Dataset:
    """Visual questions with their answers: training set of the instruction-tuned baseline only.

    `families` (of `questions.FAMILIES`, all when None) may leave some out, to be asked about without training.
    """
    columns = _questions(count, seed, split, "instructions", families)
    for messages, answer in zip(columns["messages"], columns["answer"]):
        messages.append(assistant_turn(answer))
    return Dataset.from_dict(columns, features=QUESTION_FEATURES)
