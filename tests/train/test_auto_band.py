"""`train_layers: auto` trains the band that the rule finds in the training data, and says which."""

import json
import random
import re

import pytest
import torch

from tests.train.tiny_run import FEATURES, WORDS, Dataset, load, row, trainer
from vift_layers.band import choose_band
from vift_train.auto_band import sample_pairs
from vift_train.config import parse_band
from vift_train.trainer import module_of


def captions(count: int, texts: int = 3) -> Dataset:
    rng = random.Random(1)
    rows = [row(i, "image", " ".join(rng.choices(WORDS, k=5))) for i in range(count)]
    return Dataset.from_list(rows + [row(i, "text") for i in range(texts)], features=FEATURES)


def test_auto_trains_the_band_of_the_rule_and_writes_it_down(tmp_path):
    data = captions(48)
    run = trainer(tmp_path / "start", tmp_path / "out", data, max_steps=2, train_layers="auto", save_steps=2)
    model, processor = load(tmp_path / "start")
    expected = choose_band(model.eval(), processor, sample_pairs(data, run.args.seed))
    assert run.args.train_layers == str(expected)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.train()
    changed = {name for name, p in run.model.named_parameters() if not torch.equal(p.detach(), before[name])}
    layers = {int(re.search(r"layers\.(\d+)\.", n)[1]) for n in changed if module_of(n) == "language_model"}
    assert layers == set(range(expected.first, expected.stop))
    record = json.loads((tmp_path / "out" / "band.json").read_text())
    assert record["band"] == str(expected) and record["pairs"] == 48 and record["profile"] == expected.profile
    saved = json.loads((tmp_path / "out" / "checkpoint-2" / "vift_training.json").read_text())
    assert saved["config"]["train_layers"] == str(expected)


def test_the_sample_has_one_query_and_different_captions(tmp_path):
    data = captions(30)
    pairs = sample_pairs(data, seed=3, count=20)
    assert len(pairs) == 20 and len({pair["query"] for pair in pairs}) == 1
    assert len({pair["caption"] for pair in pairs}) == 20
    assert [p["caption"] for p in pairs] == [p["caption"] for p in sample_pairs(data, seed=3, count=20)]
    stream = sample_pairs(data.to_iterable_dataset(), seed=3, count=20)
    assert len(stream) == 20 and stream[0]["caption"] == data[0]["messages"][-1]["content"][0]["text"]


def test_data_without_captions_is_refused_with_both_numbers(tmp_path):
    answers = Dataset.from_list([row(i, "image", "red left") for i in range(50)], features=FEATURES)
    with pytest.raises(ValueError, match="needs 40 image rows with different captions .* has 0"):
        trainer(tmp_path / "start", tmp_path / "out", answers, train_layers="auto")


def test_several_bands_and_layers():
    assert parse_band("0,2,5:7", 8) == (0, 2, 5, 6) and parse_band("2:4,4,5", 8) == range(2, 6)
    for bad in ("0,8", "1,1", "0:2,1", "", "a", "3:1,2"):
        with pytest.raises(ValueError, match="none twice"):
            parse_band(bad, 8)
