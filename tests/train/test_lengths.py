"""Lengths found from the words alone are those of the collated rows; steps are grouped by them."""

from itertools import islice

import numpy as np
import pytest
from datasets import Features, IterableDataset, List, Value

from tests.train.tiny_run import FEATURES, Dataset, dataset, row, rows, trainer
from vift_hub.models import BUNDLED
from vift_train.lengths import column


def without_length(data):
    return data.remove_columns("length")


def collated_lengths(run, data):
    return [int(run._train_collator([dict(data[i])])["attention_mask"].sum()) for i in range(len(data))]


def test_lengths_are_those_of_the_collated_rows(tmp_path):
    data = without_length(dataset(9, 5))
    run = trainer(tmp_path / "start", tmp_path / "out", data)
    assert list(run._lengths) == collated_lengths(run, data) and len(set(list(run._lengths))) > 3
    assert run._measure_rows([data[i] for i in range(len(data))]) == list(run._lengths)


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
    assert list(run._lengths) == collated_lengths(run, data)


def test_a_length_column_is_believed_and_max_length_caps_what_is_found(tmp_path):
    run = trainer(tmp_path / "start", tmp_path / "out", dataset(3, 3))
    assert list(run._lengths) == dataset(3, 3)["length"][:]
    data = without_length(dataset(0, 6))
    whole = trainer(tmp_path / "start", tmp_path / "out", data)._lengths
    cap = max(whole) - 1
    capped = trainer(tmp_path / "start", tmp_path / "out", data, max_length=cap)
    assert list(capped._lengths) == [min(n, cap) for n in whole] and max(whole) > cap
    assert trainer(tmp_path / "start", tmp_path / "out", data, group_by_length=False)._lengths is None


def padding(run):
    steps = run.args.max_steps  # a stream goes on for ever
    count = None if steps < 0 else steps * run.args.gradient_accumulation_steps
    batches = [batch["attention_mask"].numpy() for batch in islice(run.get_train_dataloader(), count)]
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


def test_columns_are_read_once_as_arrays_and_no_row_as_an_object(tmp_path, monkeypatch):
    """What 2 M rows would make slow: a column or all messages as Python objects, in any of the passes of a start."""
    from datasets.arrow_dataset import Column

    from vift_train import trainer as module

    data = dataset(13, 6)
    data = data.select([i for i in range(len(data)) if i != 4])
    expected = data["modality"][:], data["length"][:]
    seen, column = [], module.column

    def refuse(*args, **kwargs):
        raise AssertionError("a column as Python objects")

    monkeypatch.setattr(Column, "__iter__", refuse)
    monkeypatch.setattr(Column, "__getitem__", refuse)
    monkeypatch.setattr(module, "column", lambda rows, name: seen.append(name) or column(rows, name))
    run = trainer(tmp_path / "start", tmp_path / "out", data, max_steps=1)
    run.train()
    assert seen == ["modality", "length"]
    assert run._modalities.tolist() == expected[0] and run._lengths.tolist() == expected[1]


def test_a_column_without_a_value_is_named():
    data = Dataset.from_dict({"length": [3, None, 5], "modality": ["text", "image", "text"]})
    with pytest.raises(ValueError, match="column 'length' has no value in 1 of 3 rows"):
        column(data, "length")
    assert column(data.select([2, 0]), "length").tolist() == [5, 3]
    assert column(data.select([2, 1]), "modality").tolist() == ["text", "image"]


def test_one_num_proc_converts_rows_and_counts_lengths(tmp_path, monkeypatch):
    from vift_train import __main__ as command
    from vift_train import launch

    seen = []
    monkeypatch.setattr(
        launch, "load_evaluation", lambda run, args: seen.append((run.num_proc, args.dataset_num_proc))
    )
    for options in (["--num_proc", "3"], ["--dataset_num_proc", "2"], []):
        with pytest.raises(SystemExit):
            command.main(["--model", str(BUNDLED), "--output_dir", str(tmp_path), *options])
    assert seen == [(3, 3), (2, 2), (None, None)]
