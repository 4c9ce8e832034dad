"""Fused `generate()` for any vision-language model of transformers, in place: `attach_fusion` and `detach_fusion`."""

import inspect
import threading
from functools import cache

import torch
from PIL import Image
from transformers import GenerationMixin, PreTrainedModel

from .configuration_vift import VIFTConfig
from .generation_vift import FusedGeneration, register_fusion_hooks
from .interfaces_vift import is_empty
from .text_run_vift import record

_ATTACHING = threading.Lock()


@cache
def _fused_class(native: type) -> type:
    """`native` with `FusedGeneration` in front, under the same name, which transformers keys its tables by."""
    body = {"__module__": native.__module__, "__qualname__": native.__qualname__, "__doc__": native.__doc__}
    body |= {"native_class": native, "__reduce__": lambda self: (_new_fused, (native,), self.__dict__)}
    return type(native.__name__, (FusedGeneration, native), body)


def _new_fused(native: type):
    """An attached model without its state: what a copy starts from."""
    cls = _fused_class(native)
    return cls.__new__(cls)


def _base(model):
    """The transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _wrapper_ids(config, processor) -> list[int]:
    """Added tokens that stand in a prompt because of its image: those that the config names, or a processor shows."""
    names = ("vision_start", "vision_end", "image_start", "image_end", "boi", "eoi")
    ids = {getattr(config, f"{name}_token_id", None) for name in names} - {None}
    ids.update(getattr(config, "visual_indicator_token_ids", ()))
    for size in () if processor is None else ((64, 64), (2048, 2048), (2048, 512)):  # one that is cut into tiles, too
        if processor.chat_template:
            content = [{"type": "image", "image": Image.new("RGB", size)}, {"type": "text", "text": "a"}]
            prompts = [[{"role": "user", "content": content[first:]}] for first in (0, 1)]
            options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
            shown, text = (processor.apply_chat_template([p], **options).input_ids for p in prompts)
        else:
            shown = processor(text=processor.image_token + "a", images=Image.new("RGB", size), return_tensors="pt")
            shown, text = shown.input_ids, processor(text="a", return_tensors="pt").input_ids
        ids |= {*shown.flatten().tolist()} - {*text.flatten().tolist()} & {*processor.tokenizer.added_tokens_decoder}
    return sorted(ids - {config.image_token_id})


@torch.no_grad()
def check_text_run(model):
    """What the text run takes for granted: `fusion` reaches every layer, states are (B, S, D), and text is causal."""
    if is_empty(model):
        return
    *prefix, last, other = [i for i in range(16) if i not in model._image_ids()][-5:]
    device = "cpu" if model.device.type == "meta" else model.device  # offloaded: accelerate moves what comes in
    ids = torch.tensor([[*prefix, last], [*prefix, other]], device=device)
    known, (rows, columns) = inspect.signature(type(model).forward).parameters, torch.ones(2, 4).nonzero(as_tuple=True)
    model_inputs = {"token_type_ids": torch.zeros_like(ids)} if "token_type_ids" in known else {}
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()  # dropout would differ between the two prompts
        depth = model.config.get_text_config().num_hidden_layers
        layers = range(min(1, depth - 1), depth)  # not every model's layer 0 can be fused, and is then refused
        states = record(model, layers, rows, columns, input_ids=ids, **model_inputs)
        one, two = torch.stack([states[layer].reshape(2, 4, -1)[:, :3].float() for layer in layers], dim=1)
    except Exception as error:  # models raise whatever they like
        raise ValueError(f"a prompt of text alone does not run ({type(error).__name__}: {error})") from error
    finally:
        for module in training:
            module.training = True
    if ((one - two).norm(dim=-1) > 0.01 * one.norm(dim=-1)).any():
        raise ValueError("its text is not causal: a token's state changes with the tokens after it")


def attach_fusion(model, image_wrapper_token_ids=None, processor=None, **fusion):
    """
    Gives a vision-language model of transformers the fused `generate()` of VIFT; in place.

    Weights, config and what is saved stay as they are: the instance's class gets `FusedGeneration` in front, and its
    decoder layers get hooks. `alpha=1, beta=0` and `fusion=False` are the native model, bit for bit.

    Args:
        model (`PreTrainedModel` or `peft.PeftModel`): with `generate()`, a decoder, and placeholder ids for its images
            in the prompt (`config.image_token_id`).
        image_wrapper_token_ids (`list[int]`, *optional*):
            Ids that only wrap an image and leave the text run with it; None: those of the config and of `processor`.
        processor (`ProcessorMixin`, *optional*):
            The model's: some wrapping ids, such as SmolVLM's `<fake_token_around_image>`, are known to it alone.
        fusion: defaults for this model, by the names of `VIFTConfig`: `fusion_beta=0.15, fusion_layers="14:28"`.

    Returns `model`. Called again, only the defaults change (and wrapping ids, where they or a processor are given).

    Raises:
        ValueError: a VIFT already, no `generate()` or another one in its place, no image placeholder, no decoder
            layers, text that is not causal; a bad fusion value.
    """
    base = _base(model)
    name = type(base).__name__
    native = getattr(base, "native_class", type(base))
    if issubclass(native, FusedGeneration) or hasattr(native, "text_run"):
        raise ValueError(f"model={name} fuses already: set model.config.fusion_*, or pass them to generate()")
    if not isinstance(base, PreTrainedModel) or not isinstance(base, GenerationMixin):
        raise ValueError(f"model={name} is no transformers model with generate()")
    if getattr(base.config, "image_token_id", None) is None or base.config.is_encoder_decoder:
        raise ValueError(f"model={name} has no decoder-only prompt with image placeholders (config.image_token_id)")
    own = vars(base).get("generate")  # what `from_pretrained` leaves of a repository's custom_generate
    if own is not None and not hasattr(getattr(own, "func", own), "fuses"):
        raise ValueError(f"model={name} has a generate() of its repository, which does not fuse: del model.generate")
    if image_wrapper_token_ids is None:
        before = getattr(base, "fusion_config", None) if processor is None else None
        image_wrapper_token_ids = before.image_wrapper_token_ids if before else _wrapper_ids(base.config, processor)
    if unknown := [field for field in fusion if not field.startswith("fusion_") or not hasattr(VIFTConfig, field)]:
        raise ValueError(f"unknown fusion field {unknown[0]!r}; VIFTConfig describes the known ones")
    depth = {"model_type": "qwen2", "num_hidden_layers": base.config.get_text_config().num_hidden_layers}
    config = VIFTConfig(text_config=depth, image_wrapper_token_ids=image_wrapper_token_ids, **fusion)
    with _ATTACHING:
        if hasattr(base, "native_class"):
            base.fusion_config = config
            return model
        base._fusion_hooks, base.fusion_config = register_fusion_hooks(base.get_decoder()), config
        base.__class__ = _fused_class(native)
    try:
        check_text_run(base)
    except ValueError as error:
        detach_fusion(base)
        raise ValueError(f"model={name} cannot be fused: {error}") from error
    return model


def detach_fusion(model):
    """Takes away what `attach_fusion` gave and returns `model`; a ValueError where nothing is attached."""
    base = _base(model)
    with _ATTACHING:
        if "_fusion_hooks" not in vars(base):
            raise ValueError(f"model={type(base).__name__} has no fusion attached")
        for handle in base._fusion_hooks:
            handle.remove()
        base.__class__ = base.native_class
        del base._fusion_hooks, base.fusion_config
    return model
