"""VIFT: a vision-language model whose `generate()` fuses a text-only run into the image run."""

from .attach_vift import attach_fusion, detach_fusion
from .configuration_vift import VIFTConfig
from .fusion_vift import FusionEdit
from .modeling_vift import VIFTForConditionalGeneration, VIFTModel
from .positions_vift import position_in_row, text_positions
from .settings_vift import FUSION_RULES, FUSION_SPANS, OVERRIDES, FusionSettings, resolve_fusion
from .text_run_vift import TextStream, TextStreamCache

__all__ = [
    "FUSION_RULES", "FUSION_SPANS", "OVERRIDES", "FusionEdit", "FusionSettings", "TextStream", "TextStreamCache",
    "VIFTConfig", "VIFTForConditionalGeneration", "VIFTModel", "attach_fusion", "detach_fusion", "position_in_row",
    "resolve_fusion", "text_positions",
]  # fmt: skip
