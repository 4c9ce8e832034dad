"""Pure steps: one modality a step, every row once, the same plan on every rank."""

import random

import pytest

from vift_train.sampler import ModalityBatchSampler


def rows(images, texts):
    names = ["image"] * images + ["text"] * texts
    random.Random(0).shuffle(names)
    return names


@pytest.mark.parametrize("images, texts", [(50, 11), (7, 0), (0, 9), (1, 1), (64, 64), (3, 100)])
@pytest.mark.parametrize("batch_size, group", [(4, 1), (4, 3), (1, 2), (16, 1)])
def test_every_step_has_one_modality_and_every_row_is_seen_once(images, texts, batch_size, group):
    names = rows(images, texts)
    sampler = ModalityBatchSampler(names, batch_size, group, seed=3)
    batches = list(sampler)
    assert len(batches) == len(sampler) and len(batches) % group == 0
    for start in range(0, len(batches), group):
        assert len({names[i] for batch in batches[start : start + group] for i in batch}) == 1
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    seen = [i for batch in batches for i in batch]
    assert set(seen) == set(range(len(names)))
    kinds = [names[batch[0]] for batch in batches]
    repeated = sum(max(0, kinds.count(k) - n) for k, n in (("image", images), ("text", texts)))
    assert len(seen) == len(names) + repeated


def test_the_plan_depends_on_seed_and_epoch_only():
    names = rows(40, 20)
    first, second = (ModalityBatchSampler(names, 4, 2, seed=1) for _ in range(2))
    assert list(first) == list(second) == list(first)
    second.set_epoch(1)
    assert list(first) != list(second)
    assert list(first) != list(ModalityBatchSampler(names, 4, 2, seed=2))


def test_the_text_share_is_steady():
    names = rows(400, 200)
    kinds = [names[batch[0]] for batch in ModalityBatchSampler(names, 4, 1, seed=0)]
    for start in range(0, len(kinds) - 30, 30):
        assert 8 <= kinds[start : start + 30].count("text") <= 12


def test_the_mixed_control_mixes_and_loses_no_row():
    names = rows(40, 20)
    batches = list(ModalityBatchSampler(names, 8, 1, seed=0, order="mixed"))
    assert sorted(i for batch in batches for i in batch) == list(range(60))
    assert sum(len({names[i] for i in batch}) == 2 for batch in batches) > len(batches) / 2
    with pytest.raises(ValueError, match="mixed.*weights"):
        ModalityBatchSampler(names, 8, order="mixed", weights={"text": 2})


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="batch_size=0"):
        ModalityBatchSampler(["image"], 0)
