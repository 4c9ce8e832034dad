"""A run that is killed and resumed equals one that never stopped; a run of another shape is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.modeling.checkpoint import save_checkpoint
from tests.train.tiny_run import dataset, load, losses, trainer


def run(folder, stage, kind, kill_at=0):
    script = Path(__file__).with_name("killed.py")
    command = [sys.executable, str(script), str(folder), str(stage), kind, str(kill_at)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])


@pytest.mark.slow
@pytest.mark.parametrize("stage, kind, kill_at", [(1, "map", 5), (1, "stream", 5), (2, "map", 11), (2, "stream", 8)])
def test_killed_and_resumed_equals_never_killed(stage, kind, kill_at, tmp_path):
    for name in ("whole", "killed"):
        save_checkpoint(tmp_path / name / "start")
    whole = run(tmp_path / "whole", stage, kind)
    assert whole.returncode == 0, whole.stderr[-3000:]
    killed = run(tmp_path / "killed", stage, kind, kill_at)
    assert killed.returncode == -9 and "RESULT" not in killed.stdout
    resumed = run(tmp_path / "killed", stage, kind)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    expected, found = (json.loads(out.stdout.split("RESULT ")[1]) for out in (whole, resumed))
    assert found == expected and found["steps"] == 12
    ours, theirs = (torch.load(tmp_path / name / "final.pt") for name in ("killed", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_run_of_another_shape_is_refused(tmp_path):
    first = trainer(tmp_path / "start", tmp_path / "out", max_steps=3)
    first.train()
    checkpoint = str(tmp_path / "out" / "checkpoint-3")
    for kwargs, message in [
        ({"per_device_train_batch_size": 4}, "per_device_train_batch_size was 2, is 4"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps was 2, is 1"),
        ({"seed": 7}, "seed was 42, is 7"),
        ({"data": dataset(12, 6)}, "rows was 19, is 18"),
    ]:
        other = trainer(tmp_path / "start", tmp_path / "out", max_steps=3, **kwargs)
        with pytest.raises(ValueError, match=message):
            other.train(resume_from_checkpoint=checkpoint)
    (tmp_path / "out" / "checkpoint-3" / "vift_training.json").unlink()
    with pytest.raises(ValueError, match="holds no vift_training.json"):
        trainer(tmp_path / "start", tmp_path / "out").train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match="holds no checkpoint"):
        trainer(tmp_path / "start", tmp_path / "empty").train(resume_from_checkpoint=True)


def test_a_checkpoint_that_was_never_finished_is_skipped(tmp_path):
    whole = trainer(tmp_path / "start", tmp_path / "out", max_steps=9)
    whole.train()
    (tmp_path / "out" / "checkpoint-9" / "trainer_state.json").unlink()
    again = trainer(tmp_path / "start", tmp_path / "out", max_steps=9)
    with pytest.warns(UserWarning, match="checkpoint-9 is incomplete"):
        again.train(resume_from_checkpoint=True)
    assert losses(again) == losses(whole)


def test_a_checkpoint_without_all_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    trainer(tmp_path / "start", tmp_path / "out", max_steps=3).train()
    file = tmp_path / "out" / "checkpoint-3" / "model.safetensors"
    weights = load_file(file)
    del weights[next(name for name in weights if "embed_tokens" in name)]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights of the model"):
        trainer(tmp_path / "start", tmp_path / "out", max_steps=6).train(resume_from_checkpoint=str(file.parent))


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    """`greater_is_better` of a falling loss: the first checkpoint is the best one."""
    run = trainer(
        tmp_path / "start", tmp_path / "out", max_steps=6, eval_strategy="steps", eval_steps=3, save_steps=3,
        load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True,
        eval_dataset=dataset(4, 0),
    )  # fmt: skip
    run.train()
    assert run.state.best_model_checkpoint.endswith("checkpoint-3")
    best, _ = load(tmp_path / "out" / "checkpoint-3")
    last, _ = load(tmp_path / "out" / "checkpoint-6")
    found = run.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in best.state_dict().items())
    assert not all(torch.equal(found[name], tensor) for name, tensor in last.state_dict().items())


def test_accumulation_equals_a_larger_batch(tmp_path):
    """Per-device 1 x accumulation 8 has the losses of 8 x 1."""
    runs = []
    for batch, accumulation in ((1, 8), (8, 1)):
        kwargs = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        one = trainer(tmp_path / "start", tmp_path / f"{batch}", dataset(16, 8), save_strategy="no", **kwargs)
        one.train()
        runs.append(losses(one))
    assert len(runs[0]) == 6
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)


def test_a_checkpoint_of_the_trainer_is_complete(tmp_path):
    """It loads in a process that cannot import our packages, answers fused, and the next run inherits from it."""
    one = trainer(
        tmp_path / "start",
        tmp_path / "out",
        dataset(12, 0),
        max_steps=3,
        chunk_steps=5,
        modality_order="random",
        stage=1,
    )
    one.train()
    checkpoint = tmp_path / "out" / "checkpoint-3"
    names = {file.name for file in checkpoint.iterdir()}
    code = {"modeling_vift.py", "configuration_vift.py", "fusion_vift.py", "generation_vift.py"}
    assert code | {"config.json", "model.safetensors"} <= names
    assert {"processor_config.json", "tokenizer.json", "chat_template.jinja", "vift_training.json"} <= names
    inherited = trainer(checkpoint, tmp_path / "next", chunk_steps=None, stage=2).args
    assert (inherited.chunk_steps, inherited.modality_order) == (5, "random")
    overridden = trainer(checkpoint, tmp_path / "next", chunk_steps=7, stage=2).args
    assert (overridden.chunk_steps, overridden.modality_order) == (7, "random")
