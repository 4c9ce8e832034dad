"""Convert between VIFT, transformers' LLaVA layout, and LLaVA-1.5's or Bunny's own layout; logits stay equal.

The source is a folder or a Hub id. LLaVA-1.5's own layout has `mm_projector` weights, the image token -200 and often
no tower: its config, image processor and, where the checkpoint has none, weights are those of `--vision-tower`, or of
the tower that the config names. A `repetition_penalty` in the checkpoint's generation config is kept:
`--repetition-penalty 1` resets it.
"""

import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from modeling_vift import VIFTConfig, VIFTForConditionalGeneration

from .cli import hide_bars
from .join import tokens_per_image
from .original import CONVERSATIONS, QWEN2, all_there, from_original
from .output import check_new, new_folder

FILES = (
    "config.json",
    "*_config.json",
    "tokenizer.json",
    "*.index.json",
    "*.safetensors",
)  # of a model; others are a person's


def read_config(source: Path, kind: str | None = None, hint: str = "") -> dict:
    """
    config.json of a folder whose other files can be read, too.

    Raises:
        ValueError: a file is missing or broken, or a LLaVA without tower or language model (it names the file); a
            `model_type` other than `kind` (`hint` says what would do).
    """
    if not (source / "config.json").is_file():
        raise ValueError(f"source={source} holds no config.json")
    config = None
    for file in (file for pattern in FILES for file in sorted(source.glob(pattern))):
        try:
            found = json.loads(file.read_bytes()) if file.suffix == ".json" else {"": safe_open(file, "pt")}
        except (ValueError, OSError, SafetensorError) as error:
            raise ValueError(f"{file} does not load: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{file} holds a {type(found).__name__}, not names with values")
        config = found if config is None else config
        if kind not in (None, config.get("model_type")):
            raise ValueError(f"source={source} is a {config.get('model_type')!r}, {hint}")
    parts = ("vision_config", "text_config") if config.get("model_type") in ("llava", "vift") else ()
    for part in parts if not {"mm_projector_type", "mm_vision_tower"} & config.keys() else ():
        if not isinstance(config.get(part), dict):  # transformers would take LLaVA-1.5's
            raise ValueError(f"{source / 'config.json'} has no {part}")
    return config


def to_vift(source: Path, **original):
    """
    VIFT model and processor from a LLaVA of transformers or a checkpoint in LLaVA-1.5's own layout (`original`:
    arguments of `from_original`, for the latter only).

    Raises:
        ValueError: another kind of checkpoint; weights that are missing, left over or of another shape.
    """
    config = read_config(source)
    if "mm_projector_type" in config or "mm_vision_tower" in config:
        return from_original(source, config, **original)
    if config.get("model_type") != "llava":
        raise ValueError(
            f"source={source} is a {config.get('model_type')!r}, neither a LLaVA layout nor LLaVA-1.5's own"
        )
    for name, value in original.items():
        if value:
            raise ValueError(
                f"{name}={value}: source={source} is in transformers' layout and has its own; leave it out"
            )
    fields = LlavaConfig.from_pretrained(source).to_dict()
    fields = {name: value for name, value in fields.items() if name not in ("model_type", "architectures")}
    return read(VIFTForConditionalGeneration, source, VIFTConfig(**fields))


def to_llava(source: Path):
    """
    transformers' LLaVA and its processor from a VIFT: same weights, no fusion.

    Raises:
        ValueError: not a VIFT, or one with another connector; weights that are missing or left over.
    """
    read_config(source, "vift", "not a VIFT")
    fields = VIFTConfig.from_pretrained(source).to_dict()
    connector = {"vision_prefix_tokens": 0, "vision_pool": 1, "vision_pixel_shuffle": 1}
    for name, plain in connector.items():
        if fields[name] != plain:
            raise ValueError(f"source={source} has {name}={fields[name]}, for which LLaVA's layout has no place")
    dropped = ("model_type", "architectures", "auto_map", "image_wrapper_token_ids", *connector)
    fields = {n: value for n, value in fields.items() if n not in dropped and not n.startswith("fusion_")}
    return read(LlavaForConditionalGeneration, source, LlavaConfig(**fields))


def read(cls, source: Path, config):
    """(model, processor) of a folder; a ValueError where weights are missing, left over or of another shape."""
    model, loading = cls.from_pretrained(source, config=config, dtype="auto", output_loading_info=True)
    all_there(source, loading)
    processor, vision = LlavaProcessor.from_pretrained(source), config.vision_config
    # old configs and processors do not say how many tokens an image has (transformers takes 576): the tower does
    size = [vision.image_size] * 2 if isinstance(vision.image_size, int) else vision.image_size
    with torch.no_grad():
        features = model.get_image_features(torch.zeros(1, vision.num_channels, *size, dtype=model.dtype))
    config.image_seq_length = model.config.image_seq_length = len(features.pooler_output[0])
    processor.patch_size = vision.patch_size
    processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    processor.num_additional_image_tokens = 0
    processor.num_additional_image_tokens = config.image_seq_length - tokens_per_image(processor, *size)
    return model, processor


def convert(source: str, output: Path, to: str = "vift", *, repetition_penalty: float | None = None, **original):
    """
    Args:
        source: folder or Hub id.
        output: a folder that is new or empty.
        to: "vift", or "llava" for transformers' LLaVA layout.
        repetition_penalty: of the generation config, > 0; None keeps the checkpoint's.
        original: for LLaVA-1.5's, Bunny's and ViFT's own layout only: `vision_tower` and `language_model` (folder or
            Hub id), `conversation` (a name in CONVERSATIONS).

    Returns:
        (model, processor), as written.

    Raises:
        ValueError: `output` is not empty, the source is of another kind, or an argument does not go with it.
    """
    check_new(output)
    if repetition_penalty is not None and not 0 < repetition_penalty < float("inf"):
        raise ValueError(f"repetition_penalty={repetition_penalty}: a number > 0; 1 is none")
    if original.get("conversation") not in (None, *CONVERSATIONS):
        raise ValueError(f"conversation={original['conversation']!r}: one of {', '.join(CONVERSATIONS)}")
    hide_bars()
    folder = Path(source) if Path(source).is_dir() else Path(snapshot_download(source))
    if to == "llava" and any(original.values()):
        name = next(name for name, value in original.items() if value)
        raise ValueError(f"{name}={original[name]}: for to='vift' only; leave it out")
    try:
        model, processor = to_llava(folder) if to == "llava" else to_vift(folder, **original)
    except Exception as error:  # whatever a file that is broken makes its reader raise
        raise ValueError(str(error) if str(folder) in str(error) else f"source={source}: {error!r}") from error
    if repetition_penalty is not None:
        model.generation_config.repetition_penalty = repetition_penalty
    with new_folder(output) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return model, processor


def report(model, processor, conversation: str | None) -> str:
    """What was written, and what one may want otherwise."""
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    lines = [f"{type(model).__name__}, {size:.1f} M parameters"]
    if (penalty := model.generation_config.repetition_penalty) not in (None, 1):
        lines.append(f"generation_config.json has repetition_penalty={penalty}, in greedy answers, too; 1 resets it:"
                     " --repetition-penalty 1")  # fmt: skip
    if processor.chat_template == QWEN2.read_text(encoding="utf-8") and not conversation:
        lines.append("prompts are ViFT's (Qwen2.5's); stock Bunny's own: --conversation bunny")
    return "\n".join(lines)
