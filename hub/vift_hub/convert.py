"""Convert between VIFT, transformers' LLaVA layout, and LLaVA-1.5's or Bunny's own layout; logits stay equal.

    vift-convert llava-hf/llava-1.5-7b-hf START               # transformers' LLaVA layout -> VIFT
    vift-convert liuhaotian/llava-v1.5-7b START               # LLaVA-1.5's own layout -> VIFT
    vift-convert BUNNY START --vision-tower google/siglip-so400m-patch14-384
    vift-convert MY-VIFT LLAVA --to llava                     # for tools that know LLaVA only (GGUF, vLLM): unfused

The source is a folder or a Hub id. LLaVA-1.5's own layout has `mm_projector` weights, the image token -200 and often
no tower: its config, image processor and, where the checkpoint has none, weights are those of `--vision-tower`, or of
the tower that the config names.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from modeling_vift import VIFTConfig, VIFTForConditionalGeneration

from .join import CHAT_TEMPLATE, IMAGE_TOKEN, make_config, make_processor, read_vision_config, tokens_per_image

VICUNA = Path(__file__).with_name("llava_v1.jinja")
# LLaVA-1.5's and Bunny's names -> ours. A Bunny tower is `model.vision_tower.vision_tower.vision_model.`
ORIGINAL_NAMES = {
    "model.vision_tower.vision_tower.vision_model.": "model.vision_tower.",
    "model.vision_tower.vision_tower.": "model.vision_tower.",
    "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
    "lm_head.": "lm_head.",
    "model.": "model.language_model.",
}
FILES = (
    "config.json",
    "*_config.json",
    "tokenizer.json",
    "*.index.json",
    "*.safetensors",
)  # of a model; others are a person's
LANGUAGE_MODELS = {"llava": "llama", "llava_llama": "llama", "bunny-qwen2": "qwen2", "bunny-qwen": "qwen2",
                   "bunny-llama": "llama", "bunny-mistral": "mistral", "bunny-phi3": "phi3"}  # fmt: skip


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


def to_vift(source: Path, vision_tower: str | None = None):
    """
    VIFT model and processor from a LLaVA of transformers or a checkpoint in LLaVA-1.5's own layout.

    Raises:
        ValueError: another kind of checkpoint; weights that are missing, left over or of another shape.
    """
    config = read_config(source)
    if "mm_projector_type" in config or "mm_vision_tower" in config:
        return _from_original(source, config, vision_tower)
    if config.get("model_type") != "llava":
        raise ValueError(
            f"source={source} is a {config.get('model_type')!r}, neither a LLaVA layout nor LLaVA-1.5's own"
        )
    fields = LlavaConfig.from_pretrained(source).to_dict()
    fields = {name: value for name, value in fields.items() if name not in ("model_type", "architectures")}
    return read(VIFTForConditionalGeneration, source, VIFTConfig(**fields))


def to_llava(source: Path):
    """
    transformers' LLaVA and its processor from a VIFT: same weights, no fusion.

    Raises:
        ValueError: not a VIFT; weights that are missing or left over.
    """
    read_config(source, "vift", "not a VIFT")
    fields = VIFTConfig.from_pretrained(source).to_dict()
    dropped = ("model_type", "architectures", "auto_map", "image_wrapper_token_ids")
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


def all_there(source, loading):
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, loading.get(kind) or ())):
            raise ValueError(f"source={source} has {len(names)} {kind.replace('_', ' ')}, such as {names[0]}")


def _from_original(source: Path, config: dict, vision_tower: str | None):
    """LLaVA-1.5's own layout: the decoder's config with `mm_*` fields, one flat set of weights."""
    if config.get("mm_projector_type", "linear") != "mlp2x_gelu":
        raise ValueError(f"mm_projector_type={config.get('mm_projector_type')!r}: VIFT's connector is 'mlp2x_gelu'")
    tower_name = vision_tower or config.get("mm_vision_tower")
    if not tower_name:
        raise ValueError(f"{source / 'config.json'} names no mm_vision_tower: give --vision-tower")
    vision = read_vision_config(tower_name)
    kind = LANGUAGE_MODELS.get(config["model_type"], config["model_type"])
    text = {name: value for name, value in config.items() if not name.startswith(("mm_", "architectures", "auto_map"))}
    tokenizer = AutoTokenizer.from_pretrained(source)
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token
    template = CHAT_TEMPLATE if "<|im_start|>" in tokenizer.get_vocab() else VICUNA
    keep_class = config.get("mm_vision_select_feature", "patch") == "cls_patch"
    processor = make_processor(tower_name, vision, tokenizer, keep_class, template)
    image_id = processor.image_token_id

    weights = {}
    for name, tensor in _read_weights(source).items():
        old, new = next((pair for pair in ORIGINAL_NAMES.items() if name.startswith(pair[0])), ("", ""))
        weights[new + name.removeprefix(old)] = tensor
    rows = weights["model.language_model.embed_tokens.weight"].shape[0]
    text["vocab_size"] = max(rows, image_id + 1)
    if config.get("tie_word_embeddings"):
        weights.setdefault("lm_head.weight", weights["model.language_model.embed_tokens.weight"])
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        # a row for <image>, which LLaVA keeps as -200 outside the vocabulary; zero, and never generated
        new_rows = weights[name].new_zeros(text["vocab_size"] - rows, weights[name].shape[1])
        weights[name] = torch.cat([weights[name], new_rows])
    if not any(name.startswith("model.vision_tower.") for name in weights):
        tower = AutoModel.from_pretrained(tower_name, dtype=weights["lm_head.weight"].dtype)
        tower = getattr(tower, "vision_model", tower)
        weights |= {"model.vision_tower." + name: tensor for name, tensor in tower.state_dict().items()}

    vift = make_config(
        vision,
        text | {"model_type": kind},
        processor,
        vision_feature_layer=config.get("mm_vision_select_layer", -2),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
    )
    with torch.device("meta"):
        model = VIFTForConditionalGeneration(vift)
    expected = model.state_dict()
    layer, num_layers = vift.vision_feature_layer, vision.num_hidden_layers
    unread = [f"encoder.layers.{i}." for i in range(layer + num_layers + 1 if layer < 0 else layer, num_layers)]
    for name, tensor in expected.items():
        # Bunny deletes the tower's last layer, which nobody reads; likewise the tower's head and final norm
        if name.startswith("model.vision_tower.") and (
            any(part in name for part in unread) or "post_layernorm" in name
        ):
            weights.setdefault(name, torch.zeros(tensor.shape, dtype=weights["lm_head.weight"].dtype))
    unused = ("rotary_emb.inv_freq", "position_ids", "vision_tower.head.")
    weights = {n: tensor for n, tensor in weights.items() if n in expected or not any(part in n for part in unused)}
    common = expected.keys() & weights.keys()
    differences = {
        "missing_keys": expected.keys() - weights.keys(),
        "unexpected_keys": weights.keys() - expected.keys(),
        "mismatched_keys": [n for n in common if weights[n].shape != expected[n].shape],
    }
    all_there(source, differences)
    model.load_state_dict(weights, assign=True)
    if (source / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(source)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.suppress_tokens = [image_id]
    return model, processor


def _read_weights(source: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder of safetensors or, where there are none, of PyTorch's pickles (tensors only)."""
    weights = {}
    for file in sorted(source.glob("*.safetensors")):
        weights |= load_file(file)
    if not weights:
        for file in sorted(source.glob("pytorch_model*.bin")):
            weights |= torch.load(file, map_location="cpu", weights_only=True)
    for name in ("model.embed_tokens.weight", "model.mm_projector.0.weight"):
        if name not in weights:
            raise ValueError(f"source={source} has {len(weights)} weights, but no {name}: not LLaVA-1.5's own layout")
    return weights


def convert(source: str, output: Path, to: str = "vift", vision_tower: str | None = None):
    """
    Args:
        source: folder or Hub id.
        output: a folder that is new or empty.
        to: "vift", or "llava" for transformers' LLaVA layout.
        vision_tower: folder or Hub id, for LLaVA-1.5's own layout only.

    Returns:
        (model, processor), as written.

    Raises:
        ValueError: `output` is not empty, or the source is of another kind.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output={output} exists and is not an empty folder")
    folder = Path(source) if Path(source).is_dir() else Path(snapshot_download(source))
    try:
        model, processor = to_llava(folder) if to == "llava" else to_vift(folder, vision_tower)
    except Exception as error:  # whatever a file that is broken makes its reader raise
        raise ValueError(str(error) if str(folder) in str(error) else f"source={source}: {error!r}") from error
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent) as scratch:  # whole, or not there
        try:
            model.save_pretrained(Path(scratch) / output.name)
            processor.save_pretrained(Path(scratch) / output.name)
            (Path(scratch) / output.name).replace(output)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"output={output} cannot be written: {error}") from error
    return model, processor


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="vift-convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="folder or Hub id")
    parser.add_argument("output", type=Path, help="folder to write, new or empty")
    parser.add_argument("--to", choices=("vift", "llava"), default="vift")
    parser.add_argument("--vision-tower", help="folder or Hub id, for LLaVA-1.5's own layout")
    args = parser.parse_args(argv)
    try:
        model, _ = convert(args.source, args.output, args.to, args.vision_tower)
    except (ValueError, OSError) as error:
        parser.exit(2, f"vift-convert: error: {' '.join(str(error).split())}\n")
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"wrote {args.output}: {type(model).__name__}, {size:.1f} M parameters")


if __name__ == "__main__":
    main()
