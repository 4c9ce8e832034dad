"""Run by test_two_ranks.py under torchrun: both ranks see one modality a step, every row once, and stay equal.

    python -m torch.distributed.run --standalone --nproc-per-node=2 tests/train/two_ranks.py FOLDER NAME KIND [RESUME]

FOLDER/start holds the tiny checkpoint; results go to FOLDER/NAME-<rank>.json. KIND:

    ddp      torch's DDP; from a map-style data set
    stream   the same, from a stream
    load     FSDP2, sharded by transformers as the model is loaded
    fsdp2    FSDP2 through accelerate, as `train/recipes/accelerate/fsdp2.yaml` has it
    zero3    DeepSpeed ZeRO-3 (needs deepspeed)
    zero3-sgd  the same with an optimizer that has no memory
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from accelerate.state import PartialState
from accelerate.utils import DistributedType
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


def launch_as(recipe):
    """What `accelerate launch --config_file` does for a worker with FSDP, on CPU, where accelerate would not shard."""
    settings = yaml.safe_load((Path(__file__).parents[2] / "train/recipes/accelerate" / recipe).read_text())
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    for name, value in settings["fsdp_config"].items():
        name = name.upper().replace("TRANSFORMER_LAYER_CLS", "TRANSFORMER_CLS")
        os.environ[name] = str(value).lower() if isinstance(value, bool) else str(value)
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # the tiny model is loaded before
    original = PartialState.__init__

    def as_gpus(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = as_gpus


def settings_of(kind, folder):
    """(data set, keywords of the trainer)."""
    data, kwargs = dataset(13, 6), {"save_steps": 2}
    if kind == "stream":
        from datasets import IterableDataset

        data, kwargs = IterableDataset.from_generator(rows, gen_kwargs={"images": 13, "texts": 6}), {"max_steps": 3}
    elif kind == "load":
        dist.init_process_group("gloo")
        tiny_run.load = load_sharded
        kwargs = {"save_strategy": "no"}  # transformers cannot resume a model that is sharded at load time
    elif kind == "fsdp2":
        launch_as("fsdp2.yaml")
    elif kind.startswith("zero3"):
        zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
        sizes = dict.fromkeys(
            ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size"), "auto"
        )
        kwargs = {"deepspeed": {"zero_optimization": zero, "gradient_clipping": "auto", **sizes}}
        kwargs |= {"save_strategy": "no"}
    if kind.endswith("sgd"):
        kwargs |= {"optim": "sgd", "learning_rate": 0.05}
    return data, kwargs


def main(folder, name, kind, resume_from=None):
    folder, Recording.seen = Path(folder), []
    data, kwargs = settings_of(kind, folder)
    run = trainer(folder / "start", folder / f"out-{kind}", data, cls=Recording, **kwargs)
    run.train(resume_from_checkpoint=resume_from)
    assert kind != "fsdp2" or any(isinstance(p, DTensor) for p in run.model.parameters())
    found = {"seen": Recording.seen, "losses": losses(run)}
    if not kind.startswith("zero3"):
        whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in run.model.parameters()]
        flat = torch.cat([p.detach().flatten() for p in whole])
        gathered = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, flat)
        assert all(torch.equal(other, flat) for other in gathered), "ranks ended with other parameters"
        found["sum"] = flat.double().sum().item()
    (folder / f"{name}-{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # the threads of gloo sometimes keep a finished process from exiting


main(*sys.argv[1:])
