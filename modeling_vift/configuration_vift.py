"""Configuration of VIFT: a LLaVA layout (vision tower, two-layer MLP, decoder LM) plus ability fusion.

The defaults are the 7B model of arXiv 2502.11427: SigLIP-so400m-patch14-384 (features of hidden state
-2, 27 x 27 = 729 tokens, no class token), a two-layer GELU connector and Qwen2.5-7B-Instruct.
"""

from typing import Any

from transformers import LlavaConfig
from transformers.utils.versions import require_version

from .interfaces_vift import MODEL_TYPE
from .settings_vift import resolve_fusion

TRANSFORMERS = "transformers>=5.23,<5.25"
require_version(TRANSFORMERS, f"VIFT needs {TRANSFORMERS}: pip install '{TRANSFORMERS}'")

# `AutoModel` maps to the class that has `generate()`: that is what `AutoModel.from_pretrained` users want.
MODELS = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
AUTO_MAP = {"AutoConfig": "configuration_vift.VIFTConfig"}
AUTO_MAP |= dict.fromkeys(MODELS, "modeling_vift.VIFTForConditionalGeneration")
SIGLIP_SO400M = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
    "num_attention_heads": 16, "image_size": 384, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
QWEN2_7B = {
    "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
}  # fmt: skip


class VIFTConfig(LlavaConfig):
    r"""
    Everything `LlavaConfig` has, with the defaults of the 7B model, and the fusion fields below.

    Ability fusion (arXiv 2502.11427) mixes, at the input of each fused decoder layer, the hidden states of
    the prompt with image `h(v,q)` and without `h(q)`: `h'(v,q) = alpha * h(v,q) + beta * h(q)`.

    Args:
        fusion_enabled (`bool`, defaults to `True`): whether `generate()` fuses when not told otherwise.
        fusion_alpha (`float`, defaults to 1.0): weight of the image run, in [0, 2].
        fusion_beta (`float`, *optional*):
            Weight of the text run, in [-2, 2]; 0.1 (the paper's value for visual reasoning, with 14 fused layers)
            when neither it nor `fusion_dose` is given.
        fusion_dose (`float`, *optional*):
            beta times the number of fused layers, in [-64, 64]; an alternative to `fusion_beta` that carries over
            between depths (the paper's settings are doses of 1.4 and 2.1).
        fusion_layers (`float`, `str` or `list[int]`, defaults to 0.5):
            Fused decoder layers, counted from 0: a fraction of the top of the stack in (0, 1], a half-open band such
            as "14:28", or a list.
        fusion_rule (`str`, defaults to `"cascade"`): `"cascade"`, `"additive"` or `"independent"`, see `FUSION_RULES`.
        fusion_span (`str`, defaults to `"all"`): `"all"`, `"after_image"` or `"reference"`, see `FUSION_SPANS`.
        fusion_norm (`bool`, defaults to `False`): rescale each fused hidden state to the norm it had before.
        fusion_answer (`bool`, defaults to `False`):
            Fuse the answer's own tokens too, as they are decoded (the paper fuses the prompt only): each goes through
            the text run as well, up to the highest fused layer. Not with rules that read an image run.
        fusion_skip_first (`bool`, defaults to `False`):
            Leave the text run's first token out. In many pretrained language models it is an attention sink, with a
            norm some hundred times the others': "all" writes it onto itself, "reference" onto an image token.
        fusion_presets (`dict[str, dict]`): named overrides: `generate(..., fusion="reasoning")`.
        vision_prefix_tokens (`int`, defaults to 0): tokens that a tower puts before its patches, dropped (registers).
        vision_pool, vision_pixel_shuffle (`int`, default to 1):
            What the connector reads in the place of single patches: means over squares of so many patches a side (less
            at the far edges), then a square's patches side by side. 224 pixels, patches of 16, shuffle 2: 49 tokens.
        image_wrapper_token_ids (`list[int]`, defaults to `[]`):
            Ids that only wrap an image (such as `<|vision_start|>`) and are dropped from the text run with it.

    Raises:
        ValueError: if a fusion field is unknown, out of range or contradicts another one; the message names it.
    """

    model_type = MODEL_TYPE
    image_token_index: int = 151665
    image_seq_length: int = 729
    vision_feature_select_strategy: str = "full"
    vision_feature_layer: Any = -2
    vision_prefix_tokens: int = 0
    vision_pool: int = 1
    vision_pixel_shuffle: int = 1

    fusion_enabled: bool = True
    fusion_alpha: Any = 1.0
    fusion_beta: Any = None
    fusion_dose: Any = None
    fusion_layers: Any = 0.5
    fusion_rule: Any = "cascade"
    fusion_span: Any = "all"
    fusion_norm: bool = False
    fusion_answer: bool = False
    fusion_skip_first: bool = False
    fusion_presets: Any = None
    image_wrapper_token_ids: Any = None

    def __post_init__(self, **kwargs):
        if self.fusion_beta is None and self.fusion_dose is None:
            self.fusion_beta = 0.1
        if self.fusion_presets is None:
            # the paper's settings, whole, so that they mean the same whatever this model's own setting is
            paper = {"alpha": 1.0, "fusion_layers": 0.5, "fusion_answer": False}
            self.fusion_presets = {"reasoning": paper | {"beta": 0.1}, "instruction": paper | {"beta": 0.15}}
        for name, least in (("vision_prefix_tokens", 0), ("vision_pool", 1), ("vision_pixel_shuffle", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        self.image_wrapper_token_ids = list(self.image_wrapper_token_ids or [])
        for name, default in (("vision_config", SIGLIP_SO400M), ("text_config", QWEN2_7B)):
            given = getattr(self, name)
            if given is None or isinstance(given, dict):
                setattr(self, name, dict(default) if given is None else {"model_type": default["model_type"]} | given)
        super().__post_init__(**kwargs)
        if getattr(self, "auto_map", None) is None:
            self.auto_map = dict(AUTO_MAP)
        for fusion in (True, *self.fusion_presets):
            resolve_fusion(self, fusion)
