"""Tiny random models and prompts for the model's tests, made on the spot."""

from types import MethodType

import torch

from modeling_vift import VIFTConfig, VIFTForConditionalGeneration

PAD, EOS, IMAGE, LAYERS = 0, 1, 60, 4
TOKENS_PER_IMAGE = 4


def tiny_config(**kwargs) -> VIFTConfig:
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        "vision_use_head": False,
    }
    text = {
        "model_type": "qwen2",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    text |= kwargs.pop("text_config", {})
    return VIFTConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=TOKENS_PER_IMAGE,
        **kwargs,
    )


def tiny_model(seed=0, dtype=torch.float64, **kwargs) -> VIFTForConditionalGeneration:
    """Weights drawn large, so that every layer matters and greedy answers are not one token repeated."""
    torch.manual_seed(seed)
    model = VIFTForConditionalGeneration(tiny_config(**kwargs))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.1 if "norm" in name or name.endswith("bias") else 0.35
            parameter.normal_(0.0, scale)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    model.generation_config.pad_token_id = PAD
    return (in_float64(model) if dtype == torch.float64 else model.to(dtype)).eval()


def rms_norm(self, x):
    return self.weight * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.variance_epsilon)


def rotary(self, x, position_ids):
    half = torch.arange(self.config.hidden_size // self.config.num_attention_heads // 2)
    theta = self.config.rope_parameters["rope_theta"]
    angles = position_ids[..., None].double() * theta ** (-half.double() / len(half))
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def in_float64(model):
    """The model in float64 throughout: Qwen2 computes norms and rotary angles in float32 whatever its dtype."""
    model = model.double()
    for module in model.modules():
        if type(module).__name__ == "Qwen2RMSNorm":
            module.forward = MethodType(rms_norm, module)
        elif type(module).__name__ == "Qwen2RotaryEmbedding":
            module.forward = MethodType(rotary, module)
    return model


# Token ids of prompts with 1, 2, 0 and 1 images (image in mid-text, at the start, at the end of the text)
IMG = [IMAGE] * TOKENS_PER_IMAGE
PROMPTS = [
    [3, 4, 5, *IMG, 6, 7, 8, 9],
    [10, *IMG, 11, *IMG, 12, 13],
    [14, 15, 16, 17, 18],
    [*IMG, 19, 20, 21, 22, 23, 24],
]
NUM_IMAGES = [1, 2, 0, 1]
STRONG = {"beta": 0.4, "fusion_layers": 1.0}
GREEDY = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [IMAGE]}
DETAILS = {"output_logits": True, "return_dict_in_generate": True}


def logits_of(out) -> torch.Tensor:
    """(B, new tokens, V) of an output of `generate(**DETAILS)`."""
    return torch.stack(out.logits, dim=1)


def tiny_images(seed=0, dtype=torch.float64) -> torch.Tensor:
    """All images of PROMPTS, row after row: (4, 3, 16, 16)."""
    return torch.randn(sum(NUM_IMAGES), 3, 16, 16, generator=torch.Generator().manual_seed(seed)).to(dtype)


def images_of(row: int, **kwargs) -> torch.Tensor:
    start = sum(NUM_IMAGES[:row])
    return tiny_images(**kwargs)[start : start + NUM_IMAGES[row]]


def row_inputs(row: int, **kwargs) -> dict:
    """Inputs of one prompt alone."""
    ids = torch.tensor([PROMPTS[row]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | ({"pixel_values": images_of(row, **kwargs)} if NUM_IMAGES[row] else {})


def batch_inputs(rows=(0, 1, 2, 3), pad_to=None, **kwargs) -> dict:
    """The prompts left-padded to one batch."""
    width = pad_to or max(len(PROMPTS[row]) for row in rows)
    ids = torch.tensor([[PAD] * (width - len(PROMPTS[row])) + PROMPTS[row] for row in rows])
    images = [images_of(row, **kwargs) for row in rows]
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "pixel_values": torch.cat(images)}


def text_passes(model) -> list:
    """The (rows, tokens) of each text run that `model` makes from now on."""
    passes = []

    def note(module, args, kwargs):
        if type(kwargs.get("fusion")).__name__ == "LayerRecorder" and "pixel_values" not in kwargs:
            passes.append(tuple(kwargs["input_ids"].shape))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return passes
