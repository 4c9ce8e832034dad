"""Step time and optimizer memory of training a band of layers, side by side with full training in one run.

    python studies/benchmarks/band.py [--layers 24] [--width 256] [--steps 5] [--json FILE]

One model with random weights; what is trained is switched between steps, the settings in turn, so that the machine's
drift hits all alike. A step is forward, backward and AdamW on one batch of image rows or of text rows, with gradient
checkpointing as in the recipes. Figures are medians, as a share of full training (language model and connector).
Memory: bytes of gradients and AdamW's moments, counted from the tensors.
"""

import argparse
import statistics
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from modeling_vift import VIFTConfig, VIFTForConditionalGeneration
from vift_eval.files import command_line, made_by, write_json
from vift_train.trainer import is_trained


def settings(layers: int) -> dict:
    """Name -> (train_language_model, train_connector, band)."""
    first, last = layers // 3, 2 * layers // 3
    return {
        "full": (True, True, None),
        f"layers {first}:{last} + connector": (True, True, range(first, last)),
        f"layers {first}:{last}, connector frozen": (True, False, range(first, last)),
        f"layers {last}:{layers} + connector": (True, True, range(last, layers)),
        "connector only (stage 1)": (False, True, None),
    }


def build(layers: int, width: int, vocabulary=4096, image_token=4095, image_size=64, tower_layers=2):
    """A VIFT with random weights: patches of 8 pixels, a head per 64 of the width."""
    heads = max(1, width // 64)
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 128, "image_size": image_size,
        "num_hidden_layers": tower_layers, "num_attention_heads": 2, "patch_size": 8, "vision_use_head": False,
    }  # fmt: skip
    text = {
        "model_type": "qwen2", "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 4 * width,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads,
    }  # fmt: skip
    torch.manual_seed(0)
    tokens = (image_size // 8) ** 2
    config = VIFTConfig(vision_config=vision, text_config=text, image_token_index=image_token, image_seq_length=tokens)
    return VIFTForConditionalGeneration(config).train()


def batch(kind: str, rows: int = 4, text_tokens: int = 128) -> dict:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 4000, (rows, text_tokens), generator=generator)
    if kind == "text":
        return {"input_ids": ids, "labels": ids}
    image = torch.full((rows, 64), 4095)
    labels = torch.cat([torch.full((rows, 64), -100), ids], dim=1)
    pixels = torch.randn(rows, 3, 64, 64, generator=generator)
    return {"input_ids": torch.cat([image, ids], dim=1), "labels": labels, "pixel_values": pixels}


def one_step(model, inputs, optimizer) -> float:
    start = time.perf_counter()
    model(**inputs).loss.backward()
    optimizer.step()
    seconds = time.perf_counter() - start
    optimizer.zero_grad(set_to_none=True)
    return seconds


def measure(layers: int, width: int, steps: int) -> dict:
    model, batches = build(layers, width), {kind: batch(kind) for kind in ("image", "text")}
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()
    seconds: dict = {name: {"image": [], "text": []} for name in settings(layers)}
    memory = {}
    for step in range(steps + 1):  # the first round warms up
        for name, (language_model, connector, band) in settings(layers).items():
            args = SimpleNamespace(
                train_language_model=language_model, train_connector=connector, train_vision_tower=False
            )
            for parameter_name, parameter in model.named_parameters():
                parameter.requires_grad = is_trained(parameter_name, args, band)
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=1e-5)
            for kind, inputs in batches.items():
                if kind == "text" and not language_model:
                    continue
                taken = one_step(model, inputs, optimizer)
                if step:
                    seconds[name][kind].append(taken)
            # gradient and two moments, each as large as the parameter
            memory[name] = 3 * sum(p.numel() * p.element_size() for p in trained)
    full = {kind: statistics.median(values) for kind, values in seconds["full"].items()}
    return {
        name: {
            **{f"{k}_step": round(statistics.median(v) / full[k], 3) for k, v in seconds[name].items() if v},
            "gradient_and_optimizer_bytes": round(memory[name] / memory["full"], 3),
        }
        for name in seconds
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    results = measure(args.layers, args.width, args.steps)
    for name, row in results.items():
        image, text = row["image_step"], row.get("text_step")
        text = "  none" if text is None else f"{text:6.2f}"
        print(
            f"{name:32s} image step {image:5.2f}  text step {text}  memory {row['gradient_and_optimizer_bytes']:5.2f}"
        )
    if args.json:
        shape = {"layers": args.layers, "width": args.width, "steps": args.steps, "threads": torch.get_num_threads()}
        write_json(args.json, {"made": made_by(command_line(__file__, argv)), **shape, "results": results})


if __name__ == "__main__":
    main()
