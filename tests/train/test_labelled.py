"""A step's loss on a CPU reads labelled positions only, and is the loss it was."""

from contextlib import nullcontext

import torch
from trl.trainer import utils

from tests.train.test_trainer import processor, tiny_model, trainer_for  # noqa: F401
from vift_microworld import detailed_captions
from vift_train import trainer as module


def test_loss_and_gradients_are_those_of_all_positions_and_fewer_are_scored(processor, tmp_path, monkeypatch):  # noqa: F811
    trainer = trainer_for(tiny_model(processor), processor, detailed_captions(8), tmp_path)
    rows = trainer.train_dataset
    batch = trainer._prepare_inputs(trainer.data_collator([rows[i] for i in range(4)]))
    labelled = int((batch["labels"][:, 1:] != -100).sum())
    scored = []
    kernel = utils._ChunkedLogProbFunction.apply
    monkeypatch.setattr(utils._ChunkedLogProbFunction, "apply", lambda h, *a: scored.append(len(h)) or kernel(h, *a))

    def step():
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, dict(batch))
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]

    ours = step()
    monkeypatch.setattr(module, "labelled_only", nullcontext)
    theirs = step()
    assert scored == [labelled, batch["labels"][:, 1:].numel()] and scored[0] < scored[1] / 1.5
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_another_version_of_trl_is_left_as_it_is(monkeypatch):
    monkeypatch.delattr(utils, "_use_triton")
    with module.labelled_only():
        assert not hasattr(utils, "_use_triton")


def test_the_change_ends_with_the_step():
    before = utils._use_triton
    with module.labelled_only():
        assert utils._use_triton is not before and utils._use_triton(torch.device("cpu"))
    assert utils._use_triton is before
