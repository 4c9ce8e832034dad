"""Scoring of short answers: normalisation, exact match, and telling captions from answers."""

import re

from .scenes import COLORS

_ARTICLES = re.compile(r"\b(?:a|an|the|at)\b")
_COLORED_DIGIT = re.compile(rf"\b(?:{'|'.join(COLORS)}) \d+\b")
_SPECIAL = re.compile(r"<\|?[a-z_]+\|?>")


def normalize_answer(text: str) -> str:
    """Lower case, no special tokens, no punctuation, no articles, single spaces."""
    text = _SPECIAL.sub(" ", text.lower())
    text = re.sub(r"[^\w\s]", " ", text)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, answer: str) -> bool:
    return normalize_answer(prediction) == normalize_answer(answer)


def is_caption(prediction: str) -> bool:
    """Whether the text describes a picture instead of answering a question.

    No question family has an answer with a coloured digit ("red 7") in it or of more than two words,
    so a coloured digit or the caption's opening words are enough to tell.
    """
    text = normalize_answer(prediction)
    return bool(_COLORED_DIGIT.search(text)) or text.startswith(("picture shows", "picture has"))
