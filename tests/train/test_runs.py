"""A run goes on as itself or not at all: later passes of a stream, finished runs, what decides a run."""

import json
import os

import pytest
import torch
from datasets import IterableDataset

from tests.train.tiny_run import dataset, row, rows, trainer


def stream():
    return IterableDataset.from_generator(rows, gen_kwargs={"images": 13, "texts": 6})


def figures(run):
    """What is logged at each step, counters too."""
    logged = [entry for entry in run.state.log_history if "loss" in entry]
    return [(e["loss"], e["epoch"], e["num_tokens"], {*e} & {"text_padding"}) for e in logged]


def weights(run):
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_stream_resumed_after_its_first_pass_goes_on_with_the_next_batch(tmp_path):
    """A pass is 6 steps: the checkpoints are inside the first, at its end, and inside the second and third pass."""
    options = {"max_steps": 16, "save_steps": 1}
    whole = trainer(tmp_path / "start", tmp_path / "out", stream(), **options)
    whole.train()
    shown = figures(whole)
    for step in (4, 6, 8, 15):
        again = trainer(tmp_path / "start", tmp_path / "out", stream(), **options)
        again.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{step}"))
        assert figures(again) == shown and equal(weights(again), weights(whole))


@pytest.mark.parametrize("kind, steps", [("map", 4), ("map", 6), ("stream", 4), ("stream", 8)])
def test_resuming_a_finished_run_changes_nothing(kind, steps, tmp_path):
    data = stream() if kind == "stream" else None
    run = trainer(tmp_path / "start", tmp_path / "out", data, max_steps=steps)
    run.train()
    again = trainer(tmp_path / "start", tmp_path / "out", data, max_steps=steps)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == steps and equal(weights(again), weights(run))
    shorter = trainer(tmp_path / "start", tmp_path / "out", data, max_steps=3)
    refused = pytest.raises(ValueError, match=f"the checkpoint is of step {steps}, the run has 3")
    with pytest.warns(UserWarning, match=f"max_steps was {steps}, is 3"), refused:
        shorter.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{steps}"))


def test_resuming_takes_the_newest_runs_checkpoint_not_the_highest(tmp_path):
    old = trainer(tmp_path / "start", tmp_path / "out", max_steps=9, learning_rate=3e-2)
    old.train()
    new = trainer(tmp_path / "start", tmp_path / "new", max_steps=9)
    new.train()
    for folder in ("checkpoint-3", "checkpoint-6"):
        for file in (tmp_path / "new" / folder).iterdir():
            os.replace(file, tmp_path / "out" / folder / file.name)
            os.utime(tmp_path / "out" / folder / file.name)
    again = trainer(tmp_path / "start", tmp_path / "out", max_steps=9)
    again.train(resume_from_checkpoint=True)
    assert figures(again) == figures(new) and equal(weights(again), weights(new))
    (tmp_path / "out" / "checkpoint-6" / "trainer_state.json").write_text('{"epoch": 1.')  # killed as it was written
    os.utime(tmp_path / "out" / "checkpoint-3" / "trainer_state.json")
    last = trainer(tmp_path / "start", tmp_path / "out", max_steps=9, learning_rate=3e-2)
    with pytest.raises(ValueError, match="checkpoint-3: learning_rate was 0.01, is 0.03"):
        last.train(resume_from_checkpoint=True)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    folder = tmp_path_factory.mktemp("short")
    trainer(folder / "start", folder / "out", max_steps=3).train()
    return folder


def other_data():
    changed = rows(13, 6)
    changed[-1]["messages"] = row(99, changed[-1]["modality"])["messages"]
    return dataset(0, 1).from_list(changed, features=dataset(0, 1).features)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"learning_rate": 1e-3}, "learning_rate was 0.01, is 0.001"),
        ({"connector_lr": 1e-3}, "connector_lr was None, is 0.001"),
        ({"weight_decay": 0.5}, "weight_decay was 0.0, is 0.5"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type was linear, is cosine"),
        ({"warmup_steps": 2}, "warmup_steps was 0, is 2"),
        ({"stage": 1, "train_language_model": True}, "stage was 2, is 1"),
        ({"train_layers": "0:1"}, "train_layers was None, is 0:1"),
        ({"train_connector": False}, "train_connector was True, is False"),
        ({"max_length": 200}, "max_length was None, is 200"),
        ({"optim": "sgd"}, "optim was adamw_torch[a-z_]*, is sgd"),
        ({"data": "other"}, "rows_sha256 was"),
        ({"folder": "checkpoint"}, "start_sha256 was"),
        ({"peft_config": "lora"}, "peft_config was None"),
    ],
)
def test_a_run_of_other_rates_stage_band_model_or_data_is_refused(changed, message, short):
    from peft import LoraConfig

    changed = dict(changed)
    folder = short / "out" / "checkpoint-3" if changed.pop("folder", None) else short / "start"
    data = other_data() if changed.pop("data", None) else None
    changed |= {"peft_config": LoraConfig(r=2)} if "peft_config" in changed else {}
    other = trainer(folder, short / "out", data, max_steps=3, **changed)
    with pytest.raises(ValueError, match=message):
        other.train(resume_from_checkpoint=True)


def test_a_record_without_what_decides_the_run_is_refused_by_name(short, tmp_path):
    run = trainer(short / "start", tmp_path / "out", max_steps=3)
    run.train()
    file = tmp_path / "out" / "checkpoint-3" / "vift_training.json"
    saved = json.loads(file.read_text())
    del saved["fingerprint"]["stage"]
    file.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="stage was not recorded, is 2"):
        trainer(short / "start", tmp_path / "out", max_steps=3).train(resume_from_checkpoint=True)


def test_a_stream_has_no_epochs_to_save_at(tmp_path):
    with pytest.raises(ValueError, match="save_strategy and eval_strategy: a stream has no epochs"):
        trainer(tmp_path / "start", tmp_path / "out", stream(), max_steps=3, save_strategy="epoch")
