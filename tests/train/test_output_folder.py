"""One run to a folder: two do not mix, a trained model is not overwritten unasked, a save is whole or not there."""

import resource
import subprocess
import sys

import pytest
import torch

from tests.modeling.checkpoint import save_checkpoint
from tests.train.tiny_run import load, trainer
from vift_train.__main__ import main

HOLD = """
import sys, time
from vift_hub.output import lock
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


@pytest.mark.parametrize("what", ["model.safetensors", "optimizer.pt"])
def test_a_full_disk_is_one_line_and_nothing_is_lost(what, tmp_path, capsys):
    """A limit on the size of a file, a little below that of `what`, stands for the full disk."""
    save_checkpoint(tmp_path / "start")
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows.write_text('{"instruction": "what colour is the digit", "output": "red left"}\n' * 8)
    run = f"--model {tmp_path}/start --instructions {rows} --output_dir {out} --bf16 false --use_cpu --save_steps 2"
    run = [*run.split(), "--report_to", "none", "--disable_tqdm", "true"]
    main([*run, "--max_steps", "2"])
    before = (out / "model.safetensors").read_bytes()
    again = [*run, "--max_steps", "4", "--resume_from_checkpoint", "true"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    capsys.readouterr()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((out / "checkpoint-2" / what).stat().st_size - 99, limits[1]))
        with pytest.raises(SystemExit) as stopped:
            main(again)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    shown = capsys.readouterr().err
    assert stopped.value.code == 2 and "Traceback" not in shown
    assert f"vift train: error: output_dir={out}" in shown.splitlines()[-1]
    assert (out / "model.safetensors").read_bytes() == before and not list(out.glob("**/.saving"))
    main(again)
    assert (out / "checkpoint-4" / "trainer_state.json").exists()
    assert (out / "model.safetensors").read_bytes() != before


def test_shards_of_two_saves_are_not_taken_for_one_model(tmp_path):
    from vift_train.runs import written_aside

    def save(names):
        with written_aside(tmp_path) as part:
            for name in ("config.json", *names):
                (part / name).write_text(str(names))

    two = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    for names in (["model.safetensors"], two, two, ["model.safetensors"]):
        save(names)
        found = {path.name: path.read_text() for path in tmp_path.iterdir()}
        assert found == dict.fromkeys(["config.json", *names], str(names))
    save(two)
    seen, replace = [], type(tmp_path).replace

    def replaced(path, target):
        seen.append(sorted(p.name for p in tmp_path.glob("*index*")))
        return replace(path, target)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(tmp_path), "replace", replaced)
        save(two)
    assert len(seen) == 4 and not any(seen), "between two shards no index says that they are a model"


@pytest.mark.parametrize("lost", ["trainer_state.json", "optimizer.pt", "rng_state.pth", "model.safetensors"])
def test_half_a_checkpoint_is_not_resumed(lost, tmp_path):
    """By its path it is refused, `true` takes the one before, and where only the first was begun the run begins."""
    whole = trainer(tmp_path / "start", tmp_path / "out", max_steps=6)
    whole.train()
    (tmp_path / "out" / "checkpoint-6" / lost).unlink()
    with pytest.raises(ValueError, match=f"checkpoint-6 lacks .*{lost.split('.')[-1]}"):
        trainer(tmp_path / "start", tmp_path / "out", max_steps=6).train(str(tmp_path / "out" / "checkpoint-6"))
    for step in (6, 3):
        (tmp_path / "out" / f"checkpoint-{step}" / lost).unlink(missing_ok=True)
        again = trainer(tmp_path / "start", tmp_path / "out", max_steps=6)
        with pytest.warns(UserWarning, match=f"checkpoint-{step} is incomplete"):
            again.train(resume_from_checkpoint=True)
        theirs = whole.model.state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in again.model.state_dict().items())
        (tmp_path / "out" / "checkpoint-6" / lost).unlink()
