"""Build the checkpoint that training starts from: a vision tower, a fresh connector, a language model.

    vift init --vision-tower google/siglip-so400m-patch14-384 --language-model Qwen/Qwen2.5-7B-Instruct --output START

A part is a Hub id, a folder, a file (.gguf, .pth) or a Python package that carries one. Adds the `<image>` token,
takes the tokenizer's own chat template, sizes the config by one forward pass, compares text logits and image tokens
with the parts', saves weights, processor, template and code, and prints parameter counts and each stage's memory.
"""

from pathlib import Path

import torch
from PIL import Image
from transformers import LlavaProcessor

from modeling_vift.attach_vift import check_text_run

from .chat import template_for
from .cli import hide_bars
from .join import IMAGE_TOKEN, features_of, join
from .output import new_folder
from .parts import image_processor, load_language_model, load_tower


def build(
    vision_tower: str,
    language_model: str,
    dtype=torch.bfloat16,
    seed: int = 0,
    feature_layer: int | None = None,
    pool: int = 1,
    pixel_shuffle: int = 1,
    image_aspect_ratio: str | None = None,
    gguf_file: str | None = None,
):
    """
    Args:
        vision_tower: a SigLIP-, CLIP-, ViT- or DINOv2-like model or its two-tower parent, or an EfficientNet-Lite; hub
            id, folder, file, or `package:NAME`.
        language_model: a decoder language model; the same, or a GGUF file.
        dtype: of the weights.
        seed: of the connector, and of the new row of the embeddings.
        feature_layer: hidden state of the tower that is read; None: the last but one (convolutions: last map).
        pool, pixel_shuffle: patches a side that become one token, by their mean, or side by side.
        image_aspect_ratio: "pad", "square", or None: as the tower's own processor does.
        gguf_file: name of a GGUF file in the folder or repository `language_model`.

    Returns:
        (model, processor).

    Raises:
        ValueError: says which part cannot be used, why, and what would do.
    """
    tower, own_processor = load_tower(vision_tower, dtype)

    def pixels_of(pictures) -> int:
        return pictures(Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"].shape[-1]

    size = getattr(tower.config, "image_size", None) or pixels_of(own_processor)  # a ResNet's config has none
    pictures = image_processor(size, own_processor, image_aspect_ratio)
    pixels = pixels_of(pictures)
    features = features_of(tower, pixels, feature_layer)
    side, prefix, is_map = -(-features.side // pool), features.prefix, features.channels is not None
    if side < pixel_shuffle or side % pixel_shuffle:
        grid = f"{features.side} x {features.side}"
        raise ValueError(f"pool={pool}, pixel_shuffle={pixel_shuffle} do not fit a grid of {grid} patches")
    side //= pixel_shuffle
    text, tokenizer = load_language_model(language_model, dtype, gguf_file)
    template, end = template_for(tokenizer, f"language_model={language_model}")
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    ends = text.generation_config.eos_token_id
    ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.convert_tokens_to_ids(end)} - {None}
    tokenizer.eos_token, tokenizer.padding_side, tokenizer.chat_template = end, "left", None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = end
    plain = pool == pixel_shuffle == 1 and prefix < 2
    processor = LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=tower.config.patch_size if plain and not is_map else pixels // side,
        vision_feature_select_strategy="default" if plain and prefix else "full",
        num_additional_image_tokens=prefix if plain else 0,
        chat_template=template,
    )
    if processor.image_token_id >= text.get_input_embeddings().num_embeddings:
        with torch.random.fork_rng():  # the same parts make the same start
            torch.manual_seed(seed)
            text.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if is_map:  # what a connector reads of one patch, under the names that LLaVA's layout has
        tower.config.hidden_size, tower.config.image_size = features.channels, pixels
    fields = {"vision_feature_layer": features.layer, "vision_pool": pool, "vision_pixel_shuffle": pixel_shuffle}
    fields |= {"image_seq_length": side**2, "vision_prefix_tokens": 0 if plain else prefix}
    model = join(tower, text, processor, seed, **fields)
    model.generation_config.eos_token_id = sorted(ends) if len(ends) > 1 else min(ends)
    check_text_run(model)
    check_tokens(model, processor)
    return model, processor


@torch.no_grad()
def check_tokens(model, processor) -> None:
    """A picture takes as many places in the prompt as the connector gives tokens."""
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    prompt = processor.apply_chat_template(turn, add_generation_prompt=True)
    inputs = processor(text=prompt, images=Image.new("RGB", (90, 70)), return_tensors="pt")
    places = int((inputs["input_ids"] == model.config.image_token_id).sum())
    (features,) = model.model.get_image_features(
        inputs["pixel_values"].to(model.dtype), return_dict=True
    ).pooler_output
    if not places == len(features) == model.config.image_seq_length:
        told = f"{places} places in the prompt, {len(features)} image tokens, {model.config.image_seq_length} expected"
        raise ValueError(f"vision_tower: {told}: its image processor gives other sizes than the tower reads")


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


def write(output: Path, *, dtype: str, seed: int, feature_layer, pool, pixel_shuffle, image_aspect_ratio, gguf_file,
          vision_tower: str, language_model: str) -> str:  # fmt: skip
    """`build` into a new folder; returns `report`."""
    hide_bars()
    model, processor = build(
        vision_tower, language_model, getattr(torch, dtype), seed, feature_layer, pool, pixel_shuffle,
        image_aspect_ratio, gguf_file,
    )  # fmt: skip
    with new_folder(output) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return report(model)
