"""Scoring of short answers: normalisation, exact match, and telling captions from answers."""

import re

from .scenes import COLORS

_ARTICLES = re.compile(r"\b(?:a|an|the|at)\b")
# how a caption begins once articles are gone: "this is photo of", "image shows", "picture has"
_OPENING = re.compile(
    r"^(?:(?:this|here|there) is )?(?:this )?(?:image|picture|photo|photograph|scene|figure|diagram) (?:.{0,20} )?"
    r"(?:shows?|showing|depicts?|features?|displays?|contains?|captures?|presents?|illustrates?|is of|of|with|has)\b"
)
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
    """Whether the text describes a picture instead of answering a question, as far as its words tell.

    A caption says that it is one ("the image shows ...") or names a coloured digit ("red 7"): no question of the
    micro-world has an answer with one in it.
    """
    text = normalize_answer(prediction)
    return bool(_COLORED_DIGIT.search(text) or _OPENING.search(text))
