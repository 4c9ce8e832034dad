"""Run by test_kill.py: runs that are killed (SIGKILL) at seeded moments and resumed, beside one that never was.

    python tests/train/kills.py FOLDER KILLS SEED

Kinds of run: from a map-style data set or a stream, of one process or two; the kills are shared out among them.

A moment is the end of a micro-batch, a file in `out` that is opened, renamed or deleted, or one that is half written
(what C++ and Rust write is not seen from Python: it is cut in half and then written again). Runs are forks of this
process, which has imported everything; ranks have torchrun's environment, and when one dies the others are killed.
Every second kill is inside the final save, every third run is killed once more while it resumes.
"""

import hashlib
import json
import os
import random
import signal
import socket
import sys
import traceback
from pathlib import Path

import torch
from datasets import IterableDataset
from safetensors import torch as safetensors_torch
from transformers import modeling_utils

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.modeling.checkpoint import save_checkpoint  # noqa: E402
from tests.train.tiny_run import losses, rows, trainer  # noqa: E402
from vift_train.trainer import VIFTTrainer  # noqa: E402

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "shutil.rmtree")
KINDS = ("map1", "stream1", "map2", "stream2")
STEPS = 9  # a pass is 6 steps of one process, 3 of two


class Moments:
    """Counts moments, kills at one of them."""

    def __init__(self, out: Path, kill_at: int = 0):
        self.out, self.kill_at, self.names = str(out), kill_at, []

    def reach(self, name: str) -> None:
        self.names.append(name)
        if len(self.names) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(self, event, args) -> None:
        if event not in EVENTS or not isinstance(args[0], (str, os.PathLike)):
            return
        writes = event != "open" or (isinstance(args[1], str) and "r" not in args[1])
        if writes and str(args[0]).startswith(self.out + "/"):
            self.reach(f"{event} {Path(args[0]).name}")

    def halved(self, write, place: int):
        """`write`, with a moment at which half of the file is there; `place`: which argument is its path."""

        def twice(*args, **kwargs):
            write(*args, **kwargs)
            file = Path(args[place])
            with open(file, "r+b") as half:
                half.truncate(file.stat().st_size // 2)
            self.reach(f"half of {file.name}")
            return write(*args, **kwargs)

        return twice


class Counted(VIFTTrainer):
    moments = None

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.moments.reach(f"step {self.state.global_step}")
        return loss


def train(folder: Path, kind: str, kill_at: int, rank: int) -> None:
    """One run, in a fork; its result is FOLDER/result-RANK.json."""
    out = folder / "out"
    moments = Counted.moments = Moments(out, kill_at)
    sys.addaudithook(moments.hook)
    torch.save = moments.halved(torch.save, 1)
    modeling_utils.safe_save_file = moments.halved(safetensors_torch.save_file, 1)
    data = IterableDataset.from_generator(rows, gen_kwargs={"images": 13, "texts": 6}) if "stream" in kind else None
    options = {"max_steps": STEPS, "save_steps": 2, "save_total_limit": 2, "lr_scheduler_type": "cosine"}
    run = trainer(folder.parents[1] / "start", out, data, cls=Counted, **options)
    run.train(resume_from_checkpoint=bool(list(out.glob("checkpoint-*"))))
    final = len(moments.names)
    run.save_model()
    weights = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in run.model.parameters())).hexdigest()
    found = {"losses": losses(run), "weights": weights, "final": final, "names": moments.names}
    (folder / f"result-{rank}.json").write_text(json.dumps(found))


def launch(folder: Path, kind: str, kill_at: int = 0, killed_rank: int = 0) -> int:
    """Forks the ranks and waits; 0, or how the first of them to fail ended."""
    world, ranks = int(kind[-1]), {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for rank in range(world):
        if pid := os.fork():
            ranks[pid] = rank
            continue
        if world > 1:
            known = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            os.environ.update({name: str(value) for name, value in known.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        try:
            train(folder, kind, kill_at if rank == killed_rank else 0, rank)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    ended = 0
    while ranks:
        pid, status = os.waitpid(-1, 0)
        del ranks[pid]
        if status and not ended:
            ended = os.waitstatus_to_exitcode(status)
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    return ended


def result(folder: Path, rank: int = 0) -> dict:
    return json.loads((folder / f"result-{rank}.json").read_text())


def kill_and_resume(folder: Path, kind: str, kills: int, rng: random.Random) -> None:
    (folder / "whole").mkdir(parents=True)
    assert launch(folder / "whole", kind) == 0
    whole = [result(folder / "whole", rank) for rank in range(int(kind[-1]))]
    model = (folder / "whole/out/model.safetensors").read_bytes()
    for number in range(kills):
        one = folder / f"killed-{number}"
        one.mkdir()
        first, rank = (whole[0]["final"], 0) if number % 2 == 0 else (0, rng.randrange(len(whole)))
        moment = rng.randint(first + 1, len(whole[rank]["names"]))
        shown = [f"{kind}: rank {rank} killed at moment {moment} ({whole[rank]['names'][moment - 1]})"]
        assert launch(one, kind, moment, rank) == -signal.SIGKILL, shown
        if (one / "out/model.safetensors").exists():
            assert (one / "out/model.safetensors").read_bytes() == model, shown
        if number % 3 == 2:
            again = rng.randint(1, 40)
            ended = launch(one, kind, again)
            shown.append(f"once more at its moment {again} ({'over before' if ended == 0 else 'killed'})")
            assert ended in (0, -signal.SIGKILL), shown
        assert launch(one, kind) == 0, shown
        for rank, expected in enumerate(whole):
            found = result(one, rank)
            assert found["losses"] == expected["losses"] and found["weights"] == expected["weights"], shown
        assert (one / "out/model.safetensors").read_bytes() == model, shown
        assert not (one / "out/.saving").exists()
        print("; ".join(shown), flush=True)
    print(f"{kind}: {len(whole[0]['names'])} moments, {whole[0]['final']} before the final save", flush=True)


def main(folder, kills, seed):
    folder, kills = Path(folder), int(kills)
    for number, kind in enumerate(KINDS):
        (folder / kind).mkdir(parents=True)
        if os.fork() == 0:
            save_checkpoint(folder / kind / "start")
            os._exit(0)
        os.wait()
        share = kills // len(KINDS) + (number < kills % len(KINDS))
        kill_and_resume(folder / kind / "runs", kind, share, random.Random(f"{kind}{seed}"))


main(*sys.argv[1:])
