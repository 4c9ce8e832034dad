"""VIFT for vLLM, and vLLM's own LLaVA, Qwen2.5-VL and Qwen3-VL with fusion.

A VIFT's vision tower and connector are transformers' modules, as in `generate()`; its decoder is vLLM's own.
"""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import AutoModel
from transformers.models.llava.modeling_llava import LlavaModel
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageSize

from modeling_vift.modeling_vift import VIFTConnector, _with_last_map

from .fusion import Fusion
from .rows import rows_of


class Fused:
    """Before a model of vLLM in a class's bases: the requests of a batch that ask for it are fused."""

    def __init__(self, *, vllm_config, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.fusion = Fusion(vllm_config, self.get_language_model())
        # the second runner has a hook of its own, `get_model_state_cls`, and sets `batch` before each forward
        self.rows = None if vllm_config.use_v2_model_runner else rows_of(vllm_config)
        self.batch: list = []

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None, **kwargs):
        batch = self.batch if self.rows is None else self.rows.batch()
        with self.fusion.step(batch, inputs_embeds) as inputs_embeds:
            return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)

    @staticmethod
    def get_model_state_cls():
        from .states import FusedModelState  # imports what needs Triton

        return FusedModelState


class VIFTProcessingInfo(LlavaProcessingInfo):
    """How many tokens an image takes: `image_seq_length` of the config, whatever the tower is."""

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        return self.get_hf_config().image_seq_length

    def get_image_size_with_most_features(self) -> ImageSize:
        size = self.get_hf_processor().image_processor.size
        side = size.get("shortest_edge", 224)
        return ImageSize(width=size.get("width", side), height=size.get("height", side))


class VIFTModel(LlavaForConditionalGeneration):
    def __init__(self, *, vllm_config, prefix: str = ""):
        nn.Module.__init__(self)
        self.config = config = vllm_config.model_config.hf_config
        self.multimodal_config = vllm_config.model_config.multimodal_config
        self.configure_mm_token_handling(config.text_config.vocab_size, [config.image_token_index])
        with self._mark_tower_model(vllm_config, "image"):
            self.vision_tower = AutoModel.from_config(config.vision_config, dtype=torch.get_default_dtype())
            self.vision_tower.register_forward_hook(_with_last_map)
            self.vision_tower.eval()
            self.multi_modal_projector = VIFTConnector(config)
            self.multi_modal_projector.adopt(config)
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config, hf_config=config.text_config, prefix=maybe_prefix(prefix, "language_model")
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, pixel_values=None, image_embeds=None, **kwargs):
        """Pixels (images, 3, height, width) -> an (N, D) of each image's tokens."""
        if pixel_values is None:
            return [] if image_embeds is None else image_embeds
        return LlavaModel.get_image_features(self, pixel_values).pooler_output

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)


@MULTIMODAL_REGISTRY.register_processor(
    LlavaMultiModalProcessor, info=VIFTProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class VIFTForConditionalGeneration(Fused, VIFTModel):
    pass


class FusedLlavaForConditionalGeneration(Fused, LlavaForConditionalGeneration):
    # transformers >=5.19 saves towers without the level that vLLM 0.32 looks for
    hf_to_vllm_mapper = LlavaForConditionalGeneration.hf_to_vllm_mapper | WeightsMapper(
        orig_to_new_prefix={
            f"vision_tower.{part}.": f"vision_tower.vision_model.{part}."
            for part in ("embeddings", "encoder", "pre_layrnorm", "post_layernorm")
        }
    )


class FusedQwen2_5_VLForConditionalGeneration(Fused, Qwen2_5_VLForConditionalGeneration):
    pass


class FusedQwen3VLForConditionalGeneration(Fused, Qwen3VLForConditionalGeneration):
    pass
