"""Run by test_resume.py: trains, and kills itself (SIGKILL) after a given step, or resumes and finishes."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.train.tiny_run import dataset, losses, rows, trainer  # noqa: E402


class Kill(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder, stage, kind, kill_at):
    folder, kill_at = Path(folder), int(kill_at)
    images, texts = (21, 0) if stage == "1" else (13, 6)
    data, kwargs = dataset(images, texts), {}
    if kind == "stream":
        from datasets import IterableDataset

        data = IterableDataset.from_generator(rows, gen_kwargs={"images": images, "texts": texts})
        kwargs = {"max_steps": 12}
    run = trainer(folder / "start", folder / "out", data, stage=int(stage), lr_scheduler_type="cosine", **kwargs)
    if kill_at:
        run.add_callback(Kill(kill_at))
    run.train(resume_from_checkpoint=(folder / "out").exists() and any((folder / "out").glob("checkpoint-*")))
    total = sum(p.detach().double().sum().item() for p in run.model.parameters())
    print("RESULT " + json.dumps({"losses": losses(run), "sum": total, "steps": run.state.global_step}))
    torch.save(run.model.state_dict(), folder / "final.pt")


main(*sys.argv[1:])
