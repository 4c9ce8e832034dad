"""Two processes (gloo, CPU), DDP and FSDP2: pure steps on both ranks, every row once, equal parameters, resuming."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.modeling.checkpoint import save_checkpoint

pytestmark = pytest.mark.slow


def launch(folder, resume_from="none"):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = Path(__file__).with_name("two_ranks.py")
    run = subprocess.run(
        [*command, str(script), str(folder), str(resume_from)],
        capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    name = Path(str(resume_from)).name
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
    resumed = launch(folder, folder / "out" / f"checkpoint-{step}")
    for rank, full in zip(resumed, whole):
        assert rank["seen"] == full["seen"][2 * step :]
        assert rank["losses"] == full["losses"] and rank["sum"] == full["sum"]


def test_a_stream_gives_pure_steps_too(folder):
    ranks = launch(folder, "stream")
    check_pure(ranks)
    assert sum(size for rank in ranks for _, size in rank["seen"]) == 19


def test_fsdp2_has_the_losses_of_ddp(folder, whole):
    ranks = launch(folder, "fsdp2")
    check_pure(ranks)
    for rank, full in zip(ranks, whole):
        assert rank["seen"] == full["seen"]
        assert rank["losses"] == pytest.approx(full["losses"], rel=1e-4)
        assert rank["sum"] == pytest.approx(full["sum"], rel=1e-5)
