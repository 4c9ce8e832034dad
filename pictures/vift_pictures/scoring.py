"""Scoring of short answers, and telling captions from answers."""

import re
import unicodedata
from functools import cache

from .facts import FACTS, KIND_OF
from .language import _PLURALS, NUMBERS, plural
from .scenes import COLORS, PLACES, TEXTURES

_SPECIAL = re.compile(r"<\|?[a-z_/]+\|?>")
_OPENING = re.compile(
    r"^(?:(?:this|here|there|it) is )?(?:this |cute |simple )?"
    r"(?:image|picture|photo|photograph|scene|drawing|icon|illustration) "
    r"(?:.{0,20} )?(?:show|depict|feature|display|contain|capture|present|illustrate|is of|of|with|ha)\b"
)
_WEB = re.compile(r"^cute\b|\b(?:clipart|icon|free image|emoji|illustration)$")
_ON_BACKGROUND = re.compile(rf"\b(?:on|against) (?:[a-z]+ ){{0,2}}(?:{'|'.join(COLORS)}) (?:[a-z]+ )?background\b")
_AT = re.compile(r"\b(?:on|at|in) (?:(?:top|bottom) (?:left|right)|top|bottom|left|right|center)\b")
_DIGITS = {word: str(number) for number, word in enumerate(
    "zero one two three four five six seven eight nine ten".split())}  # fmt: skip
_IRREGULAR = {many: one for one, many in _PLURALS.items() if " " not in one and many != one}
_NEGATIONS = {"not", "isnt", "arent", "doesnt", "dont", "never", "cannot", "cant"}
_FILLER = {*"on at in and of with is are there here this it image picture photo photograph drawing icon clipart free "
           "cute simple background emoji illustration various".split(), *COLORS, *TEXTURES, *" ".join(PLACES).split(),
           *map(str, range(11)), *NUMBERS, "show", "flag"}  # fmt: skip
_NAMING = {"name", "at_place", "which_is", "bigger"}
_CLOSED = {"capital", "continent", "language", "category", "class", "legs", "color", "travels", "young", "sound"}
MOST_WORDS = 20


def _singular(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("shes", "ches", "xes", "sses", "oes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and len(word) > 3 and word[-2] not in "sui" else word


@cache
def normalize_answer(text: str) -> str:
    """Lower case; no accents, special tokens, punctuation or articles; digits for numbers, singular for plural."""
    text = unicodedata.normalize("NFKD", _SPECIAL.sub(" ", text.lower()).replace("’", "'").replace("'", ""))
    text = "".join(one for one in text if not unicodedata.combining(one))
    words = re.sub(r"[^\w\s]|_", " ", text).split()
    return " ".join(_DIGITS.get(word, _singular(word)) for word in words if word not in ("a", "an", "the"))


def _stem(text: str) -> str:
    """Verb forms made alike: "cutting" and "cut", "writing" and "write"."""
    words = [
        re.sub(r"(.)\1$", r"\1", word[:-3]) if word.endswith("ing") and len(word) > 5 else word
        for word in text.split()
    ]
    return " ".join(word[:-1] if word.endswith("e") and len(word) > 3 else word for word in words)


def _holds(text: str, phrase: str) -> bool:
    return f" {phrase} " in f" {text} "


@cache
def _concept_names() -> tuple[str, ...]:
    """Normalised, longest first."""
    names = {normalize_answer(form(name.removeprefix("flag of "))) for name in KIND_OF for form in (str, plural)}
    return tuple(sorted(names - set(COLORS), key=len, reverse=True))


def exact_match(prediction: str, answer: str) -> bool:
    return normalize_answer(prediction) == normalize_answer(answer)


def is_caption(prediction: str, answers: tuple[str, ...] | list[str] = (), question: str = "") -> bool:
    """Whether the text describes a picture instead of answering.

    A caption says that it is one ("the image shows ..."), tells the background or two places, or is nothing but names
    of things that stand neither in `answers` nor in `question`, with counts, places and words as "icon" around them.
    """
    text, asked = normalize_answer(prediction), normalize_answer(question)
    accepted = {normalize_answer(answer) for answer in answers}
    if text in accepted:
        return False
    if _OPENING.search(text) or _WEB.search(text) or _ON_BACKGROUND.search(text) or len(set(_AT.findall(text))) > 1:
        return True
    rest, named = f" {text} ", []
    for name in _concept_names():
        if f" {name} " in rest:
            rest = rest.replace(f" {name} ", "  ")
            named.append(name)
    strange = [name for name in named if name not in accepted and not _holds(asked, name)]
    return bool(strange) and set(rest.split()) <= _FILLER


@cache
def _rivals(family: str) -> frozenset[str]:
    """Normalised answers of which a prediction may hold only accepted ones."""
    if family in _NAMING:
        return frozenset(_concept_names())
    if family in _CLOSED:
        return frozenset(normalize_answer(one) for answers in FACTS[family].values() for one in answers)
    closed = {"place": PLACES, "background": COLORS, "count": map(str, range(11))}.get(family, ())
    return frozenset(map(normalize_answer, closed))


def is_right(prediction: str, answers: tuple[str, ...] | list[str], family: str, question: str = "") -> bool:
    """Whether a short answer is right: case, articles, plurals, verb forms and a sentence around it do not matter.

    A caption is no answer, nor is a text of more than `MOST_WORDS` words, one that denies, or one that also holds
    another answer of a family whose answers exclude each other ("left or right", "Lima or Quito").
    """
    text = normalize_answer(prediction).split(" than ")[0]
    accepted = [normalize_answer(answer) for answer in answers]
    if text in accepted:
        return True
    words = text.split()
    if not words or len(words) > MOST_WORDS or is_caption(prediction, answers, question):
        return False
    if set(accepted) <= {"yes", "no"}:
        return words[0] == accepted[0] and not {"yes", "no"} - {accepted[0]} & set(words)
    if set(words) & _NEGATIONS:
        return False
    stems = _stem(text)
    right = [answer for answer in accepted if _holds(stems, _stem(answer))]
    if not right:
        return False
    rest = f" {text} "
    for phrase in sorted({*accepted, *(one for one in _rivals(family))}, key=len, reverse=True):
        if f" {phrase} " in rest:
            if phrase not in accepted and not _holds(" ".join(accepted), phrase):
                return False
            rest = rest.replace(f" {phrase} ", "  ")
    return True
