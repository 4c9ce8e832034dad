"""Run by test_two_ranks.py under torchrun: both ranks see one modality a step, every row once, and stay equal."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import AutoProcessor
from transformers.distributed import DistributedConfig

sys.path.insert(0, str(Path(__file__).parents[2]))

from modeling_vift import VIFTForConditionalGeneration  # noqa: E402
from tests.train import tiny_run  # noqa: E402
from tests.train.tiny_run import dataset, losses, rows, trainer  # noqa: E402
from vift_train.trainer import VIFTTrainer  # noqa: E402


class Recording(VIFTTrainer):
    """Writes down the modality and the size of every micro-batch."""

    seen = None

    def training_step(self, model, inputs, *args, **kwargs):
        self.seen.append(("image" if "pixel_values" in inputs else "text", len(inputs["input_ids"])))
        return super().training_step(model, inputs, *args, **kwargs)


def load_sharded(folder):
    """The tiny model under FSDP2, sharded over the ranks as it is loaded."""
    model = VIFTForConditionalGeneration.from_pretrained(folder, distributed_config=DistributedConfig(fsdp_size=2))
    assert any(isinstance(p, DTensor) for p in model.parameters())
    return model, AutoProcessor.from_pretrained(folder, trust_remote_code=True)


def main(folder, resume_from):
    folder, Recording.seen = Path(folder), []
    stream = resume_from == "stream"
    if resume_from == "fsdp2":
        dist.init_process_group("gloo")
        tiny_run.load = load_sharded
    data = dataset(13, 6)
    kwargs = {"save_steps": 2}
    if stream:
        from datasets import IterableDataset

        data, kwargs = IterableDataset.from_generator(rows, gen_kwargs={"images": 13, "texts": 6}), {"max_steps": 3}
    if resume_from == "fsdp2":
        kwargs = {"save_strategy": "no"}  # transformers cannot resume a model that is sharded at load time
    run = trainer(folder / "start", folder / "out", data, cls=Recording, **kwargs)
    run.train(resume_from_checkpoint=None if resume_from in ("none", "stream", "fsdp2") else resume_from)
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in run.model.parameters()]
    flat = torch.cat([p.detach().flatten() for p in whole])
    gathered = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, flat)
    assert all(torch.equal(other, flat) for other in gathered), "ranks ended with other parameters"
    found = {"seen": Recording.seen, "losses": losses(run), "sum": flat.double().sum().item()}
    (folder / f"{Path(resume_from).name}-{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # the threads of gloo sometimes keep a finished process from exiting


main(*sys.argv[1:])
