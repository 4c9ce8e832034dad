"""Two processes (gloo, CPU), DDP, FSDP2, ZeRO-3: pure steps on both ranks, every row once, equal ends, resuming."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.modeling.checkpoint import save_checkpoint

pytestmark = pytest.mark.slow


def launch(folder, kind="ddp", resume_from=None):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script, name = Path(__file__).with_name("two_ranks.py"), "resumed" if resume_from else kind
    run = subprocess.run(
        [*command, str(script), str(folder), name, kind, *([str(resume_from)] if resume_from else [])],
        capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_ranks")
    save_checkpoint(folder / "start")
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    return launch(folder)


def check_pure(ranks, accumulation=2):
    first, second = (rank["seen"] for rank in ranks)
    assert len(first) == len(second)
    for start in range(0, len(first), accumulation):
        step = first[start : start + accumulation] + second[start : start + accumulation]
        assert len({modality for modality, _ in step}) == 1
    assert [m for m, _ in first] == [m for m, _ in second]


def test_both_ranks_take_pure_steps_and_every_row_once(whole):
    check_pure(whole)
    for modality, count in (("image", 13), ("text", 6)):
        total = sum(size for rank in whole for kind, size in rank["seen"] if kind == modality)
        assert total == 2 * count, "two epochs"


@pytest.mark.parametrize("step", [2, 4])
def test_a_resumed_run_equals_one_that_never_stopped(folder, whole, step):
    """Step 2 is in the first epoch of three steps, step 4 in the second."""
    resumed = launch(folder, "ddp", folder / "out-ddp" / f"checkpoint-{step}")
    for rank, full in zip(resumed, whole):
        assert rank["seen"] == full["seen"][2 * step :]
        assert rank["losses"] == full["losses"] and rank["sum"] == full["sum"]


def test_a_stream_gives_pure_steps_too(folder):
    ranks = launch(folder, "stream")
    check_pure(ranks)
    assert sum(size for rank in ranks for _, size in rank["seen"]) == 19


def test_a_model_sharded_at_load_has_the_losses_of_ddp(folder, whole):
    ranks = launch(folder, "load")
    check_pure(ranks)
    for rank, full in zip(ranks, whole):
        assert rank["seen"] == full["seen"]
        assert rank["losses"] == pytest.approx(full["losses"], rel=1e-4)
        assert rank["sum"] == pytest.approx(full["sum"], rel=1e-5)


def test_fsdp2_has_the_losses_of_ddp_and_resumes(folder, whole):
    """Through accelerate, where TRL's gradient of the head needs help; its checkpoints are complete."""
    for resume_from in (None, folder / "out-fsdp2" / "checkpoint-2"):
        ranks = launch(folder, "fsdp2", resume_from)
        for rank, full in zip(ranks, whole):
            assert rank["seen"] == full["seen"][4 if resume_from else 0 :]
            assert rank["losses"] == pytest.approx(full["losses"], rel=1e-5)
            assert rank["sum"] == pytest.approx(full["sum"], rel=1e-6)
    names = {file.name for file in (folder / "out-fsdp2" / "checkpoint-2").iterdir()}
    assert {"modeling_vift.py", "configuration_vift.py", "fusion_vift.py", "config.json", "model.safetensors"} <= names
    assert not any(name.startswith("_") for name in names)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed, which is no dependency")
def test_a_text_step_under_zero3_does_not_repeat_an_image_step(folder):
    """SGD: without a gradient nothing may move, so that ZeRO-3 has the losses of DDP."""
    ours, expected = launch(folder, "zero3-sgd"), launch(folder, "ddp-sgd")
    check_pure(ours)
    for rank, full in zip(ours, expected):
        assert rank["seen"] == full["seen"]
        assert rank["losses"] == pytest.approx(full["losses"], rel=1e-4)
