"""One VIFT from a vision tower and a language model, with a fresh connector, and the processor that goes with it.

`vift-init` joins what it downloads, the micro run what it trained itself, and `vift-convert` takes the config and the
processor from here. Config and processor agree on the placeholders because both come from `tokens_per_image`.
"""

import torch
from transformers import AutoConfig, AutoImageProcessor, LlavaProcessor

from modeling_vift import VIFTConfig, VIFTForConditionalGeneration

from .chat import OWN as CHAT_TEMPLATE

IMAGE_TOKEN = "<image>"


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
    dropped = ("_name_or_path", "quantization_config")  # of a GGUF file, whose weights are plain once read
    vision, text = ({k: v for k, v in part.items() if k not in dropped} for part in (vision.to_dict(), text))
    if "vision_use_head" in vision:
        vision["vision_use_head"] = False  # features come from an inner layer
    tokens = tokens_per_image(processor, vision["image_size"], vision["image_size"])
    given = {"image_seq_length": tokens, "vision_feature_select_strategy": processor.vision_feature_select_strategy}
    return VIFTConfig(
        vision_config=vision, text_config=text, image_token_index=processor.image_token_id, **given | fields
    )


def join(tower, language_model, processor, seed: int, **fields) -> VIFTForConditionalGeneration:
    """
    Args:
        tower: the vision model, without a text tower; its weights are copied.
        language_model: a causal language model that has a row for `<image>`; it gives the dtype.
        seed: of the connector.
        fields: of `VIFTConfig`, such as `vision_feature_layer` and `fusion_beta`.

    Raises:
        ValueError: the language model's head is more than a matrix, its logits are not kept, a text does not run
            through it as fusion needs, or the image tokens are not as many as the processor says.
    """
    text, head = language_model.config, language_model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        raise ValueError(f"language_model: the head of a {text.model_type} is no matrix alone, which VIFT's is")
    config = make_config(
        tower.config, text.to_dict(), processor, tie_word_embeddings=text.tie_word_embeddings, **fields
    )
    torch.manual_seed(seed)
    model = VIFTForConditionalGeneration(config).to(language_model.dtype).eval()
    own, weights = model.model.vision_tower, tower.state_dict()
    own.load_state_dict({name: weights[name] for name in own.state_dict()})  # all but its head
    model.model.language_model.load_state_dict(language_model.get_decoder().state_dict())
    model.lm_head.load_state_dict(head.state_dict())
    model.generation_config = language_model.generation_config
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    keep_logits(model, language_model.eval())
    return model


@torch.no_grad()
def keep_logits(model, language_model) -> None:
    """Text logits equal those of the language model; what its own forward multiplies them by goes into the head."""
    ids = torch.tensor([[i for i in range(3, 12) if i != model.config.image_token_id]])
    try:
        ours, theirs = model(input_ids=ids).logits.float(), language_model(input_ids=ids).logits.float()
    except (TypeError, AttributeError, RuntimeError) as error:
        kind = language_model.config.model_type
        raise ValueError(f"language_model: a {kind} does not run inside VIFT ({str(error)[:200]})") from error
    scale = float((theirs * ours).sum() / (ours * ours).sum())
    for name, power in (("logits_scaling", -1), ("logit_scale", 1)):  # their exact values, where they are known
        scale = getattr(language_model.config, name, None) ** power if hasattr(language_model.config, name) else scale
    tolerance = 1e-5 if language_model.dtype in (torch.float32, torch.float64) else 2e-2
    if (ours - theirs).norm() <= tolerance * theirs.norm():
        return
    if (scale * ours - theirs).norm() > tolerance * theirs.norm():
        kind = language_model.config.model_type
        reason = "in a way that VIFT does not have (such as soft-capping)"
        raise ValueError(f"language_model: a {kind} changes its logits after the head {reason}; take another one")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * scale)


@torch.no_grad()
def count_tokens(tower, feature_layer: int, pool: int, shuffle: int) -> tuple[int, int]:
    """
    (tokens that an image takes, tokens before the patches), by one forward pass of the tower.

    Raises:
        ValueError: `pool` and `shuffle` do not divide the side of its grid.
    """
    pixels = tower.config.image_size
    image = torch.zeros(1, getattr(tower.config, "num_channels", 3), pixels, pixels, dtype=tower.dtype)
    output = tower(image, output_hidden_states=True)
    if output.last_hidden_state.ndim == 4:
        maps = (*output.hidden_states, output.last_hidden_state)
        height, width = maps[feature_layer].shape[-2:]
        prefix = 0
    else:
        height = width = pixels // tower.config.patch_size
        prefix = output.hidden_states[feature_layer].shape[1] - height * width
    if prefix < 0 or height != width:
        raise ValueError(f"vision_tower: its features are no square grid ({height} x {width}, {prefix} tokens before)")
    if height // pool % shuffle or height < pool * shuffle:
        raise ValueError(f"pool={pool}, pixel_shuffle={shuffle} do not fit a grid of {height} x {height} patches")
    return (height // pool // shuffle) ** 2, prefix
