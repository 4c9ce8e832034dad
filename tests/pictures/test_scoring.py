"""What counts as an answer, and that a caption does not."""

import random

import pytest

from vift_pictures.language import captions
from vift_pictures.questions import FAMILIES, ask
from vift_pictures.scoring import is_caption, is_right

NAMING = ("name", "at_place", "which_is", "bigger")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_caption_is_no_answer_and_an_answer_is_none(family, made_up):
    rng = random.Random(family)
    for _ in range(60):
        scene, question, answers = ask(family, rng, "test")
        for answer in answers:
            said = [answer, answer.upper() + ".", f"<|im_end|>{answer}"]
            said += [] if answer in ("yes", "no") else [f"It is {answer}."]
            for one in said:
                assert is_right(one, answers, family, question) and not is_caption(one, answers, question), (
                    one,
                    question,
                )
        for said in captions(scene, rng, "detailed"):
            assert is_caption(said, answers, question) and not is_right(said, answers, family, question), (
                said,
                question,
            )
        for said in captions(scene, rng, "web"):
            if family not in NAMING or any(word in said.lower() for word in ("clipart", "free", "photo", "picture")):
                assert not is_right(said, answers, family, question), (said, question)


@pytest.mark.parametrize(
    "said, answers, family, right",
    [
        ("lima", ["Lima"], "capital", True),
        ("The capital of Peru is Lima.", ["Lima"], "capital", True),
        ("Brasília", ["Brasilia"], "capital", True),
        ("Lima or Quito", ["Lima"], "capital", False),
        ("It is not Lima.", ["Lima"], "capital", False),
        ("The flag of Peru", ["Lima"], "capital", False),
        ("Mexico City", ["Mexico City"], "capital", True),
        ("Four legs", ["4"], "legs", True),
        ("It has 4 or 6 legs", ["4"], "legs", False),
        ("Cutting paper", ["cut paper", "cutting"], "use", True),
        ("It is used for writing letters.", ["write", "writing"], "use", True),
        ("a light bulb", ["give light", "light"], "use", False),
        ("tropical fish", ["fish"], "class", False),
        ("left", ["left"], "place", True),
        ("top left", ["left"], "place", False),
        ("left", ["top left"], "place", False),
        ("on the left or on the right", ["left"], "place", False),
        ("A dog on the left and a cat on the right", ["left"], "place", False),
        ("3 dogs", ["three", "3"], "count", True),
        ("three dogs and a cat", ["three", "3"], "count", False),
        ("Yes, there is.", ["yes"], "present", True),
        ("Yes and no", ["yes"], "present", False),
        ("No", ["yes"], "present", False),
        ("zebras", ["zebra"], "name", True),
        ("a zebra and a dog", ["zebra"], "name", False),
        ("The whale is bigger than the mouse.", ["whale"], "bigger", True),
        ("dove", ["animal"], "category", False),
        ("moo moo", ["moo"], "sound", True),
        ("", ["moo"], "sound", False),
        ("well " * 30 + "moo", ["moo"], "sound", False),
    ],
)
def test_scoring_is_lenient_to_form_and_strict_to_content(said, answers, family, right):
    assert is_right(said, answers, family, "How many dogs are in the picture?" if family == "count" else "") == right


@pytest.mark.parametrize(
    "said, caption",
    [("A zebra on a blue background", True), ("This is a picture of a zebra", True), ("zebras", True),
     ("Flag of Peru", True), ("zebra, dog and two cats", True), ("cute zebra clipart", True), ("Lima", False),
     ("the savanna", False), ("Yes", False), ("They are used to cut paper.", False), ("orange", False),
     ("The capital of Peru is Lima.", False)],
)  # fmt: skip
def test_captions_are_told_from_answers(said, caption):
    assert is_caption(said) == caption
