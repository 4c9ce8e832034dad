"""What a training step of the 7B model needs in memory, counted at its real shapes without running it.

    python studies/benchmarks/memory.py [--rows 4] [--gpus 8] [--json FILE]

The modules of arXiv 2502.11427 (28 layers x 3584 of Qwen2.5-7B, the connector, 729 image tokens) run on fake tensors,
which have shapes and types but no data; autograd's hooks count the bytes that each saves for backward, every storage
once. Attention is PyTorch's fused kernel (no T x T matrix), compute is bfloat16. With gradient checkpointing a layer
keeps its input, and one layer at a time everything. The loss head keeps its input and one tile of logits (TRL's fused
head works on 4,096 tokens x 32,768 words at a time). Weights, gradients and AdamW's moments follow from the parameter
counts:

    FSDP2     fp32 weights, gradients and two moments, sharded: 16 bytes a trained parameter over all GPUs
    ZeRO-3    bf16 weights, fp32 weights and two moments, fp32 gradients, sharded: 18 bytes

and two layers (one at work, the next being gathered), the embedding and the head in bf16 on every GPU, with the head's
gradient. Fragmentation and the communication library's buffers come on top (a few GiB).
"""

import argparse
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModel
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from modeling_vift import VIFTConfig
from vift_eval.files import command_line, made_by, write_json

GIB = 2**30
LOSS_TILE = 4096 * 32768 * (2 + 4)  # bytes: the tile in bf16 and, on the way, in fp32
STEPS = {"image": 729 + 150, "text": 1500}  # the longest rows of the paper's profile, tokens


def saved_bytes(module: torch.nn.Module, *args, **kwargs) -> int:
    """Bytes that the forward of `module` keeps for its backward, its weights not counted."""
    weights = {p.untyped_storage()._cdata for p in module.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, so that no other storage takes its address
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(*args, **kwargs)
    del output
    return sum(storage.nbytes() for storage in kept.values())


def in_dtype(dtype, build):
    """A module made in `dtype`: fake tensors can't be converted in place."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return build()
    finally:
        torch.set_default_dtype(default)


def layer_bytes(config, rows: int, tokens: int, dtype=torch.bfloat16) -> int:
    """Of one decoder layer of `config` (a Qwen2Config) over (rows, tokens)."""
    layer = in_dtype(dtype, lambda: Qwen2DecoderLayer(config, layer_idx=0)).train()
    hidden = torch.empty(rows, tokens, config.hidden_size, dtype=dtype, requires_grad=True)
    width = config.hidden_size // config.num_attention_heads
    angles = torch.empty(rows, tokens, width, dtype=dtype)
    return saved_bytes(layer, hidden, position_embeddings=(angles, angles), attention_mask=None)


def parameter_counts(config: VIFTConfig) -> dict:
    with torch.device("meta"):
        text, vision = AutoModel.from_config(config.text_config), AutoModel.from_config(config.vision_config)
        connector = LlavaMultiModalProjector(config)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    head = config.text_config.vocab_size * config.text_config.hidden_size  # of its own size at 7B, not tied
    return {
        "language_model": count(text) + head,
        "connector": count(connector),
        "vision_tower": count(vision),
        "layer": count(text.layers[0]),
        "head": head,
    }


def measure(rows: int, gpus: int) -> dict:
    config = VIFTConfig()
    text = config.text_config
    text._attn_implementation = "sdpa"
    counts = parameter_counts(config)
    activations = {}
    with FakeTensorMode():
        for kind, tokens in STEPS.items():
            layer, states = layer_bytes(text, rows, tokens), rows * tokens * text.hidden_size * 2
            outside = states + LOSS_TILE
            if kind == "image":
                connector = in_dtype(torch.bfloat16, lambda: LlavaMultiModalProjector(config))
                pictures = torch.empty(rows, 729, config.vision_config.hidden_size, dtype=torch.bfloat16)
                outside += saved_bytes(connector, pictures)
            layers = text.num_hidden_layers
            activations[kind] = {
                "layer": layer,
                "checkpointed": layers * states + layer + outside,
                "all_kept": layers * layer + outside,
            }
    trained = counts["language_model"] + counts["connector"]
    gathered = 2 * (2 * counts["layer"] + 2 * counts["head"]) + 2 * counts["head"]
    state = {"FSDP2": 16 * trained + 4 * counts["vision_tower"], "ZeRO-3": 18 * trained + 2 * counts["vision_tower"]}
    return {
        "parameters": counts,
        "activations": activations,
        "gathered": gathered,
        "per_gpu": {
            name: {
                "state": round(total / gpus / GIB, 1),
                **{
                    f"{kind}_step": round((total / gpus + gathered + activations[kind]["checkpointed"]) / GIB, 1)
                    for kind in STEPS
                },
            }
            for name, total in state.items()
        },
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=4, help="rows a micro-batch on each GPU")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    needed = measure(args.rows, args.gpus)
    print("parameters: " + ", ".join(f"{name} {count / 1e6:,.0f} M" for name, count in needed["parameters"].items()))
    for kind, tokens in STEPS.items():
        one = needed["activations"][kind]
        print(
            f"{kind} step, {args.rows} x {tokens} tokens: {one['layer'] / GIB:.2f} GiB a layer; with gradient "
            f"checkpointing {one['checkpointed'] / GIB:.1f} GiB in all, without {one['all_kept'] / GIB:.1f} GiB"
        )
    print(f"gathered on every GPU: {needed['gathered'] / GIB:.1f} GiB")
    for name, row in needed["per_gpu"].items():
        peaks = f"{row['image_step']} in an image step, {row['text_step']} in a text step"
        print(f"{name} on {args.gpus} GPUs: state {row['state']} GiB a GPU, peak {peaks}")
    if args.json:
        made = made_by(command_line(__file__, argv))
        write_json(args.json, {"made": made, "rows": args.rows, "gpus": args.gpus, **needed})


if __name__ == "__main__":
    main()
