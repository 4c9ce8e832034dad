"""The plan of an epoch: pure for any number of ranks, grouped by length, longest first; streams likewise."""

import doctest
import random

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard

import vift_train.sampler
from vift_train.sampler import ModalityBatchSampler
from vift_train.streaming import PureSteps


def world_of(seed):
    rng = random.Random(seed)
    images, texts = rng.choice([(0, 9), (7, 0), (1, 0), (1, 1), (50, 11), (33, 64)])
    names = ["image"] * images + ["text"] * texts
    rng.shuffle(names)
    lengths = [rng.randint(1, 900) for _ in names]
    return names, lengths, rng.randint(1, 5), rng.randint(1, 4), rng.randint(1, 3)


def test_the_worked_example_is_true():
    assert doctest.testmod(vift_train.sampler).attempted and not doctest.testmod(vift_train.sampler).failed


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("order", ["even", "random"])
def test_dealt_to_ranks_steps_stay_pure_and_rows_come_once(seed, order):
    names, lengths, batch, world, accumulation = world_of(seed)
    group = world * accumulation
    plan = ModalityBatchSampler(names, batch, group, seed, lengths=lengths, order=order, chunk_steps=2)
    plan.set_epoch(seed % 3)
    ranks = [list(BatchSamplerShard(plan, world, rank, even_batches=True)) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1 and len(plan) == sum(map(len, ranks))
    seen = []
    for start in range(0, len(ranks[0]), accumulation):
        step = [row for rank in ranks for micro in rank[start : start + accumulation] for row in micro]
        assert len({names[row] for row in step}) == 1
        assert all(1 <= len(m) <= batch for rank in ranks for m in rank[start : start + accumulation])
        seen += step
    counts = [names.count("image"), names.count("text")]
    repeats = sum(max(0, -(-n // (batch * group)) * group - n) for n in counts)
    assert set(seen) == set(range(len(names))) and len(seen) == len(names) + repeats


def test_rows_of_a_step_have_like_lengths_and_the_longest_come_first():
    rng = np.random.default_rng(0)
    names, lengths = np.repeat(["image", "text"], 400), rng.integers(1, 1000, 800)
    plan = list(ModalityBatchSampler(names, 4, 4, lengths=lengths, chunk_steps=8))
    spread = [np.ptp(lengths[sum(plan[i : i + 4], [])]) for i in range(8, len(plan), 4)]
    loose = list(ModalityBatchSampler(names, 4, 4))
    assert np.mean(spread) < 0.25 * np.mean([np.ptp(lengths[sum(loose[i : i + 4], [])]) for i in range(0, 200, 4)])
    first = {row for micro in plan[:8] for row in micro}
    assert {int(lengths[:400].argmax()), int(400 + lengths[400:].argmax())} <= first


@pytest.mark.parametrize("weight, visits", [(0.5, 20), (1.0, 40), (2.5, 100)])
def test_text_weight_sets_how_often_text_rows_are_visited(weight, visits):
    names = ["image"] * 30 + ["text"] * 40
    plan = ModalityBatchSampler(names, 4, weights={"text": weight})
    rows = [row for batch in plan for row in batch]
    assert sum(row >= 30 for row in rows) == visits and sum(row < 30 for row in rows) == 30
    counts = np.bincount(rows, minlength=70)[30:]
    assert counts.max() - counts.min() <= 1
    other = ModalityBatchSampler(names, 4, weights={"text": weight})
    other.set_epoch(1)
    assert [row for batch in other for row in batch] != rows


def test_bad_arguments_of_the_sampler_are_named():
    for kwargs, message in [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 1, "group": 0}, "group=0"),
        ({"batch_size": 1, "chunk_steps": 0}, "chunk_steps=0"),
        ({"batch_size": 1, "order": "up"}, "order='up'"),
        ({"batch_size": 1, "lengths": [1, 2]}, "lengths has 2 values, modalities 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            ModalityBatchSampler(["image"], **kwargs)


@pytest.mark.parametrize("seed", range(40))
def test_a_stream_deals_pure_steps_and_every_row_once(seed):
    names, lengths, batch, world, accumulation = world_of(seed)
    rows = [{"id": i, "modality": m, "length": n} for i, (m, n) in enumerate(zip(names, lengths))]
    group = world * accumulation
    ranks = [list(PureSteps(rows, batch, group, rank, world)) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    seen = []
    for start in range(0, len(ranks[0]), accumulation):
        step = [row for rank in ranks for micro in rank[start : start + accumulation] for row in micro]
        assert len({row["modality"] for row in step}) == 1
        seen += [row["id"] for row in step]
    assert set(seen) == set(range(len(names)))
    assert all(1 <= len(micro) <= batch for rank in ranks for micro in rank)


def test_bad_arguments_of_a_stream_are_named():
    with pytest.raises(ValueError, match="group=3, rank=0, world=2"):
        PureSteps([], 1, 3, 0, 2)
