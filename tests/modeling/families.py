"""Tiny random models of the vision-language families that `attach_fusion` takes, with a padded batch for each.

Four rows: an image in mid-text, two images, no image, an image at the start. Weights are drawn large, so that every
layer matters and greedy answers are not one token repeated.
"""

from dataclasses import dataclass

import torch
import transformers

PAD, EOS, IMAGE, VIDEO, START, END = 0, 1, 60, 61, 62, 63
TEXTS = [([3, 4, 5], [6, 7, 8, 9]), ([10], [11], [12, 13]), ([14, 15, 16, 17, 18],), ([], [19, 20, 21, 22, 23])]
NUM_IMAGES = [len(texts) - 1 for texts in TEXTS]
LAYERS = 4

QWEN2 = {
    "model_type": "qwen2",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": EOS,
    "bos_token_id": 2,
    "pad_token_id": PAD,
}
LLAMA = QWEN2 | {"model_type": "llama"}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
QWEN2_VL = {k: v for k, v in QWEN2.items() if k != "model_type"} | MROPE
QWEN3_VL = QWEN2_VL | {"head_dim": 8}
GEMMA3 = QWEN2 | {
    "model_type": "gemma3_text",
    "head_dim": 8,
    "sliding_window": 6,
    "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIGLIP = TOWER | {"model_type": "siglip_vision_model", "image_size": 8, "patch_size": 4, "vision_use_head": False}
CLIP = TOWER | {"model_type": "clip_vision_model", "image_size": 8, "patch_size": 4}
QWEN_TOWER = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "in_channels": 3}
ANYRES = {"image_grid_pinpoints": [[8, 16], [16, 8]], "image_token_index": IMAGE}
IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}


@dataclass
class Family:
    """`wrap`: the ids before and after an image's placeholders; `attach`: what `attach_fusion` must be told."""

    name: str
    config: dict
    wrap: tuple = ((), ())
    attach: dict | None = None
    images: str = "flat"

    def model(self, seed=0, dtype=torch.float64):
        torch.manual_seed(seed)
        config = getattr(transformers, self.name + "Config")(tie_word_embeddings=False, **self.config)
        model = getattr(transformers, self.name + "ForConditionalGeneration")(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name and name.endswith("weight"):
                    parameter.normal_(0.0 if "Gemma" in self.name and "language" in name else 1.0, 0.1)
                else:
                    parameter.normal_(0.0, 0.1 if name.endswith("bias") else 0.3)
        model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD, EOS
        return model.to(dtype).eval()

    def vision_inputs(self, rows, dtype=torch.float64) -> dict:
        """What the processor would give with `input_ids` for the images of `rows`."""
        per_row = [
            torch.randn(NUM_IMAGES[row], 3, 8, 8, generator=torch.Generator().manual_seed(row)).to(dtype)
            for row in rows
        ]
        images = torch.cat(per_row)
        if self.images == "flat":
            return {"pixel_values": images}
        if self.images == "nested":  # (B, most images in a row, 3, H, W), padded with zeros
            nested = images.new_zeros(len(rows), max(map(len, per_row)), 3, 8, 8)
            for row, own in zip(nested, per_row):
                row[: len(own)] = own
            return {"pixel_values": nested}
        if self.images == "anyres":  # the image and two tiles of it
            return {
                "pixel_values": torch.stack([images, images.flip(2), images.flip(3)], dim=1),
                "image_sizes": torch.tensor([[8, 16]] * len(images)),
            }
        # Qwen: flat patches, and the grid of each image; here 4 x 4 patches, merged to 2 x 2
        patches = torch.cat([images.roll(shift, dims=3) for shift in range(8)], dim=1).reshape(len(images) * 16, -1)
        return {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, 4, 4]] * len(images))}

    def features(self, model, inputs) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """(features of each image, (N, D) each; deepstack features of all images), by the native tower."""
        vision = {name: value for name, value in inputs.items() if name in ("pixel_values", "image_sizes")}
        if "image_grid_thw" in inputs:
            vision["image_grid_thw"] = inputs["image_grid_thw"]
        with torch.no_grad():
            out = model.model.get_image_features(**vision, return_dict=True)
        pooled = out.pooler_output
        if self.images == "nested":
            pooled = [one for row in pooled for one in row.reshape(-1, 4, row.shape[-1])]
        return list(pooled), [torch.cat(layer) for layer in getattr(out, "deepstack_features", None) or []]

    def prompt(self, row: int, length: int) -> list[int]:
        """Token ids of a row whose images take `length` tokens each."""
        before, after = self.wrap
        ids = list(TEXTS[row][0])
        for text in TEXTS[row][1:]:
            ids += [*before, *[IMAGE] * length, *after, *text]
        return ids

    def batch(self, model, rows=(0, 1, 2, 3), dtype=torch.float64) -> dict:
        """The rows left-padded to one batch."""
        vision = self.vision_inputs(rows, dtype)
        length = len(self.features(model, self.vision_inputs((0,), dtype))[0][0])
        prompts = [self.prompt(row, length) for row in rows]
        width = max(map(len, prompts)) + 1
        ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
        inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long(), **vision}
        if self.images == "patches":
            inputs["mm_token_type_ids"] = (ids == IMAGE).int()
        if self.name == "Gemma3":
            inputs["token_type_ids"] = (ids == IMAGE).int()
        return inputs


def _idefics(name):
    config = {
        "vision_config": TOWER | {"image_size": 8, "patch_size": 2},
        "text_config": LLAMA,
        "image_token_id": IMAGE,
        "scale_factor": 2,
        "pad_token_id": PAD,
    }
    return Family(name, config, ((START,), (END,)), {"image_wrapper_token_ids": [START, END]}, "nested")


FAMILIES = [
    Family("Llava", {"vision_config": CLIP, "text_config": LLAMA, "image_token_index": IMAGE}),
    Family("LlavaNext", {"vision_config": CLIP, "text_config": LLAMA, **ANYRES}, images="anyres"),
    Family(
        "LlavaOnevision",
        {"vision_config": SIGLIP, "text_config": QWEN2, "video_token_index": VIDEO, **ANYRES},
        images="anyres",
    ),
    Family(
        "Qwen2VL",
        {"vision_config": QWEN_TOWER | {"embed_dim": 16}, "text_config": QWEN2_VL, **IDS},
        ((START,), (END,)),
        images="patches",
    ),
    Family(
        "Qwen2_5_VL",
        {
            "vision_config": QWEN_TOWER
            | {"out_hidden_size": 32, "intermediate_size": 32, "fullatt_block_indexes": [1], "window_size": 16},
            "text_config": QWEN2_VL,
            **IDS,
        },
        ((START,), (END,)),
        images="patches",
    ),
    Family(
        "Qwen3VL",
        {
            "vision_config": QWEN_TOWER
            | {
                "hidden_size": 16,
                "out_hidden_size": 32,
                "intermediate_size": 32,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0, 1],
            },
            "text_config": QWEN3_VL,
            **IDS,
        },
        ((START,), (END,)),
        images="patches",
    ),
    _idefics("SmolVLM"),
    _idefics("Idefics3"),
    Family(
        "Gemma3",
        {
            "vision_config": SIGLIP,
            "text_config": GEMMA3,
            "mm_tokens_per_image": 4,
            "image_token_index": IMAGE,
            "boi_token_index": START,
            "eoi_token_index": END,
        },
        ((START,), (END,)),
    ),
    Family(
        "InternVL",
        {
            "vision_config": TOWER | {"image_size": [8, 8], "patch_size": [2, 2]},
            "text_config": QWEN2,
            "image_token_id": IMAGE,
            "image_seq_length": 4,
        },
        ((START,), (END,)),
        {"image_wrapper_token_ids": [START, END]},
    ),
]
