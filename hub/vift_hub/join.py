"""One VIFT from a vision tower and a language model, with a fresh connector, and the processor that goes with it.

`vift init` joins what it downloads, the micro run what it trained itself, and `vift convert` takes the config and the
processor from here. Config and processor agree on the placeholders because both come from `tokens_per_image`.
"""

from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoImageProcessor, LlavaProcessor

from modeling_vift import VIFTConfig, VIFTForConditionalGeneration

from .chat import OWN as CHAT_TEMPLATE

# our own class reads a checkpoint's config: the Python files that lie in its folder are not run, nor asked for
AutoConfig.register("vift", VIFTConfig, exist_ok=True)
IMAGE_TOKEN = "<image>"
OTHER_MODELS = "take a decoder such as Llama, Qwen2, Qwen3, Mistral, OLMo 2, Gemma 3 or SmolLM"


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
        reason = "has a bias or is no matrix, and VIFT's is a matrix alone: its logits would be others"
        raise ValueError(f"language_model: the head of a {text.model_type} {reason}; {OTHER_MODELS}")
    config = make_config(
        tower.config, text.to_dict(), processor, tie_word_embeddings=text.tie_word_embeddings, **fields
    )
    torch.manual_seed(seed)
    # not `.to(dtype)`, which would round the rotary frequencies too: they stay in float32
    try:
        model = VIFTForConditionalGeneration._from_config(config, dtype=language_model.dtype).eval()
    except (AttributeError, ValueError) as error:
        kind = f"a {text.model_type} does not run inside VIFT ({error})"
        raise ValueError(f"language_model: {kind}; {OTHER_MODELS}") from error
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
    known = language_model.config.to_dict()
    if known.get("logits_scaling") or known.get("logit_scale"):  # the exact value, where it is known
        scale = known.get("logit_scale") or 1 / known["logits_scaling"]
    # the same operations in the same precision; a scaled head is rounded anew, to 8 bits in bfloat16
    tolerance = 1e-5 if language_model.dtype in (torch.float32, torch.float64) else 4e-3
    capped = known.get("final_logit_softcapping")  # small logits would pass for logits that are scaled
    if not capped and (ours - theirs).norm() <= tolerance * theirs.norm():
        return
    if capped or (scale * ours - theirs).norm() > tolerance * theirs.norm():
        kind = language_model.config.model_type
        reason = "in a way that VIFT does not have (such as soft-capping)"
        raise ValueError(f"language_model: a {kind} changes its logits after the head {reason}; {OTHER_MODELS}")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * scale)


@dataclass
class Features:
    """What a tower makes of a picture: the hidden state that is read, its side in patches, tokens before the patches,
    and, of a feature map, its channels."""

    layer: int
    side: int
    prefix: int
    channels: int | None


@torch.no_grad()
def features_of(tower, pixels: int, layer: int | None = None) -> Features:
    """
    By one forward pass of `pixels` x `pixels`; `layer` None: the last but one, of feature maps the last.

    Raises:
        ValueError: the tower reads no such picture, has no such layer, or its features are no square grid.
    """
    image = torch.zeros(2, getattr(tower.config, "num_channels", 3), pixels, pixels, dtype=tower.dtype)
    kind, patch = f"the {tower.config.model_type}", getattr(tower.config, "patch_size", None)
    fits = "take one whose features are one token a patch (SigLIP, CLIP, DINOv2, ViT) or a convolutional feature map"
    try:
        output = tower(image, output_hidden_states=True)
    except (TypeError, ValueError, RuntimeError) as error:
        told = f"does not read {pixels} x {pixels} pixels ({str(error)[:200]})"
        raise ValueError(f"vision_tower: {kind} {told}; {fits}, with the image processor of its size") from error
    states, is_map = getattr(output, "hidden_states", None), getattr(output, "last_hidden_state", image[0]).ndim == 4
    if not states or not (is_map or isinstance(patch, int)):
        raise ValueError(f"vision_tower: {kind} gives no hidden states in patches of one size; {fits}")
    states = (*states, output.last_hidden_state) if is_map else states
    layer = (-1 if is_map else -2) if layer is None else layer
    if not -len(states) <= layer < len(states):
        raise ValueError(f"feature_layer={layer} must be in {-len(states)} ... {len(states) - 1} for this tower")
    if len(states[layer]) != len(image):
        raise ValueError(f"vision_tower: {kind} puts the patches of several pictures into one row; {fits}")
    if is_map and hasattr(tower.config, "num_attention_heads"):
        raise ValueError(f"vision_tower: {kind} has attention and feature maps, which VIFT does not read; {fits}")
    height, width = states[layer].shape[-2:] if is_map else (pixels // patch, pixels // patch)
    prefix = 0 if is_map else states[layer].shape[1] - height * width
    if prefix < 0 or height != width:
        told = f"its {states[layer].shape[1]} features are no square grid of {height} x {width} patches"
        raise ValueError(f"vision_tower: {kind}: {told}; {fits}")
    return Features(layer, height, prefix, states[layer].shape[1] if is_map else None)
