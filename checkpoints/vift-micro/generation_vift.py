"""Ability fusion inside `generate()`, for VIFT and for any vision-language model of transformers (`attach_vift`).

How a fused `generate()` runs (h'(v,q) = alpha * h(v,q) + beta * h(q), arXiv 2502.11427):
1. one text-only pass over the prompts without their image placeholders (`text_stream`): no image, no KV cache,
   it stops at the last fused layer and keeps the inputs of the fused layers only;
2. the ordinary `generate()`; `prepare_inputs_for_generation` hands a `PromptFusion` to the prefill as the keyword
   `fusion`, which travels through the language model to each decoder layer, where a hook applies it.
A short prompt makes both runs in one pass, the prefill (`packed_vift`).

Nothing is kept on a module: the plan of a running `generate()` lives in a `ContextVar`, so that threads with other
coefficients do not mix and an exception leaves nothing behind. Attention, caches and the decoder loop are
transformers' own. Shapes: B rows, S tokens, N text tokens of all rows with an image, D hidden size.
"""

import inspect
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from itertools import islice

import torch
from torch import nn
from transformers import GenerationMixin

from .configuration_vift import VIFTConfig
from .fusion_vift import (
    FusionSettings,
    LayerRecorder,
    PendingRun,
    PromptFusion,
    StopForward,
    TextStream,
    is_one_of,
    position_in_row,
    resolve_fusion,
    span_columns,
    text_positions,
)
from .packed_vift import PackedFusion, can_pack, gains_by_packing
from .streams_vift import GrowingStreams, TextStreamCache

# (model, PromptFusion or None) of the generate() that is running in this thread
_RUNNING = ContextVar("vift_running_generate", default=(None, None))
SHARDED = ("_get_fsdp_state", "ds_config")  # what FSDP2 and DeepSpeed leave on a model
# the argument that carries the KV cache: transformers 5.24 renamed it
_KNOWN = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE = "cache" if "cache" in _KNOWN else "past_key_values"


@contextmanager
def _running(model, plan):
    token = _RUNNING.set((model, plan))
    try:
        yield
    finally:
        _RUNNING.reset(token)


def _cache_in(kwargs):
    return kwargs.get("cache") if kwargs.get("past_key_values") is None else kwargs["past_key_values"]


def generating() -> bool:
    """Whether a `generate()` is running in this thread."""
    return _RUNNING.get()[0] is not None


def _fuse_embeddings(module, args, kwargs):
    """Pre-hook of the language model: its input embeddings are the input of layer 0."""
    fusion = kwargs.get("fusion")
    if fusion is None:
        return None
    if isinstance(fusion, PackedFusion):
        kwargs = fusion.pack(kwargs, module.config._attn_implementation)
    return args, kwargs | {"inputs_embeds": fusion(0, kwargs["inputs_embeds"])}


def _unpack(module, args, kwargs, output):
    """Hook of the language model, after its last layer."""
    fusion = kwargs.get("fusion")
    return fusion.unpack(_cache_in(kwargs), output) if isinstance(fusion, PackedFusion) else None


def _fuse_output(next_layer, module, args, kwargs, output):
    """Hook of a decoder layer: its output is the input of the next one (so `hidden_states` show fused states)."""
    fusion = kwargs.get("fusion")
    if fusion is None:
        return None
    if isinstance(output, tuple):
        return fusion(next_layer, output[0]), *output[1:]
    return fusion(next_layer, output)


def register_fusion_hooks(language_model: nn.Module) -> list:
    """Makes the decoder's layers obey the keyword `fusion`; returns the hooks' handles."""
    layers = getattr(language_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        name = getattr(getattr(language_model, "config", None), "model_type", type(language_model).__name__)
        raise ValueError(f"text_config.model_type={name!r} has no list `layers` to fuse in")
    handles = [language_model.register_forward_pre_hook(_fuse_embeddings, with_kwargs=True)]
    handles.append(language_model.register_forward_hook(_unpack, with_kwargs=True))
    for index, layer in enumerate(layers[:-1]):
        handles.append(layer.register_forward_hook(partial(_fuse_output, index + 1), with_kwargs=True))
    return handles


class FusedGeneration:
    """Before a `GenerationMixin` in a class's bases: its `generate()` fuses as `fusion_config` and the call say."""

    fusion_config: VIFTConfig
    packs = False  # whether a text run may be packed into the prefill: known to be exact for VIFT's own layout

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
        fusion_answer: bool | None = None,
        text_stream: TextStream | TextStreamCache | None = None,
        **kwargs,
    ):
        """
        `GenerationMixin.generate` with ability fusion in the prefill, for the rows that hold an image.

        Args:
            fusion (`bool`, `str` or `dict`, *optional*): on, off, or the name of a preset; the config decides if None.
            alpha, beta (`float` or `torch.Tensor` of shape (B,), *optional*): the paper's coefficients, one a row.
            dose (`float`, *optional*): instead of beta: beta times the number of fused layers.
            fusion_layers, fusion_rule, fusion_span, fusion_norm, fusion_answer: see `VIFTConfig`.
            text_stream (`TextStream` or `TextStreamCache`, *optional*):
                What to fuse in place of this prompt's own text run, see `text_stream()`; or where the runs of
                questions asked before are kept (not with `fusion_answer`).
            kwargs: everything `generate()` and the processor know.

        Raises:
            ValueError: a bad fusion argument; images and placeholders that do not match; `inputs_embeds` without
                `input_ids`; `past_key_values` with only the new ids; a paged cache.
        """
        overrides = {
            "alpha": alpha,
            "beta": beta,
            "dose": dose,
            "fusion_layers": fusion_layers,
            "fusion_rule": fusion_rule,
            "fusion_span": fusion_span,
            "fusion_norm": fusion_norm,
            "fusion_answer": fusion_answer,
        }
        if isinstance(kwargs.get("custom_generate"), str):  # a repository's generate() in the place of this one
            given = overrides | {"fusion": fusion, "text_stream": text_stream}
            kwargs |= {name: value for name, value in given.items() if value is not None}
            return super().generate(inputs, generation_config, **kwargs)
        settings = resolve_fusion(self.fusion_config, fusion, **overrides)
        if kwargs.get("pixel_values") is None:
            kwargs.pop("pixel_values", None)
        input_ids = inputs if inputs is not None else kwargs.get("input_ids")
        plan = None
        if input_ids is not None and input_ids.ndim == 2:
            cache = _cache_in(kwargs)
            past = 0 if cache is None else int(cache.get_seq_length())
            new_ids_only = past > 0 and not self._holds_cached_ids(input_ids, past, kwargs.get("attention_mask"))
            all_pixels = kwargs.get("pixel_values")
            self._check_prompt(input_ids, past, new_ids_only, kwargs)
            answer_too = settings is not None and settings.answer
            # no new prompt: the next token of an answer
            resumed = past > 0 and past == input_ids.shape[1] - 1 and not answer_too
            if answer_too:
                kwargs.setdefault("disable_compile", True)  # a compiled decode would be another graph at each step
                if hasattr(text_stream, "states"):
                    raise ValueError("text_stream holds the prompt's text run only: with fusion_answer=True pass none")
                if not hasattr(self.base_model, "get_rope_index"):  # a model with M-RoPE makes its own positions
                    text_stream = GrowingStreams(CACHE, input_ids.device)
            if settings is not None and not resumed and is_one_of(input_ids, self._image_ids()).any():
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
                known = inspect.signature(type(self).forward).parameters.keys()
                known -= {"input_ids", "past_key_values", "cache", "use_cache", "labels"}
                image_run = {name: value for name, value in kwargs.items() if name in known}
                if past and settings.needs_image_run:  # h_vq is a run of the whole conversation, with all its images
                    image_run |= {} if all_pixels is None else {"pixel_values": all_pixels}
                    self._check_prompt(input_ids, 0, False, image_run)
                later = self.packs and text_stream is None and kwargs.get("position_ids") is None
                plan = self._plan_fusion(settings, input_ids, mask, text_stream, may_pack=later, **image_run)
        elif settings is not None and kwargs.get("inputs_embeds") is not None:
            raise ValueError("inputs_embeds without input_ids cannot be fused: pass input_ids too, or fusion=False")
        if hasattr(text_stream, "states") and plan is None:
            raise ValueError("text_stream is given but nothing is fused: fusion is off or no row holds an image")
        with _running(self, plan):
            return super().generate(inputs, generation_config, **kwargs)

    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, is_first_iteration=False, **kwargs):
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        model, plan = _RUNNING.get()
        cached = kwargs.get("use_cache", True)
        grown = plan is not None and plan.settings.answer and input_ids.shape[1] > plan.length
        if plan is not None and model is self and (is_first_iteration or not cached or grown):
            if grown:  # by the answer's tokens
                mask = kwargs.get("attention_mask")  # generate() drops one without zeros
                mask = torch.ones_like(input_ids) if mask is None else mask
                expand = len(input_ids) // plan.batch_size
                plan = self._plan_fusion(plan.settings, input_ids, mask, plan.streams, expand)
            if plan is None:  # another prompt than generate()'s, as guidance has
                return model_inputs
            tokens = model_inputs["inputs_embeds" if model_inputs.get("input_ids") is None else "input_ids"]
            cache = _cache_in(kwargs)
            offset = int(cache.get_seq_length()) if cached and cache is not None else 0
            fusion = plan.at(tokens.shape[0], tokens.shape[1], offset)
            if fusion is not None and not plan.text_states:  # the text run is still to come
                if offset == 0 and can_pack(self, plan, model_inputs, cache):
                    fusion = PackedFusion.of(fusion, tokens.shape[1], plan.pending)
                else:
                    plan.text_states.update(plan.pending.run().states)
            model_inputs["fusion"] = fusion
        return model_inputs

    def text_stream(self, input_ids, attention_mask=None, fusion_layers=None, kept=None) -> TextStream:
        """
        One run over the prompts without their images, at positions 0 ... T-1: h(q) at the input of each fused layer.

        Args:
            input_ids, attention_mask (`torch.LongTensor` of shape (B, S)): the prompts with image placeholders.
            fusion_layers (*optional*): as in `generate()`; the config's when None.
            kept (`TextStreamCache`, *optional*): streams of texts that were run before; new ones are put there.

        Returns:
            `TextStream`, with N text tokens from the rows that hold an image. `generate()` takes it, edited or not.

        Raises:
            ValueError: no row holds an image, or the language model does not hand keywords to its layers.
        """
        layers = resolve_fusion(self.fusion_config, True, fusion_layers=fusion_layers).layers
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows, columns = text_positions(input_ids, mask, self._image_ids(), self.fusion_config.image_wrapper_token_ids)
        if not len(rows):
            raise ValueError(f"input_ids hold no image token ({self.config.image_token_id}) with text around it")
        ids = iter(input_ids[rows, columns].tolist())
        texts = [tuple(islice(ids, n)) for n in torch.unique_consecutive(rows, return_counts=True)[1].tolist()]

        def run(new: list) -> dict:
            # right-padded and causal: no token sees the padding, so that no mask is needed
            padded = nn.utils.rnn.pad_sequence([input_ids.new_tensor(text) for text in new], batch_first=True)
            sizes = [len(text) for text in new]
            places = torch.arange(len(new), device=rows.device).repeat_interleave(rows.new_tensor(sizes))
            states = self._record(layers, places, position_in_row(places), input_ids=padded)
            parts = zip(*(states[layer].split(sizes) for layer in layers))
            return {text: dict(zip(layers, part)) for text, part in zip(new, parts)}

        unique = list(dict.fromkeys(texts))  # a question of several rows runs once
        alone = kept is None or any(hasattr(self, name) for name in SHARDED)  # sharded: all ranks run, or none
        streams = run(unique) if alone else kept.get(self, layers, unique, run)
        states = {layer: torch.cat([streams[text][layer] for text in texts]) for layer in layers}
        return TextStream(states, rows, columns)

    def _record(self, layers, rows, columns, **model_inputs) -> dict[int, torch.Tensor]:
        """Inputs of `layers` at the given positions in an unfused run through the whole model's `forward`."""
        # sharded and offloaded modules must finish their forward; autograd's checkpoints too
        whole = torch.is_grad_enabled() or any(hasattr(self, name) for name in ("_hf_hook", *SHARDED))
        recorder = LayerRecorder(layers, rows, columns, stop_early=not whole)
        model_inputs = {"use_cache": False} | model_inputs | {"logits_to_keep": 1, "fusion": recorder}
        with _running(self, None), suppress(StopForward):
            self(**model_inputs)
        if missing := set(layers) - set(recorder.states):
            name = self.config.get_text_config().model_type
            raise ValueError(
                f"text_config.model_type={name!r} cannot be fused: its layers {sorted(missing)} never saw "
                "the keyword `fusion` of the forward pass"
            )
        return recorder.states

    def _plan_fusion(
        self,
        settings: FusionSettings,
        input_ids,
        prompt_mask,
        stream=None,
        expand: int = 1,
        may_pack: bool = False,
        **image_run,
    ) -> PromptFusion | None:
        """The fusion of the prompts (B, S) marked by `prompt_mask`, in which each row stands `expand` times; None when
        no row holds an image. With `may_pack`, a text run that could be packed into the prefill is left pending."""
        image_ids, wrapper_ids = self._image_ids(), self.fusion_config.image_wrapper_token_ids
        rows, columns = text_positions(input_ids, prompt_mask, image_ids, wrapper_ids)
        if not len(rows):
            return None
        batch_size = len(input_ids)
        for name in ("alpha", "beta"):
            value = getattr(settings, name)
            if isinstance(value, torch.Tensor) and len(value) * expand != batch_size:
                raise ValueError(f"{name} has {len(value)} values, the batch has {batch_size} rows")
        pending, streams = None, stream
        if may_pack and gains_by_packing(self, settings, input_ids, rows):
            run = partial(self.text_stream, input_ids, prompt_mask, list(settings.layers))
            pending = PendingRun(run, rows, columns, is_one_of(input_ids, image_ids).int().argmax(dim=1))
        elif not hasattr(stream, "states"):  # none, or a cache (isinstance fails across copies of this code)
            stream = self.text_stream(input_ids, prompt_mask, list(settings.layers), stream)
        for layer in settings.layers if pending is None else ():
            if layer not in stream.states or len(stream.states[layer]) != len(rows):
                found = len(stream.states[layer]) if layer in stream.states else "no"
                raise ValueError(
                    f"text_stream has {found} states for layer {layer}, the prompts have {len(rows)} text tokens"
                )
        if settings.span == "reference" and hasattr(self.config.vision_config, "deepstack_visual_indexes"):
            raise ValueError(
                "fusion_span='reference' writes image positions, where this model adds features between layers "
                "(DeepStack): use 'all' or 'after_image'"
            )
        target = span_columns(settings.span, input_ids, prompt_mask, image_ids, rows, columns)
        image_states = None
        if settings.needs_image_run:
            mask = image_run["attention_mask"]
            # a model with M-RoPE makes its own positions from the grid of patches
            if image_run.get("position_ids") is None and not hasattr(self.base_model, "get_rope_index"):
                image_run["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
            if image_run.get("inputs_embeds") is None:
                image_run["input_ids"] = input_ids
            image_states = self._record(settings.layers, rows, target.clamp(min=0), **image_run)
        source = (target >= 0).nonzero().flatten()
        states = {} if pending else {layer: stream.states[layer] for layer in settings.layers}
        places = rows[source], target[source], source
        return PromptFusion(settings, states, image_states, *places, batch_size, input_ids.shape[1], pending, streams)

    def _image_ids(self) -> list[int]:
        """Placeholder ids of images and, where the model has them, of videos."""
        ids = (self.config.image_token_id, getattr(self.config, "video_token_id", None))
        return [i for i in ids if i is not None]

    def _check_prompt(self, input_ids, past: int, new_ids_only: bool, kwargs):
        """A model's own checks of `generate()`'s arguments before anything is computed; may change `kwargs`."""

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
        if self.fusion_config.fusion_enabled and _RUNNING.get()[0] is not self:
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
