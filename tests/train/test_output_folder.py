"""One run to a folder: two do not mix, a trained model is not overwritten unasked, a save is whole or not there."""

import subprocess
import sys

import pytest
import torch

from tests.train.tiny_run import load, trainer

HOLD = """
import sys, time
from vift_train.runs import lock
held = lock(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_two_runs_do_not_share_a_folder(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="output_dir=.*out: another run is writing there"):
            trainer(tmp_path / "start", tmp_path / "out", max_steps=3).train()
    finally:
        other.kill()
        other.wait()
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    trainer(tmp_path / "start", tmp_path / "out", max_steps=3).train()  # the lock died with its process


def test_a_finished_folder_is_overwritten_only_when_asked(tmp_path):
    first = trainer(tmp_path / "start", tmp_path / "out", max_steps=6)
    first.train()
    first.save_model()
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="output_dir=.*out holds checkpoint-. of another run.*overwrite_output_dir"):
        trainer(tmp_path / "start", tmp_path / "out", max_steps=3).train()
    with pytest.raises(ValueError, match="holds the model that the run starts from"):
        trainer(tmp_path / "out", tmp_path / "out", max_steps=3, overwrite_output_dir=True).train()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    trainer(tmp_path / "start", tmp_path / "out", max_steps=3, overwrite_output_dir=True).train()
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3"]
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_save_that_stops_half_way_leaves_what_was_there(tmp_path, monkeypatch):
    run = trainer(tmp_path / "start", tmp_path / "out", max_steps=3)
    run.train()
    run.save_model()
    whole, _ = load(tmp_path / "out")
    with torch.no_grad():
        next(run.model.parameters()).add_(1)

    def stop(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(type(run.processing_class), "save_pretrained", stop)
        with pytest.raises(OSError, match="No space left"):
            run.save_model()
    kept, _ = load(tmp_path / "out")
    assert all(torch.equal(kept.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())
    run.save_model()
    saved, _ = load(tmp_path / "out")
    assert not all(torch.equal(saved.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())
    assert not (tmp_path / "out" / ".saving").exists()
