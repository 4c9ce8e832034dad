"""The entry point `vllm.general_plugins`: vLLM calls `register` in each of its processes."""

FUSED = {  # architecture -> class of `model`; the config of a checkpoint names the first, `--hf-overrides` the others
    "VIFTForConditionalGeneration": "VIFTForConditionalGeneration",
    "FusedLlavaForConditionalGeneration": "FusedLlavaForConditionalGeneration",
    "FusedQwen2_5_VLForConditionalGeneration": "FusedQwen2_5_VLForConditionalGeneration",
    "FusedQwen3VLForConditionalGeneration": "FusedQwen3VLForConditionalGeneration",
}


def register() -> None:
    from transformers import AutoConfig
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from modeling_vift.configuration_vift import VIFTConfig

    from .refusals import FusedConfig

    AutoConfig.register(VIFTConfig.model_type, VIFTConfig, exist_ok=True)
    for architecture, name in FUSED.items():
        ModelRegistry.register_model(architecture, f"vift_serve.model:{name}")
        MODELS_CONFIG_MAP[architecture] = FusedConfig
