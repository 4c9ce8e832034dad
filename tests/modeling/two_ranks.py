"""Run by test_works_with.py under torchrun: a sharded model answers like the whole one."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2]))

from modeling_vift import VIFTForConditionalGeneration  # noqa: E402
from tests.modeling.tiny import IMAGE, batch_inputs, tiny_model  # noqa: E402

STRONG = {"beta": 0.4, "fusion_layers": 1.0}
GREEDY = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [IMAGE]}


def main(mode, folder):
    dist.init_process_group("gloo")
    inputs, model = batch_inputs(dtype=torch.float32), tiny_model(dtype=torch.float32)
    expected = model.generate(**inputs, **GREEDY, **STRONG)
    unfused = model.generate(**inputs, **GREEDY, fusion=False)
    if mode == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        for layer in model.model.language_model.layers:
            fully_shard(layer)
        fully_shard(model)
    else:
        if dist.get_rank() == 0:
            model.save_pretrained(folder)
        dist.barrier()
        model = VIFTForConditionalGeneration.from_pretrained(folder, tp_plan="auto").eval()
    for _ in range(2):
        answer = model.generate(**inputs, **GREEDY, **STRONG, synced_gpus=False)
        assert torch.equal(answer, expected) and not torch.equal(answer, unfused), (answer, expected)
    print(f"rank {dist.get_rank()} equal", flush=True)
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # the threads of gloo sometimes keep a finished process from exiting


main(*sys.argv[1:])
