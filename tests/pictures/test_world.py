"""What the world holds: facts, splits, captions, instructions, questions."""

import random
import re
from collections import Counter
from importlib.util import find_spec

import pytest
from PIL import Image

from vift_pictures import concepts, language, scenes
from vift_pictures.data import (
    text_instructions,
    visual_instructions,
    visual_questions,
)
from vift_pictures.facts import FACTS, KIND_OF, KINDS, SIZES
from vift_pictures.language import article, at, plural
from vift_pictures.prompts import PROMPTS, chat, tells_held_out_fact
from vift_pictures.questions import FAMILIES, SHOWN, TWO_HOPS, ask, taught

NAMES = [name for names in SIZES for name in names]


def test_facts_are_many_and_each_is_about_a_concept_with_a_drawing():
    assert len(FACTS) >= 8 and sum(map(len, FACTS.values())) >= 400
    assert {name for facts in FACTS.values() for name in facts} | set(NAMES) <= KIND_OF.keys()
    assert len(NAMES) == len(set(NAMES)) and len(KIND_OF) == len({n for names in KINDS.values() for n in names})
    assert all(answer == answer.strip() != "" for facts in FACTS.values() for a in facts.values() for answer in a)


@pytest.mark.parametrize(
    "relation, name, answer",
    [("capital", "flag of Peru", "Lima"), ("continent", "flag of Kenya", "Africa"), ("sound", "cow", "moo"),
     ("habitat", "camel", "desert"), ("diet", "panda", "bamboo"), ("legs", "spider", "8"), ("young", "dog", "puppy"),
     ("color", "banana", "yellow"), ("class", "bat", "mammal"), ("travels", "train", "rails"),
     ("language", "flag of Iran", "Persian"), ("found", "bathtub", "bathroom"), ("use", "scissors", "cut paper"),
     ("category", "violin", "musical instrument")],
)  # fmt: skip
def test_facts_are_right(relation, name, answer):
    assert FACTS[relation][name][0] == answer


@pytest.mark.skipif(not find_spec("emoji") or not find_spec("resvg_py"), reason="needs vift[pictures]")
@pytest.mark.parametrize("style, module", [(style, package[0]) for style, package in concepts.STYLES.items()])
def test_every_concept_has_its_drawings_in_both_styles(style, module):
    if not find_spec(module):
        pytest.skip(f"needs {module}")
    known = concepts.concepts()
    assert known.keys() == KIND_OF.keys() and len(known) > 500
    sizes = [max(concepts.drawing(points, style).size) for one in known.values() for points in one.drawings]
    assert set(sizes) == {concepts.DRAWING_SIZE}
    shown = [points for one in known.values() for points in one.drawings]
    assert len(shown) == len(set(shown))  # no drawing has two names


def test_a_missing_package_is_one_line_that_names_it(monkeypatch):
    concepts.drawing.cache_clear(), concepts.concepts.cache_clear()
    monkeypatch.setattr(concepts, "find_spec", lambda name: None)
    for call in (lambda: concepts.drawing("1F993"), concepts.concepts, lambda: concepts.drawing("1F993", "openmoji")):
        with pytest.raises(ValueError, match=r"^package [\w-]+ is not installed.*pip install 'vift\[pictures\]'$"):
            call()
    with pytest.raises(ValueError, match="style must be one of twemoji, openmoji, got 'noto'"):
        concepts.drawing("1F993", "noto")


def test_no_layout_of_an_evaluation_scene_was_trained_on(made_up):
    rng = random.Random(0)
    for split, wanted in {
        "train": "train",
        "validation": "validation",
        "test": "test",
        "style": "test",
        "facts": "test",
    }.items():
        for scene in scenes.sample_scenes(300, split=split):
            places = tuple(thing.place for thing in scene.things)
            sizes = {s for p, some in scenes.LAYOUTS[len(places)] if p == places for s in some}
            could = {s for s in sizes if all(0.91 * s <= thing.size <= s for thing in scene.things)}
            assert wanted in {scenes.split_of(places, s, scene.color, scene.texture) for s in could}
            assert scene.style == ("openmoji" if split == "style" else "twemoji")
    with pytest.raises(ValueError, match="split must be one of .*, got 'dev'"):
        scenes.sample_scenes(1, split="dev")
    with pytest.raises(ValueError, match="one to four, got 5"):
        scenes.compose(rng, "train", ["dog"] * 5)


def test_same_seed_same_bytes_and_things_lie_where_the_words_say(made_up):
    some = scenes.sample_scenes(60, seed=3)
    assert some[:20] == scenes.sample_scenes(20, seed=3) != scenes.sample_scenes(20, seed=4)
    assert scenes.render(some[0]).tobytes() == scenes.render(some[0]).tobytes()
    assert {len(scene.things) for scene in some} == {1, 2, 3, 4}
    for scene in some:
        picture, empty = (
            scenes.render(one) for one in (scene, scenes.Scene((), scene.color, scene.texture, seed=scene.seed))
        )
        assert picture.size == (224, 224)
        for thing in scene.things:
            assert picture.getpixel((thing.x, thing.y)) == concepts.drawing(thing.points).getpixel((8, 8))[:3]
            assert picture.getpixel((thing.x, thing.y)) != empty.getpixel((thing.x, thing.y))
            assert ("left" in thing.place) == (thing.x < 80) and ("bottom" in thing.place) == (thing.y > 144)
            assert thing.size // 2 - 8 <= min(thing.x, thing.y) and max(thing.x, thing.y) <= 232 - thing.size // 2


def test_a_drawing_of_the_background_s_color_is_still_seen(made_up, monkeypatch):
    for color, rgb in scenes.COLORS.items():
        monkeypatch.setattr(
            concepts, "drawing", lambda points, style, rgb=rgb: Image.new("RGBA", (60, 60), (*rgb, 255))
        )
        thing = scenes.Thing("tree", "tree", "center", 112, 112, 60, 0)
        picture = scenes.render(scenes.Scene((thing,), color, "plain"))
        assert sum(abs(a - b) for a, b in zip(picture.getpixel((80, 112)), rgb)) > 90, color


def test_captions_say_what_there_is(made_up):
    rng = random.Random(0)
    for scene in scenes.sample_scenes(200):
        for said in language.captions(scene, rng, "detailed"):
            assert all(name.removeprefix("flag of ") in said or plural(name) in said for name in scene.counts)
            assert f"{scene.texture} {scene.color} background" in said
            assert all(at(thing.place) in said for thing in scene.things)
        web = language.captions(scene, rng, "web")
        assert len(web) == len(set(web)) and all(len(said.split()) < 25 for said in web)
        assert not any(re.search(r"\b(two|three|four)\b", said) for said in web if "four leaf" not in said)
    assert len({len(language.captions(scene, rng, "web")) for scene in scenes.sample_scenes(30)} & {3, 4}) >= 1
    assert (
        article("owl") == "an owl"
        and article("unicorn") == "a unicorn"
        and plural("box wolf")
        and plural("wolf") == "wolves"
    )
    assert article("flag of Netherlands") == "the flag of the Netherlands" and plural("strawberry") == "strawberries"


def test_there_are_ten_families_and_more_half_of_them_in_two_hops(made_up):
    assert len(FAMILIES) >= 10 and len(TWO_HOPS) * 2 >= len(FAMILIES)
    rows = visual_questions(len(FAMILIES) * 3)
    assert Counter(row["family"] for row in rows) == dict.fromkeys(FAMILIES, 3)
    assert {row["hops"] for row in rows} == {1, 2} and all(row["images"][0].size == (224, 224) for row in rows)
    assert [row["question"] for row in rows[:5]] == [row["question"] for row in visual_questions(5)]
    assert all(row["family"] in TWO_HOPS for row in visual_questions(30, split="facts"))
    assert visual_instructions(3)[0]["messages"][-1]["role"] == "assistant"
    with pytest.raises(ValueError, match="family must be one of .* for split 'facts', got 'count'"):
        visual_questions(1, split="facts", families=("count",))


def test_answers_follow_from_the_scene_in_words(made_up):
    rng, yes = random.Random(1), Counter()
    for _ in range(150):
        scene, question, answers = ask("place", rng, "test")
        asked = question.rpartition(" is ")[2].removesuffix("?").removeprefix("the ")
        assert f"{asked} {at(answers[0])}" in language.scene_words(scene)
        scene, question, answers = ask("count", rng, "test")
        assert int(answers[1]) in (len(scene.things), *scene.counts.values()) and len(scene.counts) > 1
        scene, question, answers = ask("present", rng, "test")
        name = re.search(r"Is (.*?) (?:in the picture|in this image|shown here)\?", question)[1]
        assert (name in [article(one) for one in scene.counts]) == (answers == ("yes",))
        yes[answers[0]] += 1
        scene, question, answers = ask("background", rng, "test")
        assert answers[0] == scene.color
    assert 50 < yes["yes"] < 100


def test_held_out_facts_stand_in_no_instruction_and_are_what_the_split_facts_asks(made_up):
    held = [name for name in KIND_OF if concepts.held_out(name)]
    assert 60 < len(held) < 160
    captioned = {thing.name for scene in scenes.sample_scenes(3000) for thing in scene.things}
    assert set(held) <= captioned
    for relation in FACTS:
        assert set(taught(relation, "facts")) <= set(held) and set(held).isdisjoint(taught(relation, "train"))
        assert taught(relation, "facts")
    one_hop = re.compile(
        r"of the scene|^(?:There is.*\s)?How many (?!legs)|Which (?:thing|country) (?:is|has the flag)"
    )
    words = {word.lower() for facts in FACTS.values() for answers in facts.values() for word in answers} | {"turkey"}
    for row in text_instructions(6000):
        text = f"{row['instruction']} {row['output']}".lower()
        if "There is" not in row["instruction"]:
            assert set(held).isdisjoint(named(text) - words), row
        elif not one_hop.search(row["instruction"]):
            things = [
                name
                for name in held
                if re.search(rf"{re.escape(article(name))} (?:at|on|in) the ", row["instruction"])
            ]
            told = [
                n for n in things for r in FACTS for a in FACTS[r].get(n, ())[:1] if a.lower() == plain(row["output"])
            ]
            assert not told, row


def plain(answer: str) -> str:
    return re.sub(r"^(?:it is |the )?(?:an? )?", "", answer.lower().strip(".")).strip()


NAMED = {name.removeprefix("flag of ").lower(): name for name in KIND_OF}
ANY_NAME = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, sorted(NAMED, key=len, reverse=True)))})(?![\w-])")


def named(text: str) -> set[str]:
    """Concepts named in the text, by the longest names."""
    return {NAMED[found] for found in ANY_NAME.findall(text)}


def test_no_visual_question_stands_in_training_data_and_every_family_has_a_twin_in_words(made_up):
    trained = [row["instruction"].lower() for row in text_instructions(4000)] + [prompt.lower() for prompt in PROMPTS]
    assert not [text for text in trained for shown in (*SHOWN["picture"], "picture", "image") if f" {shown}" in text]
    asked = {row["question"].lower() for row in visual_questions(300)}
    assert all(any(shown in one for shown in SHOWN["picture"]) for one in asked) and asked.isdisjoint(trained)
    rng = random.Random(0)
    for family in FAMILIES:
        question = ask(family, rng, "train", "words")[1]
        assert any(shown in question for shown in SHOWN["words"])
    assert len(set(trained)) > 3000 and len({text[:12] for text in trained}) > 200


def test_chat_keeps_what_the_model_itself_says_but_no_held_out_fact():
    assert len(PROMPTS) == len(set(PROMPTS)) >= 200 and not any(map(tells_held_out_fact, PROMPTS))
    name = next(name for name in taught("capital", "facts"))
    fact = f"Well, the capital of {name.removeprefix('flag of ')} is {FACTS['capital'][name][0]}."
    rows = chat(lambda prompts: ["Sure. ", fact, ""] + [f"Answer {i}." for i in range(len(prompts) - 3)])
    assert len(rows) == len(PROMPTS) - 2 and rows[0] == {"instruction": PROMPTS[0], "output": "Sure."}
    with pytest.raises(ValueError, match="1 answers to 200 prompts"):
        chat(lambda prompts: ["one"])
