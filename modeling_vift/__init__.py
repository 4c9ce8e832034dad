"""VIFT: a vision-language model whose `generate()` fuses a text-only run into the image run."""

from .attach_vift import attach_fusion, detach_fusion
from .configuration_vift import VIFTConfig
from .fusion_vift import FusionSettings, PromptFusion, TextStream
from .modeling_vift import VIFTForConditionalGeneration, VIFTModel
from .streams_vift import TextStreamCache

__all__ = [
    "FusionSettings",
    "PromptFusion",
    "TextStream",
    "TextStreamCache",
    "VIFTConfig",
    "VIFTForConditionalGeneration",
    "VIFTModel",
    "attach_fusion",
    "detach_fusion",
]
