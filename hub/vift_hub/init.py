"""Build the checkpoint that training starts from: a vision tower, a fresh connector, a language model.

    vift-init --vision-tower google/siglip-so400m-patch14-384 --language-model Qwen/Qwen2.5-7B-Instruct --output START

Adds the `<image>` token, sizes the config, saves weights, processor, template and code, and prints the parameter
counts and what each stage needs in memory.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from .join import IMAGE_TOKEN, join, make_processor, read_vision_config


def build(vision_tower: str, language_model: str, dtype=torch.bfloat16, seed: int = 0, feature_layer: int = -2):
    """
    Args:
        vision_tower: a SigLIP- or CLIP-like model, or its two-tower parent (hub id or folder).
        language_model: a decoder language model with a ChatML tokenizer (hub id or folder).
        dtype: of the weights.
        seed: of the connector.
        feature_layer: hidden state of the tower that is read.

    Returns:
        (model, processor).

    Raises:
        ValueError: the tokenizer lacks ChatML's tokens, or the tower has no vision config.
    """
    vision = read_vision_config(vision_tower)
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    missing = [token for token in ("<|im_start|>", "<|im_end|>") if token not in tokenizer.get_vocab()]
    if missing:
        raise ValueError(f"language_model={language_model}: its tokenizer lacks {', '.join(missing)} (ChatML)")
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    tokenizer.eos_token, tokenizer.padding_side = "<|im_end|>", "left"
    processor = make_processor(vision_tower, vision, tokenizer)
    text = AutoModelForCausalLM.from_pretrained(language_model, dtype=dtype)
    if processor.image_token_id >= text.config.vocab_size:
        text.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tower = AutoModel.from_pretrained(vision_tower, dtype=dtype)
    tower = getattr(tower, "vision_model", tower)
    return join(tower, text, processor, seed, vision_feature_layer=feature_layer), processor


def report(model) -> str:
    """Parameters of each module, and weights + gradients + AdamW in mixed precision (bf16 + fp32), in GiB."""
    counts = {"vision tower": 0, "connector": 0, "language model": 0}
    for name, parameter in model.named_parameters():
        key = "vision tower" if "vision_tower" in name else "connector" if "projector" in name else "language model"
        counts[key] += parameter.numel()
    total = sum(counts.values())
    lines = [f"{name:15s} {count / 1e6:10.1f} M parameters" for name, count in counts.items()]
    trained = {1: counts["connector"], 2: counts["connector"] + counts["language model"]}
    for stage, count in trained.items():
        # bf16 weights of all; of the trained ones a bf16 gradient, fp32 master weights and two fp32 moments
        gib = (2 * total + (2 + 4 + 8) * count) / 2**30
        lines.append(f"stage {stage}: {count / 1e6:8.1f} M trained, {gib:7.1f} GiB without activations, over all GPUs "
                     "when sharded (FSDP2, ZeRO-3)")  # fmt: skip
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="vift-init", description=__doc__.split("\n")[0])
    parser.add_argument("--vision-tower", required=True, help="hub id or folder")
    parser.add_argument("--language-model", required=True, help="hub id or folder")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.output.exists() and any(args.output.iterdir()):
        parser.exit(2, f"vift-init: error: --output={args.output} exists and is not empty\n")
    try:
        model, processor = build(args.vision_tower, args.language_model, getattr(torch, args.dtype), args.seed)
    except (ValueError, OSError) as error:
        parser.exit(2, f"vift-init: error: {' '.join(str(error).split())}\n")
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    print(report(model))
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
