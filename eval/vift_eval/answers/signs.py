"""Signs that an answer went wrong, from its text alone (docs: model card, "Signs of a wrong setting").

    caption   a description of the picture instead of an answer: beta too small
    repeats   the same few words again and again: beta too large
    refusal   the model says that it cannot: alpha too small, the image is lost
    empty     nothing was said

Rules of thumb for curves over many answers, not a judgement of one.
"""

import re

from vift_microworld import is_caption

_CAPTION = re.compile(
    r"^(?:the|this|an?)?\s*(?:image|picture|photo|photograph|figure|diagram)\b.{0,20}?\b"
    r"(?:shows?|showing|depicts?|features?|displays?|contains?|captures?|presents?|illustrates?|is of|has)\b"
)
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) sorry|(?:i|we) (?:cannot|can't|can not|am unable|'m unable|do not have|don't have)|"
    r"unable to (?:see|view|answer|provide|assist)|as an ai|"
    r"no image (?:is |was )?(?:provided|given|attached|visible))\b"
)
SIGNS = ("caption", "repeats", "refusal", "empty")
PERIOD = 8  # words; the longest phrase whose repetition counts
TIMES = 4  # in a row


def failures(text: str) -> set[str]:
    """The signs that `text` shows, of `SIGNS`."""
    plain = text.strip().lower().replace("’", "'")
    if not plain:
        return {"empty"}
    found = set()
    if _CAPTION.match(plain) or is_caption(plain):
        found.add("caption")
    if _REFUSAL.search(plain):
        found.add("refusal")
    if repeats(plain):
        found.add("repeats")
    return found


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
