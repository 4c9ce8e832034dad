"""A row that truncation would spoil is left out before the run, counted and named; it never ends the run."""

import random

import pytest

from tests.train.test_rows import png, source, texts  # noqa: F401
from tests.train.tiny_run import WORDS, losses, trainer
from vift_train.data import load_rows
from vift_train.rows import BadRow, convert_row


def rows(count=12, longest=40):
    rng = random.Random(0)
    found = []
    for number in range(count):
        question = " ".join(rng.choices(WORDS, k=longest if number % 3 == 0 else 3))
        picture = {"image": "a.png"} if number % 2 else {}
        found.append({"id": f"r{number}", **picture, "question": question, "answer": "red left"})
    return found


def spoilt(run, data):
    """Numbers of the rows that the collator refuses."""
    found = []
    for number in range(len(data)):
        try:
            run._train_collator([data[number]])
        except ValueError:
            found.append(number)
    return found


@pytest.mark.parametrize("length_column", [False, True])
def test_rows_cut_before_there_is_something_to_learn_are_left_out_of_the_plan(length_column, source, tmp_path, caplog):  # noqa: F811
    data = load_rows(source(*rows()))
    whole = trainer(tmp_path / "start", tmp_path / "whole", data)
    if length_column:
        data = data.add_column("length", whole._lengths)
    lengths, counted = sorted(whole._lengths), set()
    for max_length in range(lengths[2], lengths[-1] + 1):
        whole._train_collator.max_length = max_length
        bad = spoilt(whole, data)
        if len(bad) == len(data) or len(bad) in counted:
            continue
        counted.add(len(bad))
        caplog.clear()
        run = trainer(tmp_path / "start", tmp_path / "out", data, max_length=max_length, eval_dataset={"x": data})
        kept = [row_id for number, row_id in enumerate(data["id"]) if number not in bad]
        assert run.train_dataset["id"] == run.eval_dataset["x"]["id"] == kept, max_length
        assert len(run._lengths) == len(kept) and spoilt(run, run.train_dataset) == []
        for name in ("train_dataset", "eval_dataset['x']"):
            line = (
                f"{len(bad)} of 12 rows of {name} are left out: their prompts don't fit into max_length={max_length}"
            )
            assert (line in caplog.text) == bool(bad)
    assert len(counted) > 2


@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_with_long_rows_trains_and_evaluates(streaming, source, tmp_path, caplog):  # noqa: F811
    data = load_rows(source(*rows()), streaming=streaming)
    held_out = load_rows(source(*rows(6), name="held.jsonl"))
    options = {"max_length": 40, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
    run = trainer(tmp_path / "start", tmp_path / "out", data, eval_dataset=held_out, **options)
    run.train()
    assert len(losses(run)) == 4 and "rows of train_dataset are left out" in caplog.text and "'r0'" in caplog.text
    assert len(run.eval_dataset) == 4


def test_a_max_length_that_no_row_fits_is_refused(source, tmp_path):  # noqa: F811
    data = load_rows(source(*rows()))
    with pytest.raises(ValueError, match="max_length=3 is too short for every row of train_dataset"):
        trainer(tmp_path / "start", tmp_path / "out", data, max_length=3)


def test_a_stream_without_a_usable_row_is_refused(source, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="source=.*: no usable row"):
        load_rows(source({"question": "x"}), streaming=True)
    data = load_rows(source(*rows()), streaming=True).filter(lambda row: False)
    with pytest.raises(ValueError, match="holds no usable row"):
        trainer(tmp_path / "start", tmp_path / "out", data, max_steps=2)


def test_what_the_loader_takes_the_collator_takes(source, tmp_path):  # noqa: F811
    """Of random messages with and without pictures, placeholders and roles."""
    run = trainer(tmp_path / "start", tmp_path / "out", load_rows(source(*rows(4))))
    rng, taken = random.Random(0), 0
    kinds = [{"type": "image"}, {"type": "text", "text": "red"}, {"type": "text", "text": "<image>"}, {"type": "text"}]
    for number in range(300):
        talk = []
        for _ in range(rng.choice([0, 1, 1, 2])):
            content = rng.choice(["red", "red", "", "red <image>", rng.choices(kinds, k=2), [], None])
            talk.append({"role": rng.choice(["user", "user", "user", "system", None]), "content": content})
        talk += [{"role": "assistant", "content": rng.choice(["left", "left", " ", "<image>"])}] * rng.choice(
            [0, 1, 1]
        )
        try:
            (row,) = convert_row({"messages": talk, "images": [{"bytes": png()}] * rng.choice([0, 0, 1])}, str(number))
        except BadRow:
            continue
        run._train_collator([row])
        taken += 1
    assert taken > 20


@pytest.mark.parametrize(
    "message, why",
    [
        ({"role": "user", "content": [{"type": "text", "text": "what is <image> ?"}]}, "hold the placeholder <image>"),
        ({"role": None, "content": "x"}, "role 'None' must be one of"),
        ({"role": "user", "content": [{"type": "image_url", "text": None}]}, "a part of type 'image_url'"),
    ],
)
def test_the_collator_names_the_row(message, why, source, tmp_path):  # noqa: F811
    run = trainer(tmp_path / "start", tmp_path / "out", load_rows(source(*rows(4))))
    talk = [message, {"role": "assistant", "content": "y"}]
    with pytest.raises(ValueError, match=f"row 'x': .*{why}"):
        run._train_collator([{"id": "x", "messages": talk, "images": [], "modality": "text"}])
