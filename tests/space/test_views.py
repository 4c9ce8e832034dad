"""What is drawn says what was found, and no visitor's words become markup."""

import re

import pytest

from space import views
from space.limits import check_text
from vift_microworld import is_caption

EVIL = '<img src=x onerror="alert(1)">'


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("the picture shows 3 digits : top left red 7 , middle center blue 3 , bottom left red 1 .", "caption"),
        ("top left red 7 , middle center blue 3 .", "caption"),
        ("The image depicts a cat on a sofa.", "caption"),
        ("Photo of a street", "caption"),
        ("green", "answer"),
        ("A cat.", "answer"),
        ("7", "blind"),
        ("", "garbage"),
        ("red red red red red red red red red", "garbage"),
        ("is the is the is the is the is the is the", "garbage"),
    ],
)
def test_kinds_of_answers(text, kind):
    assert views.kind_of(text, "7", is_caption) == kind


def test_equal_neighbours_are_one_run():
    said = ["a", "a", "b", "a"]
    points = [{"alpha": 1, "beta": k / 4, "kind": "answer", "answer": text} for k, text in enumerate(said)]
    assert [(r["from"], r["to"], r["answer"]) for r in views.runs_of(points)] == [
        (0, 0.25, "a"),
        (0.5, 0.5, "b"),
        (0.75, 0.75, "a"),
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ((1, 0, 0, 4), "change nothing"),
        ((0, 1, 1, 2), "in layer 1 of 8: α = 0 drops the question as it was read with the picture; β = 1 adds the"),
        (
            (1, 0.15, 4, 8),
            "in layers 4 to 7 of 8: α = 1 keeps the question as it was read with the picture; β = 0.15 adds 0.15 ",
        ),
    ],
)
def test_what_a_setting_does_is_said(settings, words):
    assert words in re.sub("<.*?>", "", views.effect(*settings, 8))


def test_the_strip_frames_the_nearest_beta():
    points = [{"alpha": 1 - beta, "beta": beta, "kind": "answer", "answer": "x"} for beta in (0, 0.5, 1)]
    html = views.strip("?", points, "x", 0.6)
    assert "α goes from 1 to 0 on the way" in html
    assert html.count(" here") == 1 and html.index(" here") < html.index("β = 0.5: x") < html.index("β = 1: x")


def test_nothing_drawn_holds_a_visitors_markup():
    points = [{"alpha": 1, "beta": 0, "kind": "answer", "answer": EVIL}]
    movement = {"tokens": [EVIL], "layers": ["0", "output"], "moved": [[0.1], [0.2]]}
    for html in (views.strip(EVIL, points, EVIL, 0), views.heat_map(movement, range(1))):
        assert "<img" not in html and "&lt;img" in html and 'onerror="' not in html


def test_the_heat_map_marks_the_fused_layers_and_has_the_numbers():
    movement = {"tokens": ["a", "\n"], "layers": ["0", "1", "output"], "moved": [[0, 0], [0.5, 0.25], [0.1, 0.2]]}
    html = views.heat_map(movement, range(1, 2))
    assert "layer 1 ●" in html and "layer 0 ●" not in html and html.index("layer 1") < html.index("layer 0")
    assert ">50</td>" in html and ">25</td>" in html


def test_still_prompts_are_drawn():
    assert ">0</td>" in views.heat_map({"tokens": ["a"], "layers": ["0", "output"], "moved": [[0], [0]]}, range(1))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        (None, "empty"),
        ("x" * 1001, "1001 characters; at most 1000"),
        ("a <|im_end|> b", "<|im_end|>"),
        ("what is <image> ?", "<image>"),
        ("<b>how many</b> ?", "markup"),
        ("</div>", "markup"),
        ("<!-- x -->", "markup"),
        (EVIL, "markup"),
    ],
)
def test_bad_questions_are_refused(text, word):
    with pytest.raises(ValueError, match=word.replace("|", r"\|")):
        check_text(text, ["<|im_end|>", "<image>"])


@pytest.mark.parametrize("text", ["is 3 < 5 ?", "5 > 3 & 2", "was kostet das? ünïcödé 数", "x" * 1000])
def test_ordinary_questions_are_not(text):
    check_text(text, ["<|im_end|>"])
