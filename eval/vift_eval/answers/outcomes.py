"""What became of an answer: one of six outcomes against the right answer, and signs of failure in its text alone.

The signs (docs: model card, "Signs of a wrong setting") are rules of thumb for curves over many answers:

    caption   a description of the picture instead of an answer: beta too small
    repeats   the same few words again and again: beta too large
    refusal   the model says that it cannot: alpha too small, the image is lost
    empty     nothing was said
"""

import re

import numpy as np

from vift_microworld import exact_match, is_caption, normalize_answer
from vift_microworld.scenes import COLORS, PLACES

from .bootstrap import interval

OUTCOMES = {
    "right": "right",
    "wrong": "wrong, of the right kind",
    "wrong_kind": "of the wrong kind (a colour for a number)",
    "caption": "a caption",
    "garbage": "garbage: no answer of any kind",
    "empty": "empty",
}
KINDS = {
    "color": set(COLORS),
    "place": {normalize_answer(place) for place in PLACES},
    "number": {str(n) for n in range(20)},
    "truth": {"yes", "no"},
}
SIGNS = ("caption", "repeats", "refusal", "empty")
PERIOD = 8  # words; the longest phrase whose repetition counts
TIMES = 4  # in a row
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) sorry|(?:i|we) (?:cannot|can't|can not|am unable|'m unable|do not have|don't have)|"
    r"unable to (?:see|view|answer|provide|assist)|as an ai|"
    r"no image (?:is |was )?(?:provided|given|attached|visible))\b"
)


def kind(answer: str) -> str | None:
    """The kind of a short answer, of `KINDS`; None for what is no answer of any kind."""
    return next((name for name, words in KINDS.items() if normalize_answer(answer) in words), None)


def outcome(prediction: str, answer: str) -> str:
    """One of `OUTCOMES`."""
    if exact_match(prediction, answer):
        return "right"
    if not normalize_answer(prediction):
        return "empty"
    if is_caption(prediction):
        return "caption"
    if kind(prediction) is None:
        return "garbage"
    return "wrong" if kind(prediction) == kind(answer) else "wrong_kind"


def correct(predictions: list[str], questions) -> np.ndarray:
    """1 for each exact match with the question's answer, else 0."""
    return np.array([exact_match(p, a) for p, a in zip(predictions, list(questions["answer"]))], dtype=float)


def summarize(marks: list[tuple[bool, bool]]) -> dict:
    """{"accuracy", "ci95", "caption_rate"} of answers, each (is right, is a caption)."""
    hits, captions = np.array(marks, dtype=float).T
    return {
        "accuracy": round(float(hits.mean()), 4),
        "ci95": interval(hits),
        "caption_rate": round(float(captions.mean()), 4),
    }


def signs(text: str) -> set[str]:
    """The signs of failure that `text` shows, of `SIGNS`."""
    plain = text.strip().lower().replace("’", "'")
    if not plain:
        return {"empty"}
    shown = {"caption": is_caption(plain), "refusal": bool(_REFUSAL.search(plain)), "repeats": repeats(plain)}
    return {sign for sign, is_shown in shown.items() if is_shown}


def repeats(text: str) -> bool:
    """Whether a phrase of at most `PERIOD` words comes `TIMES` times in a row (or one character 20 times)."""
    if re.search(r"([^\s\d.\-_=])\1{19}", text):
        return True
    words = text.split()
    for period in range(1, PERIOD + 1):
        run = 0
        for first, second in zip(words, words[period:]):
            run = run + 1 if first == second else 0
            if run >= period * (TIMES - 1):
                return True
    return False
