"""Data sets: documented features, splits of purpose, captions that hold the facts, exact match."""

import random
import re

import datasets
import pytest

from vift_microworld import (
    FAMILIES,
    QUESTION_FEATURES,
    TRAINING_FEATURES,
    build_tokenizer,
    data,
    detailed_captions,
    exact_match,
    is_caption,
    language,
    normalize_answer,
    sample_scenes,
    text_instructions,
    visual_instructions,
    visual_questions,
    web_captions,
)


def words(row):
    return " ".join(p["text"] for m in row["messages"] for p in m["content"] if p["text"])


@pytest.mark.parametrize("build", [web_captions, detailed_captions])
def test_caption_rows_have_one_picture_and_the_documented_features(build):
    table = build(20)
    assert isinstance(table, datasets.Dataset) and table.features == TRAINING_FEATURES
    for row in table:
        assert row["modality"] == "image"
        (picture,) = row["images"]
        assert picture.size == (48, 48) and picture.mode == "RGB"
        user, assistant = row["messages"]
        assert user["content"][0] == {"type": "image", "text": None}
        assert (user["role"], assistant["role"]) == ("user", "assistant")


def test_text_rows_have_no_picture():
    table = text_instructions(50, turns=2)
    assert table.features == TRAINING_FEATURES
    for row in table:
        assert row["images"] == [] and row["modality"] == "text" and len(row["messages"]) == 4
        assert all(p["type"] == "text" for m in row["messages"] for p in m["content"])


def test_questions_for_evaluation_hold_no_answer_turn():
    table = visual_questions(45)
    assert table.features == QUESTION_FEATURES
    assert all([m["role"] for m in row["messages"]] == ["user"] for row in table)
    assert len(set(table["id"])) == 45 and len(set(table["family"])) >= 10


def test_the_baselines_training_set_holds_the_answer():
    for row in visual_instructions(30):
        assert row["messages"][-1]["content"][0]["text"] == row["answer"]


def test_visual_instructions_keep_to_the_families_named():
    seen = ("color_at", "sum", "digit_of_color")
    assert set(visual_instructions(90, families=seen)["family"]) == set(seen)
    assert visual_instructions(30)["question"] == visual_instructions(30, families=tuple(FAMILIES))["question"]
    for families in ((), ("colour_at",)):
        with pytest.raises(ValueError, match="families must be one or more of color_at"):
            visual_instructions(10, families=families)
    with pytest.raises(ValueError, match="digit_of_color.*name one more"):
        visual_instructions(200, families=("digit_of_color",))


def test_caption_training_never_holds_a_visual_question():
    queries = set()
    for table in (web_captions(300), detailed_captions(2000)):
        for row in table:
            user, assistant = row["messages"]
            queries.update(part["text"] for part in user["content"] if part["text"])
            assert is_caption(assistant["content"][0]["text"])
    visual = set(visual_questions(600)["question"]) | set(visual_instructions(600)["question"])
    assert len(queries) > 100 and not visual & queries


def test_caption_queries_come_from_the_named_pools_in_the_given_share():
    for build in (web_captions, detailed_captions):
        users = [row["messages"][0]["content"] for row in build(300, no_query_share=0.25, queries=["naming", "web"])]
        queries = [content[1]["text"] for content in users if len(content) == 2]
        assert 0.15 < 1 - len(queries) / 300 < 0.35
        assert 0.4 < queries.count(language.WEB_QUERY) / len(queries) < 0.6
        assert not set(queries) & {*language.CAPTION_QUERIES, *language.ASKING_QUERIES} and len(set(queries)) > 30


def test_the_query_of_web_captions_gets_one_in_detailed_data_too():
    table = detailed_captions(40, no_query_share=0.0, queries=("web", "caption"))
    for user, assistant in table["messages"]:
        web = user["content"][1]["text"] == language.WEB_QUERY
        assert assistant["content"][0]["text"].startswith("the picture shows") != web


def test_captions_hold_the_facts():
    for i, scene in enumerate(sample_scenes(100, 5, "train")):
        detailed = language.detailed_caption(scene)
        assert f"{len(scene.objects)} digits" in detailed
        for item in scene.objects:
            assert f"{item.where} {item.name}" in detailed
            assert item.name in language.brief_caption(scene)
            assert f"{item.where} {item.name}" in language.scene_words(scene)
        digits = re.findall(r"\d", language.web_caption(scene, random.Random(i)))
        assert digits and {int(d) for d in digits} <= {o.digit for o in scene.objects}
        assert is_caption(detailed) and is_caption(language.brief_caption(scene))


def test_same_seed_same_rows():
    first, second = detailed_captions(20, seed=4), detailed_captions(20, seed=4)
    assert first["messages"][:] == second["messages"][:]
    assert data.encode_pictures(sample_scenes(3, 4, "train")) == data.encode_pictures(sample_scenes(3, 4, "train"))


def test_every_word_of_the_world_is_in_the_vocabulary():
    tokenizer = build_tokenizer()
    tables = [
        web_captions(100), detailed_captions(100), text_instructions(300, turns=3),
        visual_instructions(300),
    ]  # fmt: skip
    for table in tables:
        for row in table:
            assert tokenizer.unk_token_id not in tokenizer(words(row))["input_ids"]
    assert tokenizer.tokenize("top left red 7 , blue 3 at the top left .") == [
        "top left red 7", ",", "blue 3", "at", "the", "top left", "."
    ]  # fmt: skip
    assert tokenizer.decode(tokenizer("top left red 7")["input_ids"]) == "top left red 7"


@pytest.mark.parametrize(
    "prediction, answer, same",
    [
        ("Red.", "red", True),
        ("the top left", "top left", True),
        (" 12 <|im_end|>", "12", True),
        ("yes , it is", "yes", False),
        ("", "0", False),
        ("1", "12", False),
    ],
)
def test_exact_match_after_normalisation(prediction, answer, same):
    assert exact_match(prediction, answer) is same


def test_normalisation_is_idempotent_and_answers_are_no_captions():
    for answer in visual_questions(300)["answer"]:
        assert normalize_answer(normalize_answer(answer)) == normalize_answer(answer) != ""
        assert not is_caption(answer)
    assert is_caption("top left red 7 , blue 3 .") and is_caption("the picture shows 2 digits :")
