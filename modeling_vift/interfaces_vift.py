"""Private or unstable interfaces of transformers, PEFT and accelerate: what each is for, what breaks without it."""

import inspect

import torch
from transformers import GenerationMixin
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

# the argument that carries the KV cache: transformers 5.24 renamed it; without it, no cache is found
_KNOWN = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE = "cache" if "cache" in _KNOWN else "past_key_values"


def cache_in(kwargs: dict):
    """The KV cache among the arguments, under either name."""
    return kwargs.get("cache") if kwargs.get("past_key_values") is None else kwargs["past_key_values"]


def is_sharded(model) -> bool:
    """FSDP2 and DeepSpeed: all ranks must make the same runs, or none; a rank that skips one waits for ever."""
    return hasattr(model, "_get_fsdp_state") or hasattr(model, "ds_config")


def must_finish_forward(model) -> bool:
    """Whether a run may not be left in the middle: sharded or offloaded (accelerate's hook) weights, autograd."""
    return torch.is_grad_enabled() or hasattr(model, "_hf_hook") or is_sharded(model)


def makes_own_positions(model) -> bool:
    """Whether the model makes positions from the grid of patches (M-RoPE); otherwise they would be overwritten."""
    return hasattr(model.base_model, "get_rope_index")


def adds_image_features_between_layers(config) -> bool:
    """DeepStack, which writes image places after each of the first layers, fused or not."""
    return hasattr(config.vision_config, "deepstack_visual_indexes")


def weights_version(decoder) -> list:
    """Another list after a weight was written in place, replaced or moved, or a PEFT adapter switched or merged."""
    weights = [(id(p), p.dtype, p.device, p.is_inference() or p._version) for p in decoder.parameters()]
    adapters = [module for module in decoder.modules() if hasattr(module, "merged_adapters")]
    return [*weights, *((tuple(a.active_adapters), a.disable_adapters, a.merged) for a in adapters)]


class InitialisedAsTransformers:
    """Every part initialises as transformers' own; its rule for custom code skips SigLIP's attention."""

    is_custom_code = classmethod(lambda cls: False)


def serve_as_multimodal(model_type: str, name: str) -> None:
    """`transformers serve` reads this table, between loading the config and the model, for what takes images."""
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.setdefault(model_type, name)


def load_with_names_of_llava(model_type: str, base_class: str) -> None:
    """Llava's names for the weights: custom classes inherit no conversion, and a Llava checkpoint would not load."""
    for ours, llavas in ((model_type, "llava"), (base_class, "LlavaModel")):
        register_checkpoint_conversion_mapping(ours, get_checkpoint_conversion_mapping(llavas), overwrite=True)
