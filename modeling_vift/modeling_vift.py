"""VIFT: LLaVA's layout with ability fusion inside `generate()` and `forward()` (arXiv 2502.11427).

Vision tower -> connector -> decoder LM. How a fused `generate()` runs is in `generation_vift`, the algebra in
`fusion_vift`; here are the model, fused scoring in `forward()` and the checks of images against placeholders.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, LlavaForConditionalGeneration, LlavaModel, LlavaPreTrainedModel
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_vift import VIFTConfig
from .fusion_vift import running_plan
from .generation_vift import FusedGeneration, register_fusion_hooks
from .interfaces_vift import CACHE, InitialisedAsTransformers
from .settings_vift import resolve_fusion


class VIFTConnector(LlavaMultiModalProjector):
    """Tokens (B, T, C) or feature map (B, C, H, W) of a tower -> pooled, shuffled, through two layers: (B, N, D)."""

    def adopt(self, config: VIFTConfig):
        """Of LLaVA's connector, made already: its weights stay where transformers initialises them."""
        self.prefix, self.pool, self.shuffle = (
            getattr(config, f"vision_{name}") for name in ("prefix_tokens", "pool", "pixel_shuffle")
        )
        if self.shuffle > 1:
            width, wide = self.linear_1.in_features * self.shuffle**2, self.linear_1.out_features
            self.linear_1 = nn.Linear(width, wide, bias=config.multimodal_projector_bias)

    def forward(self, features):
        if features.ndim == 3:
            features = features[:, self.prefix :]
            if self.pool == self.shuffle == 1:
                return super().forward(features)
            side = math.isqrt(features.shape[1])
            features = features.transpose(1, 2).unflatten(2, (side, side))
        features = F.pixel_unshuffle(F.avg_pool2d(features, self.pool, ceil_mode=True), self.shuffle)
        return super().forward(features.flatten(2).transpose(1, 2))


def _with_last_map(module, args, output):
    """Hook of a convolutional tower: its last feature map is the last of its hidden states."""
    if output.last_hidden_state.ndim == 4 and output.hidden_states is not None:
        output.hidden_states = (*output.hidden_states, output.last_hidden_state)


class VIFTModel(InitialisedAsTransformers, LlavaModel):
    """Vision tower -> connector -> decoder LM, without the LM head; `fusion` of `forward` is a `FusionEdit`."""

    config: VIFTConfig

    def __init__(self, config: VIFTConfig):
        super().__init__(config)
        self.multi_modal_projector.__class__ = VIFTConnector
        self.multi_modal_projector.adopt(config)
        self.vision_tower.register_forward_hook(_with_last_map)
        register_fusion_hooks(self.language_model)

    def train(self, mode: bool = True):
        """Statistics of batch norms in the vision tower stay those of its own training."""
        super().train(mode)
        for module in self.vision_tower.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


class VIFTForConditionalGeneration(
    InitialisedAsTransformers, FusedGeneration, LlavaForConditionalGeneration, GenerationMixin
):
    """VIFT with LM head: all that `generate()` of transformers does, fused as the config's `fusion_*` fields say."""

    config: VIFTConfig

    def __init__(self, config: VIFTConfig):
        LlavaPreTrainedModel.__init__(self, config)
        self.model = VIFTModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @property
    def fusion_config(self) -> VIFTConfig:
        return self.config

    def forward(
        self, input_ids=None, pixel_values=None, attention_mask=None, position_ids=None, past_key_values=None,
        inputs_embeds=None, labels=None, logits_to_keep=0, image_sizes=None, mm_encoder_outputs=None, fusion=None,
        cache=None, **kwargs: Unpack[TransformersKwargs],
    ):  # fmt: skip
        """
        `LlavaForConditionalGeneration.forward`, unfused unless `fusion` is given.

        Args:
            fusion (`bool`, `str`, `dict`, *optional*):
                True, a preset's name or a dict such as `{"beta": 0.1}` for fused scoring: the prompt is fused, up to
                a row's first label that is not -100 (all of it without `labels`, or with `fusion_answer`), and the
                rest is read as `generate()` would have. A `FusionEdit` is applied as it is.

        Raises:
            ValueError: images and placeholders that do not match, whole prompts missing, a bad fusion argument.
        """
        if past_key_values is not None:  # under its own name, so that a newer transformers warns
            kwargs["past_key_values"] = past_key_values
        if cache is not None:
            kwargs[CACHE] = cache
        cache = past_key_values if cache is None else cache
        images = {"pixel_values": pixel_values, "image_sizes": image_sizes, "mm_encoder_outputs": mm_encoder_outputs}
        if not torch.compiler.is_compiling() and running_plan()[0] is None and not cache:
            self._check_images(input_ids, pixel_values, mm_encoder_outputs)
        if isinstance(fusion, bool | str | dict):
            settings, fusion = resolve_fusion(self.config, fusion), None
            if settings is not None:
                if input_ids is None or (cache is not None and cache.get_seq_length() > 0):
                    raise ValueError("fusion needs whole prompts as input_ids: no inputs_embeds, no filled cache")
                mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
                whole = labels is None or settings.answer
                prompt_mask = mask if whole else mask * (labels == -100).cumprod(dim=1)
                image_run = images | {"attention_mask": mask, "position_ids": position_ids}
                plan = self._plan_fusion(settings, input_ids, prompt_mask, **image_run)
                fusion = None if plan is None else plan.edit(*input_ids.shape, 0)
        if fusion is not None:
            kwargs["fusion"] = fusion
        prompt = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        return super().forward(
            **prompt, **images, inputs_embeds=inputs_embeds, labels=labels, logits_to_keep=logits_to_keep, **kwargs
        )

    def _check_prompt(self, input_ids, past: int, new_ids_only: bool, kwargs):
        if past and not new_ids_only and "pixel_values" in kwargs:
            self._drop_cached_images(input_ids, past, kwargs)
        if kwargs.get("inputs_embeds") is None:  # which may hold the image already
            new_ids = input_ids if new_ids_only else input_ids[:, past:]
            self._check_images(new_ids, kwargs.get("pixel_values"), kwargs.get("mm_encoder_outputs"))

    def _check_images(self, input_ids, pixel_values, mm_encoder_outputs):
        """Both sides of "Image features and image tokens do not match", before anything is computed."""
        if input_ids is None or mm_encoder_outputs:
            return
        num_tokens = int((input_ids == self.config.image_token_id).sum())
        num_images = 0 if pixel_values is None else len(pixel_values)
        expected = num_images * self._tokens_per_image(pixel_values) if num_images else 0
        if num_tokens != expected:
            held = f"the prompt has {num_tokens} image tokens but pixel_values holds {num_images} images, which take"
            raise ValueError(f"{held} {expected}: give as many images as there are placeholders")

    def _tokens_per_image(self, pixel_values) -> int:
        config, kind = self.config, self.config.vision_config.model_type
        if not hasattr(config.vision_config, "num_attention_heads"):  # convolutional: a feature map
            return config.image_seq_length
        sides = (size // config.vision_config.patch_size for size in pixel_values.shape[-2:])
        patches = math.prod(-(-side // config.vision_pool) // config.vision_pixel_shuffle for side in sides)
        if config.vision_feature_select_strategy == "default":  # without the class token; SigLIP has none
            return patches - ("siglip" in kind)
        return patches + ("clip" in kind and "siglip" not in kind and not config.vision_prefix_tokens)

    def _drop_cached_images(self, input_ids, past: int, kwargs):
        """Several turns on one cache: of the conversation's images, keep those whose placeholders are new."""
        pixel_values = kwargs["pixel_values"]
        per_image = self._tokens_per_image(pixel_values)
        is_image = input_ids == self.config.image_token_id
        images, cached = is_image.sum(dim=1) // per_image, is_image[:, :past].sum(dim=1) // per_image
        if len(pixel_values) == int(images.sum()):
            keep = torch.cat([torch.arange(n) >= c for n, c in zip(images.tolist(), cached.tolist(), strict=True)])
            kwargs["pixel_values"] = pixel_values[keep.to(pixel_values.device)]
            if not keep.any():
                del kwargs["pixel_values"]


VIFTConfig.register_for_auto_class()
VIFTForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
