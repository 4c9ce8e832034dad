"""Private or unstable interfaces of transformers, PEFT and accelerate: what each is for, what breaks without it."""

import inspect

import torch
from torch.utils.weak import WeakIdRef
from transformers import GenerationMixin
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

MODEL_TYPE = "vift"
# `transformers serve` reads this table, between loading the config and the model, for what takes images
MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.setdefault(MODEL_TYPE, "VIFTForConditionalGeneration")
# Llava's names for the weights: custom classes inherit no conversion, and a Llava checkpoint would not load
for _ours, _llavas in ((MODEL_TYPE, "llava"), ("VIFTModel", "LlavaModel")):
    register_checkpoint_conversion_mapping(_ours, get_checkpoint_conversion_mapping(_llavas), overwrite=True)
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


def is_empty(model) -> bool:
    """Whether no weight is there, nor (accelerate's hooks) comes when it is needed: nothing can be run."""
    return all(p.is_meta for p in model.parameters()) and not any(hasattr(m, "_hf_hook") for m in model.modules())


def makes_own_positions(model) -> bool:
    """Whether the model makes positions from the grid of patches (M-RoPE); otherwise they would be overwritten."""
    return hasattr(model.base_model, "get_rope_index")


def has_deepstack(config) -> bool:
    """Whether image features are added at image places after each of the first layers, fused or not."""
    return hasattr(config.vision_config, "deepstack_visual_indexes")


def has_soft_prompt(model) -> bool:
    """Prompt or prefix tuning: a PEFT model lends `generate()` its own `prepare_inputs_for_generation`."""
    lender = getattr(model.prepare_inputs_for_generation, "__self__", model)
    return getattr(getattr(lender, "active_peft_config", None), "is_prompt_learning", False)


def state_of(decoder) -> list:
    """Another list after a tensor, hook, module's own forward, adapter of PEFT, autocast or attention changed."""
    kind, tensors = decoder.device.type, [*decoder.parameters(), *decoder.buffers()]
    state = [torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind), decoder.config._attn_implementation]
    # no id(), which may come back for another tensor
    state += [(WeakIdRef(tensor), tensor.dtype, tensor.is_inference() or tensor._version) for tensor in tensors]
    for module in decoder.modules():
        state += [module.training, *module._forward_hooks, *module._forward_pre_hooks]
        state += [WeakIdRef(own) for name, own in vars(module).items() if name == "forward"]
        if hasattr(module, "merged_adapters"):  # of PEFT
            state.append(
                str([getattr(module, name, 0) for name in ("active_adapters", "_disable_adapters", "scaling")])
            )
            state += module.merged_adapters
    return state


class InitialisedAsTransformers:
    """Every part initialises as transformers' own; its rule for custom code skips SigLIP's attention."""

    is_custom_code = classmethod(lambda cls: False)
