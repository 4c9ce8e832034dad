"""VIFT: LLaVA's layout with ability fusion inside `generate()` and `forward()` (arXiv 2502.11427).

How a fused `generate()` runs:
1. one text-only pass over the prompts without their image placeholders (`text_stream`): no image, no KV cache,
   it stops at the last fused layer and keeps the inputs of the fused layers only;
2. the ordinary `generate()`; `prepare_inputs_for_generation` hands a `PromptFusion` to the prefill as the keyword
   `fusion`, which travels through the language model to each decoder layer, where a hook applies it.

Nothing is kept on a module: the plan of a running `generate()` lives in a `ContextVar`, so that threads with other
coefficients do not mix and an exception leaves nothing behind. Attention, caches and the decoder loop are
transformers' own. Shapes: B rows, S tokens, N text tokens of all rows with an image, D hidden size.
"""

from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from transformers import GenerationMixin, LlavaForConditionalGeneration, LlavaModel, LlavaPreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .calibration_vift import calibrate
from .configuration_vift import VIFTConfig
from .fusion_vift import (
    FusionSettings,
    LayerRecorder,
    PromptFusion,
    StopForward,
    TextStream,
    position_in_row,
    resolve_fusion,
    span_columns,
    text_positions,
)

# (model, PromptFusion or None) of the generate() that is running in this thread
_RUNNING = ContextVar("vift_running_generate", default=(None, None))


@contextmanager
def _running(model, plan):
    token = _RUNNING.set((model, plan))
    try:
        yield
    finally:
        _RUNNING.reset(token)


def _fuse_embeddings(module, args, kwargs):
    """Pre-hook of the language model: its input embeddings are the input of layer 0."""
    if kwargs.get("fusion") is None:
        return None
    return args, kwargs | {"inputs_embeds": kwargs["fusion"](0, kwargs["inputs_embeds"])}


def _fuse_output(next_layer, module, args, kwargs, output):
    """Hook of a decoder layer: its output is the input of the next one (so `hidden_states` show fused states)."""
    fusion = kwargs.get("fusion")
    if fusion is None:
        return None
    if isinstance(output, tuple):
        return fusion(next_layer, output[0]), *output[1:]
    return fusion(next_layer, output)


class VIFTModel(LlavaModel):
    """Vision tower -> two-layer MLP -> decoder LM, without the LM head; `fusion` of `forward` is a `PromptFusion`."""

    config: VIFTConfig

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: every part initialises as transformers' own (the rule for custom code skips SigLIP's attention)."""
        return False

    def __init__(self, config: VIFTConfig):
        super().__init__(config)
        layers = getattr(self.language_model, "layers", None)
        if not isinstance(layers, nn.ModuleList):
            raise ValueError(
                f"text_config.model_type={config.text_config.model_type!r} has no list `layers` to fuse in"
            )
        self.language_model.register_forward_pre_hook(_fuse_embeddings, with_kwargs=True)
        for index, layer in enumerate(layers[:-1]):
            layer.register_forward_hook(partial(_fuse_output, index + 1), with_kwargs=True)


class VIFTForConditionalGeneration(LlavaForConditionalGeneration, GenerationMixin):
    """
    VIFT with LM head. Everything `generate()` of transformers does, fused as the config's `fusion_*` fields say.

    Example:

    ```python
    model = AutoModel.from_pretrained(path, trust_remote_code=True)
    model.generate(**inputs)  # fused as configured
    model.generate(**inputs, fusion=False)  # plain
    model.generate(**inputs, beta=0.15, fusion_layers="14:28")
    ```
    """

    config: VIFTConfig

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: every part initialises as transformers' own (the rule for custom code skips SigLIP's attention)."""
        return False

    def __init__(self, config: VIFTConfig):
        LlavaPreTrainedModel.__init__(self, config)
        self.model = VIFTModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        image_sizes: torch.Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        fusion=None,
        **kwargs: Unpack[TransformersKwargs],
    ):
        """
        `LlavaForConditionalGeneration.forward`, unfused unless `fusion` is given.

        Args:
            fusion (`bool`, `str`, `dict`, *optional*):
                True, a preset's name or a dict such as `{"beta": 0.1}` for fused scoring: the prompt is fused and
                the rest is read as `generate()` would have. With `labels`, a row's prompt ends before its first
                label that is not -100; without, it is the whole row. A `PromptFusion` is applied as it is.

        Raises:
            ValueError: images and placeholders that do not match (with both numbers), `inputs_embeds` or a filled
                cache together with `fusion`, or a bad fusion argument.
        """
        if not torch.compiler.is_compiling() and _RUNNING.get()[0] is None and not past_key_values:
            self._check_images(input_ids, pixel_values, mm_encoder_outputs)
        if isinstance(fusion, bool | str | dict):
            settings = resolve_fusion(self.config, fusion)
            fusion = None
            if settings is not None:
                if input_ids is None or (past_key_values is not None and past_key_values.get_seq_length() > 0):
                    raise ValueError(
                        "fusion needs whole prompts as input_ids: no inputs_embeds, no filled past_key_values"
                    )
                mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
                prompt_mask = mask if labels is None else mask * (labels == -100).cumprod(dim=1)
                fusion = self._plan_fusion(
                    settings,
                    input_ids,
                    prompt_mask,
                    attention_mask=mask,
                    position_ids=position_ids,
                    pixel_values=pixel_values,
                    image_sizes=image_sizes,
                    mm_encoder_outputs=mm_encoder_outputs,
                )
        if fusion is not None:
            kwargs["fusion"] = fusion
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            logits_to_keep=logits_to_keep,
            image_sizes=image_sizes,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.LongTensor | None = None,
        generation_config=None,
        *,
        fusion=None,
        alpha=None,
        beta=None,
        dose=None,
        fusion_layers=None,
        fusion_rule: str | None = None,
        fusion_span: str | None = None,
        fusion_norm: bool | None = None,
        text_stream: TextStream | None = None,
        **kwargs,
    ):
        """
        `GenerationMixin.generate` with ability fusion in the prefill, for the rows that hold an image.

        Args:
            fusion (`bool`, `str` or `dict`, *optional*): on, off, or the name of a preset; the config decides if None.
            alpha, beta (`float` or `torch.Tensor` of shape (B,), *optional*): the paper's coefficients, one a row.
            dose (`float`, *optional*): instead of beta: beta times the number of fused layers.
            fusion_layers, fusion_rule, fusion_span, fusion_norm: see `VIFTConfig`.
            text_stream (`TextStream`, *optional*):
                What to fuse in place of this prompt's own text run, see `text_stream()`.
            kwargs: everything `generate()` and the processor know.

        Raises:
            ValueError: a bad fusion argument; images and placeholders that do not match; `inputs_embeds` without
                `input_ids`; `past_key_values` with only the new ids; a paged cache.
        """
        settings = resolve_fusion(
            self.config,
            fusion,
            alpha=alpha,
            beta=beta,
            dose=dose,
            fusion_layers=fusion_layers,
            fusion_rule=fusion_rule,
            fusion_span=fusion_span,
            fusion_norm=fusion_norm,
        )
        if kwargs.get("pixel_values") is None:
            kwargs.pop("pixel_values", None)
        input_ids = inputs if inputs is not None else kwargs.get("input_ids")
        plan = None
        if input_ids is not None and input_ids.ndim == 2:
            cache = kwargs.get("past_key_values")
            past = 0 if cache is None else int(cache.get_seq_length())
            new_ids_only = past > 0 and not self._holds_cached_ids(input_ids, past, kwargs.get("attention_mask"))
            if past and not new_ids_only and "pixel_values" in kwargs:
                self._drop_cached_images(input_ids, past, kwargs)
            if kwargs.get("inputs_embeds") is None:  # which may hold the image already
                new_ids = input_ids if new_ids_only else input_ids[:, past:]
                self._check_images(new_ids, kwargs.get("pixel_values"), kwargs.get("mm_encoder_outputs"))
            resumed = past > 0 and past == input_ids.shape[1] - 1  # no new prompt: the next token of an answer
            if settings is not None and not resumed and (input_ids == self.config.image_token_id).any():
                if new_ids_only:
                    raise ValueError(
                        f"past_key_values holds {past} tokens and input_ids has {input_ids.shape[1]}: fusion needs "
                        "the ids of the whole conversation, the cached ones too; or pass fusion=False"
                    )
                if "paged" in (
                    kwargs.get("cache_implementation"),
                    getattr(generation_config, "cache_implementation", None),
                ):
                    raise ValueError(
                        "cache_implementation='paged' cannot be fused: choose another cache, or pass fusion=False"
                    )
                mask = self._attention_mask(input_ids, generation_config, kwargs)
                plan = self._plan_fusion(
                    settings,
                    input_ids,
                    mask,
                    text_stream,
                    attention_mask=mask,
                    inputs_embeds=kwargs.get("inputs_embeds"),
                    pixel_values=kwargs.get("pixel_values"),
                    mm_encoder_outputs=kwargs.get("mm_encoder_outputs"),
                )
        elif settings is not None and kwargs.get("inputs_embeds") is not None:
            raise ValueError("inputs_embeds without input_ids cannot be fused: pass input_ids too, or fusion=False")
        if text_stream is not None and plan is None:
            raise ValueError("text_stream is given but nothing is fused: fusion is off or no row holds an image")
        with _running(self, plan):
            return super().generate(inputs, generation_config, **kwargs)

    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, is_first_iteration=False, **kwargs):
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        model, plan = _RUNNING.get()
        cached = kwargs.get("use_cache", True)
        if plan is not None and model is self and (is_first_iteration or not cached):
            tokens = model_inputs["inputs_embeds" if model_inputs.get("input_ids") is None else "input_ids"]
            cache = kwargs.get("past_key_values")
            offset = int(cache.get_seq_length()) if cached and cache is not None else 0
            model_inputs["fusion"] = plan.at(tokens.shape[0], tokens.shape[1], offset)
        return model_inputs

    def text_stream(self, input_ids, attention_mask=None, fusion_layers=None) -> TextStream:
        """
        One run over the prompts without their images, at positions 0 ... T-1: h(q) at the input of each fused layer.

        Args:
            input_ids, attention_mask (`torch.LongTensor` of shape (B, S)): the prompts with image placeholders.
            fusion_layers (*optional*): as in `generate()`; the config's when None.

        Returns:
            `TextStream`, with N text tokens from the rows that hold an image. `generate()` takes it, edited or not.

        Raises:
            ValueError: no row holds an image, or the language model does not hand keywords to its layers.
        """
        layers = resolve_fusion(self.config, True, fusion_layers=fusion_layers).layers
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows, columns = text_positions(
            input_ids, mask, self.config.image_token_id, self.config.image_wrapper_token_ids
        )
        if not len(rows):
            raise ValueError(f"input_ids hold no image token ({self.config.image_token_id}) with text around it")
        # right-padded and causal: no token sees the padding, so that no mask is needed
        packed_rows, packed_columns = torch.unique_consecutive(rows, return_inverse=True)[1], position_in_row(rows)
        text_ids = input_ids.new_zeros(int(packed_rows[-1]) + 1, int(packed_columns.max()) + 1)
        text_ids[packed_rows, packed_columns] = input_ids[rows, columns]
        return TextStream(self._record(layers, packed_rows, packed_columns, input_ids=text_ids), rows, columns)

    def calibrate(self, processor, images, questions, **options) -> dict:
        """Choose alpha, dose and band from unlabelled prompts and keep them in the config: `calibration_vift`."""
        return calibrate(self, processor, images, questions, **options)

    def _record(self, layers, rows, columns, **model_inputs) -> dict[int, torch.Tensor]:
        """Inputs of `layers` at the given positions in an unfused run through the whole model's `forward`."""
        # sharded and offloaded modules must finish their forward; autograd's checkpoints too
        whole = torch.is_grad_enabled() or any(
            hasattr(self, name) for name in ("_hf_hook", "_get_fsdp_state", "ds_config")
        )
        recorder = LayerRecorder(layers, rows, columns, stop_early=not whole)
        with _running(self, None), suppress(StopForward):
            self(**model_inputs, use_cache=False, logits_to_keep=1, fusion=recorder)
        if missing := set(layers) - set(recorder.states):
            name = self.config.text_config.model_type
            raise ValueError(
                f"text_config.model_type={name!r} cannot be fused: its layers {sorted(missing)} never saw "
                "the keyword `fusion` of the forward pass"
            )
        return recorder.states

    def _plan_fusion(
        self, settings: FusionSettings, input_ids, prompt_mask, stream=None, **image_run
    ) -> PromptFusion | None:
        """The fusion of the prompts (B, S) marked by `prompt_mask`; None when no row holds an image."""
        image_id = self.config.image_token_id
        rows, columns = text_positions(input_ids, prompt_mask, image_id, self.config.image_wrapper_token_ids)
        if not len(rows):
            return None
        batch_size = len(input_ids)
        for name in ("alpha", "beta"):
            value = getattr(settings, name)
            if isinstance(value, torch.Tensor):
                if len(value) != batch_size:
                    raise ValueError(f"{name} has {len(value)} values, the batch has {batch_size} rows")
                settings = replace(settings, **{name: value.to(rows.device)[rows, None]})
        if stream is None:
            stream = self.text_stream(input_ids, prompt_mask, list(settings.layers))
        for layer in settings.layers:
            if layer not in stream.states or len(stream.states[layer]) != len(rows):
                found = len(stream.states[layer]) if layer in stream.states else "no"
                raise ValueError(
                    f"text_stream has {found} states for layer {layer}, the prompts have {len(rows)} text tokens"
                )
        target = span_columns(settings.span, input_ids, prompt_mask, image_id, rows, columns)
        image_states = None
        if settings.needs_image_run:
            mask = image_run.pop("attention_mask")
            if image_run.get("position_ids") is None:
                image_run["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
            if image_run.get("inputs_embeds") is None:
                image_run["input_ids"] = input_ids
            image_states = self._record(settings.layers, rows, target.clamp(min=0), attention_mask=mask, **image_run)
        source = (target >= 0).nonzero().flatten()
        states = {layer: stream.states[layer] for layer in settings.layers}
        return PromptFusion(settings, states, image_states, rows[source], target[source], source, batch_size)

    def _check_images(self, input_ids, pixel_values, mm_encoder_outputs):
        """Both sides of "Image features and image tokens do not match", before anything is computed."""
        if input_ids is None or mm_encoder_outputs:
            return
        num_tokens = int((input_ids == self.config.image_token_id).sum())
        num_images = 0 if pixel_values is None else len(pixel_values)
        if num_tokens and not num_images:
            raise ValueError(
                f"the prompt has {num_tokens} image tokens but pixel_values holds 0 images: pass the images, "
                "or remove the placeholders"
            )
        if not num_images:
            return
        expected = num_images * self._tokens_per_image(pixel_values)
        if num_tokens != expected:
            raise ValueError(
                f"the prompt has {num_tokens} image tokens but pixel_values holds {num_images} images, which "
                f"take {expected}: give as many images as there are placeholders"
            )

    def _tokens_per_image(self, pixel_values) -> int:
        vision = self.config.vision_config
        patches = (pixel_values.shape[-2] // vision.patch_size) * (pixel_values.shape[-1] // vision.patch_size)
        class_token = "clip" in vision.model_type and "siglip" not in vision.model_type
        return patches + class_token - (self.config.vision_feature_select_strategy == "default")

    def _drop_cached_images(self, input_ids, past: int, kwargs):
        """Several turns on one cache: of the conversation's images, keep those whose placeholders are new."""
        per_image = self._tokens_per_image(kwargs["pixel_values"])
        is_image = input_ids == self.config.image_token_id
        images, cached = is_image.sum(dim=1) // per_image, is_image[:, :past].sum(dim=1) // per_image
        if len(kwargs["pixel_values"]) == int(images.sum()):
            keep = torch.cat([torch.arange(n) >= c for n, c in zip(images.tolist(), cached.tolist(), strict=True)])
            kwargs["pixel_values"] = kwargs["pixel_values"][keep.to(kwargs["pixel_values"].device)]
            if not len(kwargs["pixel_values"]):
                del kwargs["pixel_values"]

    @staticmethod
    def _holds_cached_ids(input_ids, past: int, mask) -> bool:
        """Whether `input_ids` is the whole conversation (as `generate()` tells it from the new ids alone)."""
        return input_ids.shape[1] > past and (mask is None or mask.shape[1] == input_ids.shape[1])

    def _attention_mask(self, input_ids, generation_config, kwargs):
        """The mask given, or the one `generate()` would infer from the padding ids."""
        if kwargs.get("attention_mask") is None:
            config = generation_config or self.generation_config
            pad, eos = (kwargs.get(name, getattr(config, name)) for name in ("pad_token_id", "eos_token_id"))
            if pad is None or pad == eos or (isinstance(eos, list) and pad in eos):
                kwargs["attention_mask"] = torch.ones_like(input_ids)
            else:
                kwargs["attention_mask"] = (input_ids != pad).long()
        return kwargs["attention_mask"]

    def init_continuous_batching(self, *args, **kwargs):
        if self.config.fusion_enabled and _RUNNING.get()[0] is not self:
            raise ValueError(
                "continuous batching cannot be fused: use generate(), or pass fusion=False "
                "(config.fusion_enabled=False for a server)"
            )
        return super().init_continuous_batching(*args, **kwargs)

    def generate_batch(self, *args, fusion=None, **kwargs):
        """Continuous batching, which cannot be fused: only with `fusion=False`."""
        if fusion is not False:
            return super().generate_batch(*args, **kwargs)
        with _running(self, None):
            return super().generate_batch(*args, **kwargs)


VIFTConfig.register_for_auto_class()
# Llava's names for the weights, so that Llava checkpoints load (custom classes inherit no conversion)
for _ours, _llavas in (("vift", "llava"), ("VIFTModel", "LlavaModel")):
    register_checkpoint_conversion_mapping(_ours, get_checkpoint_conversion_mapping(_llavas), overwrite=True)
VIFTForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["VIFTForConditionalGeneration", "VIFTModel"]
