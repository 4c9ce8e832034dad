"""Fifteen families of questions about a scene, each with one short answer.

Every family is a function (scene, rng) -> (question, answer), or None when the scene does not allow
the question (for instance no colour that occurs once). `text_problem` makes instructions that need no
scene at all (arithmetic, comparison).
"""

import random

from .scenes import COLORS, Scene


def _about_one(shown: str, wanted: str, *asks: str):
    """A family that shows one attribute of a digit and asks for another."""

    def family(scene: Scene, rng: random.Random):
        o = rng.choice(scene.objects)
        return rng.choice(asks).format(getattr(o, shown)), str(getattr(o, wanted))

    return family


def _about_two(ask: str, answer):
    """A family that names two places; `answer` takes the digits that are there."""

    def family(scene: Scene, rng: random.Random):
        a, b = rng.sample(scene.objects, 2)
        return ask.format(a.where, b.where), answer(a.digit, b.digit)

    return family


def _about_all(answer, *asks: str):
    """A family whose answer depends on all objects."""
    return lambda scene, rng: (rng.choice(asks), str(answer(scene.objects)))


def _digit_of_color(scene: Scene, rng: random.Random):
    colors = [o.color for o in scene.objects]
    single = [o for o in scene.objects if colors.count(o.color) == 1]
    if not single:
        return None
    o = rng.choice(single)
    ask = rng.choice(("which digit is {} ?", "what is the {} digit ?"))
    return ask.format(o.color), str(o.digit)


def _count_color(scene: Scene, rng: random.Random):
    # half of the time a colour that occurs, else any colour
    present = [o.color for o in scene.objects]
    color = rng.choice(present) if rng.random() < 0.5 else rng.choice(tuple(COLORS))
    ask = rng.choice(("how many digits are {} ?", "how many {} digits are there ?"))
    return ask.format(color), str(present.count(color))


def _left_or_above(scene: Scene, rng: random.Random):
    word, axis = rng.choice((("left of", "column"), ("above", "row")))
    pairs = [
        (a, b) for a in scene.objects for b in scene.objects if a is not b and getattr(a, axis) != getattr(b, axis)
    ]
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    answer = "yes" if getattr(a, axis) < getattr(b, axis) else "no"
    return f"is the {a.digit} {word} the {b.digit} ?", answer


def _same_color(scene: Scene, rng: random.Random):
    pairs = [(a, b) for a in scene.objects for b in scene.objects if a is not b]
    same = [pair for pair in pairs if pair[0].color == pair[1].color]
    if same and rng.random() < 0.5:
        pairs = same
    a, b = rng.choice(pairs)
    return f"do the {a.digit} and the {b.digit} have the same color ?", ("yes" if a.color == b.color else "no")


FAMILIES = {
    "color_at": _about_one("where", "color", "what color is the digit at the {} ?", "what is the color at the {} ?"),
    "digit_at": _about_one("where", "digit", "which digit is at the {} ?", "what is the digit at the {} ?"),
    "place_of": _about_one("digit", "where", "where is the {} ?", "at which place is the {} ?"),
    "color_of": _about_one("digit", "color", "what color is the {} ?", "which color has the {} ?"),
    "digit_of_color": _digit_of_color,
    "count": _about_all(len, "how many digits are there ?", "what is the number of digits ?"),
    "count_color": _count_color,
    "largest": _about_all(
        lambda objects: max(o.digit for o in objects), "what is the largest digit ?", "which digit is the largest ?"
    ),
    "smallest": _about_all(
        lambda objects: min(o.digit for o in objects), "what is the smallest digit ?", "which digit is the smallest ?"
    ),
    "color_of_largest": _about_all(
        lambda objects: max(objects, key=lambda o: o.digit).color,
        "what color is the largest digit ?",
        "which color has the largest digit ?",
    ),
    "larger": _about_two(
        "is the digit at the {} larger than the digit at the {} ?", lambda a, b: "yes" if a > b else "no"
    ),
    "sum": _about_two("what is the sum of the digits at the {} and the {} ?", lambda a, b: str(a + b)),
    "difference": _about_two(
        "what is the difference of the digits at the {} and the {} ?", lambda a, b: str(abs(a - b))
    ),
    "left_or_above": _left_or_above,
    "same_color": _same_color,
}


def ask(scene: Scene, family: str, rng: random.Random) -> tuple[str, str] | None:
    """(question, answer) of `family` about `scene`, or None when the scene does not allow it."""
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    return FAMILIES[family](scene, rng)


def ask_any(scene: Scene, rng: random.Random, families: tuple[str, ...] = tuple(FAMILIES)) -> tuple[str, str, str]:
    """(family, question, answer) of a random family that the scene allows."""
    while True:
        family = rng.choice(families)
        result = ask(scene, family, rng)
        if result is not None:
            return family, *result


def text_problem(rng: random.Random) -> tuple[str, str]:
    """(question, answer) that needs no scene."""
    a, b = rng.sample(range(10), 2)
    return rng.choice(
        (
            (f"what is the sum of {a} and {b} ?", str(a + b)),
            (f"what is the difference of {a} and {b} ?", str(abs(a - b))),
            (f"is {a} larger than {b} ?", "yes" if a > b else "no"),
            (f"which is larger , {a} or {b} ?", str(max(a, b))),
            (f"which is smaller , {a} or {b} ?", str(min(a, b))),
        )
    )
