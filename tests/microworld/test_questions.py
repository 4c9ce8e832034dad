"""Every answer follows from the scene in words alone, by a second, independent computation."""

import random
import re

import pytest

from vift_microworld import FAMILIES, sample_scenes
from vift_microworld.language import scene_words
from vift_microworld.questions import ask, ask_any, text_problem

PLACE = r"(?:top|middle|bottom) (?:left|center|right)"


def read(words):
    """[(place, colour, digit)] from a description, without the project's scene classes."""
    return [(place, color, int(digit)) for place, color, digit in re.findall(rf"({PLACE}) (\w+) (\d)", words)]


def derive(family, question, words):
    objects = read(words)
    at = {place: (color, digit) for place, color, digit in objects}
    by_digit = {digit: (place, color) for place, color, digit in objects}
    places = re.findall(PLACE, question)
    numbers = [int(n) for n in re.findall(r"\d+", question)]
    colors = re.findall(r"red|green|blue|yellow|purple|white", question)
    digits = [digit for _, _, digit in objects]
    yes = {True: "yes", False: "no"}
    if family == "color_at":
        return at[places[0]][0]
    if family == "digit_at":
        return str(at[places[0]][1])
    if family == "place_of":
        return by_digit[numbers[0]][0]
    if family == "color_of":
        return by_digit[numbers[0]][1]
    if family == "digit_of_color":
        (digit,) = [d for _, c, d in objects if c == colors[0]]
        return str(digit)
    if family == "count":
        return str(len(objects))
    if family == "count_color":
        return str(sum(c == colors[0] for _, c, _ in objects))
    if family == "largest":
        return str(max(digits))
    if family == "smallest":
        return str(min(digits))
    if family == "color_of_largest":
        return by_digit[max(digits)][1]
    if family == "same_color":
        return yes[by_digit[numbers[0]][1] == by_digit[numbers[1]][1]]
    if family == "left_or_above":
        axis = ["top", "middle", "bottom"] if "above" in question else ["left", "center", "right"]
        which = 0 if "above" in question else 1
        first, second = (axis.index(by_digit[n][0].split()[which]) for n in numbers)
        return yes[first < second]
    first, second = (at[place][1] for place in places)
    if family == "larger":
        return yes[first > second]
    return str(first + second if family == "sum" else abs(first - second))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_follows_from_the_words(family):
    count = 0
    for i, scene in enumerate(sample_scenes(200, 11, "test")):
        result = ask(scene, family, random.Random(i))
        if result is not None:
            count += 1
            question, answer = result
            assert derive(family, question, scene_words(scene)) == answer
    assert count > 100


def test_there_are_at_least_ten_families_and_unknown_ones_are_refused():
    assert len(FAMILIES) >= 10
    scene = sample_scenes(1, 0, "test")[0]
    with pytest.raises(ValueError, match="family must be one of"):
        ask(scene, "shape_of", random.Random(0))
    assert ask_any(scene, random.Random(0), ("count",))[0] == "count"


def test_problems_without_a_scene_are_right():
    for i in range(300):
        question, answer = text_problem(random.Random(i))
        a, b = (int(n) for n in re.findall(r"\d+", question))
        expected = {
            "sum": str(a + b),
            "difference": str(abs(a - b)),
            "is": "yes" if a > b else "no",
            "larger": str(max(a, b)),
            "smaller": str(min(a, b)),
        }
        words = question.split()
        kind = "is" if words[0] == "is" else next(w for w in words if w in expected and w != "is")
        assert answer == expected[kind]
