"""One VIFT from a vision tower and a language model, with a fresh connector, and the processor that goes with it.

`vift-init` joins what it downloads, the micro run what it trained itself, and `vift-convert` takes the config and the
processor from here. Config and processor agree on the placeholders because both come from `tokens_per_image`.
"""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoImageProcessor, LlavaProcessor

from modeling_vift import VIFTConfig, VIFTForConditionalGeneration

IMAGE_TOKEN = "<image>"
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def tokens_per_image(processor, height: int, width: int) -> int:
    """Placeholders that an image of height x width pixels takes: its patches and, if it is kept, a class token."""
    patches = (height // processor.patch_size) * (width // processor.patch_size)
    return patches + processor.num_additional_image_tokens - (processor.vision_feature_select_strategy == "default")


def read_vision_config(vision_tower: str):
    """
    The vision config of a tower or of its two-tower parent (hub id or folder).

    Raises:
        ValueError: the model has no patches.
    """
    vision = AutoConfig.from_pretrained(vision_tower)
    vision = getattr(vision, "vision_config", vision)
    if not hasattr(vision, "patch_size"):
        raise ValueError(f"vision_tower={vision_tower} has no patch_size: not a vision transformer")
    return vision


def make_processor(vision_tower: str, vision, tokenizer, keep_class=False, template=CHAT_TEMPLATE) -> LlavaProcessor:
    """
    Args:
        vision_tower: hub id or folder of the image processor.
        vision: the tower's config. CLIP-like towers have a class token, SigLIP-like have none.
        keep_class: whether the language model reads the class token, too.
        template: file of the chat template.
    """
    class_token = "clip" in vision.model_type and "siglip" not in vision.model_type
    return LlavaProcessor(
        image_processor=AutoImageProcessor.from_pretrained(vision_tower, use_fast=False),
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="default" if class_token and not keep_class else "full",
        num_additional_image_tokens=int(class_token),
        chat_template=template.read_text(encoding="utf-8"),
    )


def make_config(vision, text: dict, processor, **fields) -> VIFTConfig:
    """The config of tower (`vision`) and language model (`text`); `fields` are further ones of `VIFTConfig`."""
    vision, text = ({k: v for k, v in part.items() if k != "_name_or_path"} for part in (vision.to_dict(), text))
    if "vision_use_head" in vision:
        vision["vision_use_head"] = False  # features come from an inner layer
    return VIFTConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=processor.image_token_id,
        image_seq_length=tokens_per_image(processor, vision["image_size"], vision["image_size"]),
        vision_feature_select_strategy=processor.vision_feature_select_strategy,
        **fields,
    )


def join(tower, language_model, processor, seed: int, **fields) -> VIFTForConditionalGeneration:
    """
    Args:
        tower: the vision model, without a text tower; its weights are copied.
        language_model: a causal language model that has a row for `<image>`; it gives the dtype.
        seed: of the connector.
        fields: of `VIFTConfig`, such as `vision_feature_layer` and `fusion_beta`.
    """
    text = language_model.config
    config = make_config(
        tower.config, text.to_dict(), processor, tie_word_embeddings=text.tie_word_embeddings, **fields
    )
    torch.manual_seed(seed)
    model = VIFTForConditionalGeneration(config).to(language_model.dtype)
    own, weights = model.model.vision_tower, tower.state_dict()
    own.load_state_dict({name: weights[name] for name in own.state_dict()})  # all but its head
    model.model.language_model.load_state_dict(language_model.model.state_dict())
    model.lm_head.load_state_dict(language_model.lm_head.state_dict())
    model.generation_config = language_model.generation_config
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    return model
