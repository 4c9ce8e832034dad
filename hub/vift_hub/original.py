"""LLaVA-1.5's, Bunny's and ViFT's own layout: the decoder's config with `mm_*` fields, one flat set of weights.

Weights come from the folder itself; from its `mm_projector.bin` and a language model (stage 1 saves no more); or from
an adapter, `non_lora_trainables.bin` and the adapter's base. Merged: W + scale·B·A, scale = lora_alpha / r (with
`use_rslora` lora_alpha / √r).
"""

import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoModel, AutoTokenizer, GenerationConfig
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from modeling_vift import VIFTForConditionalGeneration

from .join import IMAGE_TOKEN, make_config, make_processor, read_vision_config
from .models import find

VICUNA, QWEN2 = (Path(__file__).with_name(name) for name in ("llava_v1.jinja", "qwen2.jinja"))
# the authors' names of conversations; sep2, which ends an answer of VICUNA's, is the first that is in the vocabulary
CONVERSATIONS = dict.fromkeys(("bunny", "phi3", "llama", "v1", "vicuna_v1", "llava_v1"), VICUNA) | {"qwen2": QWEN2}
ENDS = "<|endoftext|>", "<|end_of_text|>", "</s>"
# LLaVA-1.5's and Bunny's names -> ours. A Bunny tower is `model.vision_tower.vision_tower.vision_model.`
ORIGINAL_NAMES = {
    "model.vision_tower.vision_tower.vision_model.": "model.vision_tower.",
    "model.vision_tower.vision_tower.": "model.vision_tower.",
    "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
    "lm_head.": "lm_head.",
    "model.": "model.language_model.",
}
LANGUAGE_MODELS = {"llava": "llama", "llava_llama": "llama", "bunny-qwen2": "qwen2", "bunny-qwen": "qwen2",
                   "bunny-llama": "llama", "bunny-mistral": "mistral", "bunny-phi3": "phi3"}  # fmt: skip
# what changes prompt or features in a way that VIFT has no counterpart for, and the values that change nothing
UNCHANGED = {
    "mm_projector_type": ("mlp2x_gelu",),
    "image_aspect_ratio": (None, "pad", "square"),
    "mm_patch_merge_type": (None, "flat"),
    "use_s2": (None, False),
    "mm_use_im_start_end": (None, False),
}


def all_there(source, loading):
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, loading.get(kind) or ())):
            raise ValueError(f"source={source} has {len(names)} {kind.replace('_', ' ')}, such as {names[0]}")


def from_original(source: Path, config: dict, vision_tower=None, language_model=None, conversation=None):
    """
    (model, processor) of a checkpoint in the authors' own layout.

    Args:
        source: folder; `config` is its config.json.
        vision_tower, language_model: folder or Hub id; the latter for a folder that holds none, and only then.
        conversation: a name in CONVERSATIONS; else what the config says, else `qwen2` for a Qwen2 with ChatML.

    Raises:
        ValueError: one line that names the file or field, the value and what would do.
    """
    file = source / "config.json"
    for name, part in (("--vision-tower", vision_tower), ("--language-model", language_model)):
        if part:
            find(part, name)
    for name, allowed in UNCHANGED.items():
        if config.get(name) not in allowed:
            accepted = " or ".join(map(repr, allowed))
            raise ValueError(f"{file} has {name}={config.get(name)!r}: only {accepted} can be converted")
    tower_name = vision_tower or config.get("mm_vision_tower")
    if not tower_name:
        raise ValueError(f"{file} names no mm_vision_tower: give --vision-tower")
    kind = LANGUAGE_MODELS.get(config.get("model_type"), config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"{file} has model_type={kind!r}: not one of {', '.join(LANGUAGE_MODELS)}")
    base, weights = _read_weights(source, language_model, kind)
    try:
        vision = read_vision_config(tower_name)
    except OSError as error:
        what = "--vision-tower" if vision_tower else f"{file}: mm_vision_tower"
        raise ValueError(f"{what}={tower_name!r} cannot be read: give --vision-tower a folder or Hub id") from error
    # training's settings lie in the same file; what the decoder's class does not know is none of its
    known = {*CONFIG_MAPPING[kind]().to_dict(), "torch_dtype", "head_dim", "partial_rotary_factor"}
    known -= {"_name_or_path", "architectures", "model_type", "use_cache"}  # training turns the cache off
    text = {name: value for name, value in config.items() if name in known or name.startswith("rope_")}

    tokenizer = AutoTokenizer.from_pretrained(source if (source / "tokenizer_config.json").is_file() else base)
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token
    template, ends = _conversation(file, config, conversation, kind, tokenizer)
    keep_class = config.get("mm_vision_select_feature", "patch") == "cls_patch"
    processor = make_processor(tower_name, vision, tokenizer, keep_class)
    processor.chat_template = template
    if config.get("image_aspect_ratio") == "pad":
        own = processor.image_processor.to_dict()
        fields = ("size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std")
        processor.image_processor = LlavaImageProcessorPil(
            do_pad=True,
            do_center_crop=bool(own.get("do_center_crop")),
            **{name: own[name] for name in fields if own.get(name) is not None},
        )
    image_id = processor.image_token_id

    dtype = weights["model.language_model.embed_tokens.weight"].dtype
    weights = {n: tensor.to(dtype) if tensor.is_floating_point() else tensor for n, tensor in weights.items()}
    rows = weights["model.language_model.embed_tokens.weight"].shape[0]
    text["vocab_size"] = max(rows, image_id + 1)
    if config.get("tie_word_embeddings"):
        weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        if name in weights:  # a row for <image>, which LLaVA keeps as -200; zero, and never generated
            new_rows = weights[name].new_zeros(text["vocab_size"] - rows, weights[name].shape[1])
            weights[name] = torch.cat([weights[name], new_rows])
    if not any(name.startswith("model.vision_tower.") for name in weights):
        tower, loading = AutoModel.from_pretrained(tower_name, dtype=dtype, output_loading_info=True)
        all_there(tower_name, {"missing_keys": [name for name in loading["missing_keys"] if "head." not in name]})
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
            weights.setdefault(name, torch.zeros(tensor.shape, dtype=dtype))
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
    for folder in (base, source):  # the source's own comes last
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    own = model.generation_config.eos_token_id
    own = own if isinstance(own, list) else [own]
    ends = [i for i in dict.fromkeys([*own, tokenizer.eos_token_id, *ends]) if i is not None]
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.suppress_tokens = [image_id]
    return model, processor


def _conversation(file: Path, config: dict, name: str | None, kind: str, tokenizer) -> tuple[str, list[int]]:
    """The chat template, and the ids that end an answer."""
    vocabulary = tokenizer.get_vocab()
    fields = ("version", "conv_version", "conv_mode", "conversation_version", "conversation")
    said = {field: config[field] for field in fields if config.get(field) not in (None, "plain")}  # plain: stage 1
    field, said = next(iter(said.items()), ("", None))
    if not name and said and said not in CONVERSATIONS:
        raise ValueError(f"{file} has {field}={said!r}: give --conversation, one of {', '.join(CONVERSATIONS)}")
    chatml = {"<|im_start|>", "<|im_end|>"} <= vocabulary.keys()
    path = CONVERSATIONS[name or said or ("qwen2" if kind == "qwen2" and chatml else "v1")]
    text = path.read_text(encoding="utf-8")
    if path == QWEN2:
        if not chatml:
            raise ValueError(f"{file}: the conversation qwen2 needs <|im_start|> and <|im_end|> in the tokenizer")
        return text, [vocabulary[end] for end in ("<|im_end|>", "<|endoftext|>") if end in vocabulary]
    end = next((end for end in ENDS if end in vocabulary), tokenizer.eos_token)
    return text.replace("eos_token", json.dumps(end)), [tokenizer.convert_tokens_to_ids(end)]


def _read_weights(source: Path, language_model: str | None, kind: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """(folder with the language model, all tensors under our names)."""
    adapter, others = source / "adapter_config.json", source / "non_lora_trainables.bin"
    projector, base = source / "mm_projector.bin", source
    lora, weights = adapter.is_file() or others.is_file(), _tensors(source)
    if weights and not lora:
        if language_model:
            raise ValueError(f"source={source} holds its language model: leave out --language-model={language_model}")
    elif lora:
        for file in (adapter, others):
            if not file.is_file():
                raise ValueError(f"source={source} is a LoRA folder without {file.name}: {file} is needed, too")
        lora_config = _json(adapter)
        base = _folder(language_model or lora_config.get("base_model_name_or_path"), kind, adapter)
        weights = merge_adapter(_tensors(base) | _extra(others), lora_config, source)
    elif projector.is_file():
        if not language_model:
            raise ValueError(f"{projector} is a connector only: pass --language-model, the one it was trained with")
        base = _folder(language_model, kind, adapter)
        weights = _tensors(base) | _extra(projector)
    for name in ("model.embed_tokens.weight", "model.mm_projector.0.weight"):
        if name not in weights:
            raise ValueError(f"source={source} has {len(weights)} weights, but no {name}: not LLaVA-1.5's own layout")
    renamed = {}
    for name, tensor in weights.items():
        old, new = next((pair for pair in ORIGINAL_NAMES.items() if name.startswith(pair[0])), ("", ""))
        renamed[new + name.removeprefix(old)] = tensor
    return base, renamed


def _folder(language_model: str | None, kind: str, adapter: Path) -> Path:
    what = f"--language-model={language_model}"
    try:
        folder = Path(language_model or "")
        folder = folder if language_model and folder.is_dir() else Path(snapshot_download(language_model))
        found = _json(folder / "config.json")["model_type"]
    except (ValueError, OSError, KeyError, TypeError) as error:
        where = f" (or base_model_name_or_path in {adapter})" if adapter.is_file() else ""
        raise ValueError(f"{what}{where} cannot be read: give --language-model a folder or Hub id") from error
    if LANGUAGE_MODELS.get(found, found) != kind:
        raise ValueError(f"{what} is a {found!r}; the checkpoint was made with a {kind!r}: give that one")
    return folder


def _tensors(source: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder of safetensors or, where there are none, of PyTorch's pickles; without an adapter's."""
    files = [file for file in sorted(source.glob("*.safetensors")) if not file.name.startswith("adapter_")]
    weights = {}
    for file in files or sorted(source.glob("pytorch_model*.bin")):
        weights |= _load(file)
    return weights


def _load(file: Path) -> dict[str, torch.Tensor]:
    try:
        safe = file.suffix == ".safetensors"
        weights = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file makes its reader raise anything
        what = "" if safe else " as tensors alone (weights_only=True)"
        raise ValueError(f"{file} cannot be read{what}: fetch or save it again, tensors only") from error
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise ValueError(f"{file} holds other things than tensors with names: save a state dict")
    return weights


def _json(file: Path) -> dict:
    try:
        found = json.loads(file.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is no JSON object: fetch or save it again")
    return found


def _extra(file: Path) -> dict[str, torch.Tensor]:
    """What was trained beside a language model, under the names of a whole checkpoint."""
    names = ((n.removeprefix("base_model.model."), tensor) for n, tensor in _load(file).items())
    return {"model." + n[n.index("mm_projector.") :] if "mm_projector." in n else n: t for n, t in names}


def merge_adapter(weights: dict, config: dict, source: Path) -> dict[str, torch.Tensor]:
    """`weights` with the adapter of `source` added."""
    file = next(
        (f for f in map(source.joinpath, ("adapter_model.safetensors", "adapter_model.bin")) if f.is_file()), None
    )
    if file is None:
        raise ValueError(f"source={source} is a LoRA folder without adapter_model.safetensors or adapter_model.bin")
    for name, plain in {"peft_type": "LORA", "fan_in_fan_out": False, "alpha_pattern": {}, "use_dora": False}.items():
        if (value := config.get(name) or plain) != plain:
            raise ValueError(f"{source / 'adapter_config.json'} has {name}={value!r}: merge it with peft first")
    if not isinstance(alpha := config.get("lora_alpha"), int | float):
        raise ValueError(f"{source / 'adapter_config.json'} has lora_alpha={alpha!r}: a number is needed")
    adapter = {n.removeprefix("base_model.model.").replace(".default.", "."): t for n, t in _load(file).items()}
    if not any(name.endswith(".lora_A.weight") for name in adapter):
        raise ValueError(f"{file} holds no lora_A.weight: not an adapter of peft")
    for name, tensor in adapter.items():
        module, _, part = name.partition(".lora_")
        if part == "B.weight" and module + ".lora_A.weight" in adapter:
            continue  # with its A
        target = module + ".weight" if part else name.replace(".base_layer.", ".")
        update = tensor
        if part == "A.weight" and (up := adapter.get(module + ".lora_B.weight")) is not None:
            if up.shape[1] != tensor.shape[0]:
                raise ValueError(f"{file} holds {name} of rank {tensor.shape[0]} and its B of rank {up.shape[1]}")
            rank = tensor.shape[0] ** (0.5 if config.get("use_rslora") else 1)
            update = up.float() @ tensor.float() * (alpha / rank)
        elif part:
            raise ValueError(f"{file} holds {name}: merge it with peft first")
        if target not in weights or weights[target].shape != update.shape:
            raise ValueError(f"{file} holds {name}, for which the model has no weight of that shape")
        old = weights[target]
        weights[target] = (old.float() + update).to(old.dtype) if part else update.to(old.dtype)
    return weights
