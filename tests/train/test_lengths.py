"""Lengths found from the words alone are those of the collated rows; steps are grouped by them."""

import numpy as np
import pytest
from datasets import Features, IterableDataset, List, Value

from tests.train.tiny_run import FEATURES, Dataset, dataset, row, rows, trainer


def without_length(data):
    return data.remove_columns("length")


def collated_lengths(run, data):
    return [int(run._train_collator([dict(data[i])])["attention_mask"].sum()) for i in range(len(data))]


def test_lengths_are_those_of_the_collated_rows(tmp_path):
    data = without_length(dataset(9, 5))
    run = trainer(tmp_path / "start", tmp_path / "out", data)
    assert run._lengths == collated_lengths(run, data) and len(set(run._lengths)) > 3
    assert run._measure_rows([data[i] for i in range(len(data))]) == run._lengths


def test_lengths_of_conversations_of_plain_strings(tmp_path):
    """Their placeholders are put in by the collator only."""
    features = Features({**FEATURES, "messages": List({"role": Value("string"), "content": Value("string")})})
    found = []
    for number, modality in enumerate(["image", "image", "text"]):
        one = row(number, modality)
        one["messages"] = [
            {"role": m["role"], "content": "".join(p.get("text") or "" for p in m["content"])} for m in one["messages"]
        ]
        found.append(one)
    data = without_length(Dataset.from_list(found, features=features))
    run = trainer(tmp_path / "start", tmp_path / "out", data)
    assert run._lengths == collated_lengths(run, data)


def test_a_length_column_is_believed_and_max_length_caps_what_is_found(tmp_path):
    run = trainer(tmp_path / "start", tmp_path / "out", dataset(3, 3))
    assert run._lengths == dataset(3, 3)["length"][:]
    data = without_length(dataset(0, 6))
    whole = trainer(tmp_path / "start", tmp_path / "out", data)._lengths
    cap = max(whole) - 1
    capped = trainer(tmp_path / "start", tmp_path / "out", data, max_length=cap)
    assert capped._lengths == [min(n, cap) for n in whole] and max(whole) > cap
    assert trainer(tmp_path / "start", tmp_path / "out", data, group_by_length=False)._lengths is None


def padding(run):
    batches = [batch["attention_mask"].numpy() for batch in run.get_train_dataloader()]
    return 1 - sum(mask.sum() for mask in batches) / sum(mask.size for mask in batches)


@pytest.mark.parametrize("stream", [False, True])
def test_grouping_lowers_the_padding(stream, tmp_path):
    found = []
    for group in (True, False):
        data = without_length(dataset(0, 64))
        kwargs = {"group_by_length": group, "gradient_accumulation_steps": 8}
        if stream:
            data = IterableDataset.from_generator(rows, gen_kwargs={"images": 0, "texts": 64}).remove_columns("length")
            kwargs["max_steps"] = 4
        found.append(padding(trainer(tmp_path / "start", tmp_path / "out", data, **kwargs)))
    assert found[0] < 0.5 * found[1], found


def test_resuming_notices_rows_of_other_lengths(tmp_path):
    trainer(tmp_path / "start", tmp_path / "out", dataset(6, 4), max_steps=3).train()
    data = dataset(6, 4).map(lambda one: {"length": one["length"] + 1})
    with pytest.raises(ValueError, match="lengths_sha256 was .*, is "):
        trainer(tmp_path / "start", tmp_path / "out", data, max_steps=3).train(resume_from_checkpoint=True)


def test_a_stream_has_its_mixture_already(tmp_path):
    data = IterableDataset.from_generator(rows, gen_kwargs={"images": 4, "texts": 4})
    with pytest.raises(ValueError, match="text_weight=0.5: a stream's mixture"):
        trainer(tmp_path / "start", tmp_path / "out", data, max_steps=2, text_weight=0.5)
    assert np.isfinite(trainer(tmp_path / "start", tmp_path / "out", data, max_steps=1).train().training_loss)
