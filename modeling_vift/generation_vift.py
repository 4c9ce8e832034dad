"""Ability fusion inside `generate()`, for VIFT and for any vision-language model of transformers (`attach_vift`).

How a fused `generate()` runs (h'(v,q) = alpha * h(v,q) + beta * h(q), arXiv 2502.11427):
1. settings are resolved and the prompt is checked: what cannot be fused is refused;
2. a plan is made (`fusion_vift`): one text-only pass over the prompts without their image placeholders gives h(q)
   (`text_run_vift`): no image, no KV cache, and it stops at the last fused layer;
3. the ordinary `generate()`; `prepare_inputs_for_generation` hands the plan's edit to the prefill as the keyword
   `fusion`, which travels through the language model to each decoder layer, where a hook applies it.
Shapes: B rows, S tokens.
"""

import inspect
from contextlib import nullcontext
from functools import partial
from itertools import islice

import torch
from torch import nn

from .fusion_vift import FusionEdit, FusionPlan, check_seen, running, running_plan
from .interfaces_vift import cache_in, has_deepstack, has_soft_prompt, makes_own_positions
from .positions_vift import is_one_of, position_in_row, span_columns, text_positions
from .settings_vift import OVERRIDES, resolve_fusion
from .text_run_vift import AnswerRun, FreshRun, TextStream, record


def _fuse_embeddings(module, args, kwargs):
    """Pre-hook of the language model: its input embeddings are the input of layer 0."""
    if kwargs.get("fusion") is None or kwargs.get("inputs_embeds") is None:  # a model that embeds inside (Chameleon)
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


def _check_fused(module, args, kwargs, output):
    """Hook of the language model, after its last layer."""
    if isinstance(fusion := kwargs.get("fusion"), FusionEdit):
        check_seen(fusion.text_states, fusion.written)


def register_fusion_hooks(language_model: nn.Module) -> list:
    """Makes the decoder's layers obey the keyword `fusion`; returns the hooks' handles."""
    layers = getattr(language_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        name = getattr(getattr(language_model, "config", None), "model_type", type(language_model).__name__)
        raise ValueError(f"text_config.model_type={name!r} has no list `layers` to fuse in")
    handles = [language_model.register_forward_pre_hook(_fuse_embeddings, with_kwargs=True)]
    handles.append(language_model.register_forward_hook(_check_fused, with_kwargs=True))
    for index, layer in enumerate(layers[:-1]):
        handles.append(layer.register_forward_hook(partial(_fuse_output, index + 1), with_kwargs=True))
    return handles


def check_hooks(decoder: nn.Module, planned) -> None:
    """Raises a ValueError that names the planned layers whose hook is not before them any more (or is gone)."""
    placed = {0} if _fuse_embeddings in decoder._forward_pre_hooks.values() else set()
    for index, layer in enumerate(decoder.layers[:-1], 1):
        hooks = [hook for module in layer.modules() for hook in module._forward_hooks.values()]
        placed |= {index for hook in hooks if getattr(hook, "func", 0) is _fuse_output and hook.args == (index,)}
    check_seen(planned, placed)


class FusedGeneration:
    """Before a `GenerationMixin` in a class's bases: its `generate()` fuses as `fusion_config` and the call say."""

    @torch.no_grad()
    def generate(self, inputs=None, generation_config=None, *, fusion=None, text_stream=None, **kwargs):
        """
        `GenerationMixin.generate` with ability fusion in the prefill, for the rows that hold an image.

        Args:
            fusion (`bool`, `str` or `dict`, *optional*): on, off, or the name of a preset; the config decides if None.
            alpha, beta, dose and all `fusion_...` of `VIFTConfig` (*optional*):
                Instead of the config's; `fusion_alpha` means `alpha`, and so on. alpha and beta may be (B,).
            text_stream (*optional*): where h(q) comes from: the `TextStream` to fuse in place of this prompt's own
                text run, or a `TextStreamCache` (not with `fusion_answer`).
            kwargs: everything `generate()` and the processor know.

        Raises:
            ValueError: a bad fusion argument; images and placeholders that do not match; `inputs_embeds` without
                `input_ids`; `past_key_values` with only the new ids; a paged cache.
        """
        overrides = {name: kwargs.pop(name) for name in list(kwargs) if name in OVERRIDES or name[:7] == "fusion_"}
        if isinstance(custom := kwargs.get("custom_generate"), str):  # a repository's, in the place of this one
            loading = {name: value for name, value in kwargs.items() if name != "custom_generate"}
            if hasattr(self.load_custom_generate(custom, **loading), "fuses"):  # generate.py of ours
                given = overrides | {"fusion": fusion, "text_stream": text_stream}
                kwargs |= {name: value for name, value in given.items() if value is not None}
                return super().generate(inputs, generation_config, **kwargs)
        model, outer = running_plan()
        if model is self and fusion is None and not overrides:  # within another generate(): as that one
            settings = None if outer is None else outer.settings
        else:
            settings = resolve_fusion(self.fusion_config, fusion, **overrides)
        prompt = self._prompt_to_fuse(settings, inputs, generation_config, text_stream, kwargs)
        plan = None if prompt is None else self._plan_fusion(settings, **prompt)
        with running(self, plan):
            output = super().generate(inputs, generation_config, **kwargs)
        if plan is not None and not plan.asked:
            decoder = f"custom_generate={custom!r}" if custom else f"generate() of {type(self).__name__}"
            raise ValueError(f"{decoder} made nothing of the fusion: it runs the model by itself; pass fusion=False")
        if model is self and outer is not None:
            outer.asked = True
        return output

    def _prompt_to_fuse(self, settings, inputs, generation_config, text_stream, kwargs) -> dict | None:
        """Arguments of `_plan_fusion`, or None when nothing is to be fused; raises what `generate()` refuses."""
        if kwargs.get("pixel_values") is None:
            kwargs.pop("pixel_values", None)
        text_run, prompt = FreshRun() if text_stream is None else text_stream, None
        if not hasattr(text_run, "states_of"):
            name = type(text_stream).__name__
            raise ValueError(f"text_stream is a {name}: pass a TextStream of model.text_run(), or a TextStreamCache")
        input_ids = inputs if inputs is not None else kwargs.get("input_ids")
        if settings is not None and has_soft_prompt(self):
            raise ValueError("soft prompts of PEFT stand before the text and cannot be fused: pass fusion=False")
        if input_ids is not None and input_ids.ndim == 2:
            prompt = self._whole_prompt(settings, input_ids, generation_config, kwargs)
        elif settings is not None and kwargs.get("inputs_embeds") is not None:
            raise ValueError("inputs_embeds without input_ids cannot be fused: pass input_ids too, or fusion=False")
        if settings is not None and settings.answer:
            kwargs.setdefault("disable_compile", True)  # a compiled decode would be another graph at each step
            if text_run.is_given:
                raise ValueError("text_stream holds the prompt's text run only: with fusion_answer=True pass none")
            text_run = text_run if makes_own_positions(self) else AnswerRun()
        if prompt is None and text_run.is_given:
            raise ValueError("text_stream is given but nothing is fused: fusion is off or no row holds an image")
        return None if prompt is None else prompt | {"text_run": text_run}

    def _whole_prompt(self, settings, input_ids, generation_config, kwargs) -> dict | None:
        """Whole prompts (B, S), their mask and what a run with images needs; None when nothing is to be fused."""
        cache, mask = cache_in(kwargs), kwargs.get("attention_mask")
        past = 0 if cache is None else int(cache.get_seq_length())
        # input_ids is the whole conversation, or (as `generate()` tells it, too) the new ids alone
        whole = input_ids.shape[1] > past and (mask is None or mask.shape[-1] == input_ids.shape[1])
        all_pixels = kwargs.get("pixel_values")
        self._check_prompt(input_ids, past, past > 0 and not whole, kwargs)
        if settings is None or not is_one_of(input_ids, self._image_ids()).any():
            return None
        if past > 0 and past == input_ids.shape[1] - 1 and not settings.answer:
            return None  # no new prompt: the next token of an answer
        if past > 0 and not whole:
            held = f"past_key_values holds {past} tokens and input_ids has {input_ids.shape[1]}"
            raise ValueError(f"{held}: fusion needs the ids of the whole conversation; or pass fusion=False")
        if "paged" in (kwargs.get("cache_implementation"), getattr(generation_config, "cache_implementation", None)):
            raise ValueError("cache_implementation='paged' cannot be fused: choose another, or pass fusion=False")
        mask = self._attention_mask(input_ids, generation_config, kwargs)
        known = inspect.signature(type(self).forward).parameters.keys()
        known -= {"input_ids", "past_key_values", "cache", "use_cache", "labels"}
        image_run = {name: value for name, value in kwargs.items() if name in known}
        if past and settings.needs_image_run:  # h_vq is a run of the whole conversation, with all its images
            image_run |= {} if all_pixels is None else {"pixel_values": all_pixels}
            self._check_prompt(input_ids, 0, False, image_run)
        return {"input_ids": input_ids, "prompt_mask": mask, **image_run}

    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, is_first_iteration=False, **kwargs):
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        (model, plan), cached = running_plan(), kwargs.get("use_cache", True)
        if plan is None or model is not self:
            return model_inputs
        plan.asked = True
        if plan.settings.answer and input_ids.shape[1] > plan.length:  # longer by the answer's tokens
            mask = kwargs.get("attention_mask")  # generate() drops one without zeros
            mask = torch.ones_like(input_ids) if mask is None else mask
            expand = len(input_ids) // plan.batch_size
            plan = self._plan_fusion(plan.settings, input_ids, mask, plan.text_run, expand)
        elif cached and not is_first_iteration:
            return model_inputs
        if plan is not None:  # None: another prompt than generate()'s, as guidance has
            tokens = model_inputs["inputs_embeds" if model_inputs.get("input_ids") is None else "input_ids"]
            cache = cache_in(kwargs)
            offset = int(cache.get_seq_length()) if cached and cache is not None else 0
            model_inputs["fusion"] = plan.edit(tokens.shape[0], tokens.shape[1], offset)
        return model_inputs

    def text_run(self, input_ids, attention_mask=None, fusion_layers=None) -> TextStream:
        """
        One run over the prompts (B, S) without their images: h(q) at the input of each fused layer, for all text
        tokens of the rows that hold an image; a ValueError where none does. `generate(text_stream=...)` takes it.
        """
        layers = resolve_fusion(self.fusion_config, True, fusion_layers=fusion_layers).layers
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows, columns, texts = self._text_tokens(input_ids, mask)
        if not len(rows):
            raise ValueError(f"input_ids hold no image token ({self.config.image_token_id}) with text around it")
        return TextStream(FreshRun().states_of(self, layers, texts, input_ids.device), rows, columns)

    def _text_tokens(self, input_ids, mask) -> tuple[torch.Tensor, torch.Tensor, list[tuple]]:
        """(rows, columns) of the N text tokens of the prompts (B, S), and the ids of each prompt."""
        rows, columns = text_positions(input_ids, mask, self._image_ids(), self.fusion_config.image_wrapper_token_ids)
        ids, counts = iter(input_ids[rows, columns].tolist()), torch.unique_consecutive(rows, return_counts=True)[1]
        return rows, columns, [tuple(islice(ids, n)) for n in counts.tolist()]

    def _plan_fusion(
        self, settings, input_ids, prompt_mask, text_run=None, expand=1, **image_run
    ) -> FusionPlan | None:
        """The plan for the prompts (B, S) in `prompt_mask`, where each row stands `expand` times; None without images.
        `image_run`: what a run with images needs besides."""
        rows, columns, texts = self._text_tokens(input_ids, prompt_mask)
        if not len(rows):
            return None
        for name in ("alpha", "beta"):
            value = getattr(settings, name)
            if isinstance(value, torch.Tensor) and len(value) * expand != len(input_ids):
                raise ValueError(f"{name} has {len(value)} values, the batch has {len(input_ids)} rows (so for dose)")
        if settings.span == "reference" and has_deepstack(self.config):
            reason = "writes image positions, where this model adds features between layers (DeepStack)"
            raise ValueError(f"fusion_span='reference' {reason}: use 'all' or 'after_image'")
        check_hooks(self.get_decoder(), settings.layers)
        text_states = (text_run or FreshRun()).states_of(self, settings.layers, texts, input_ids.device)
        target = span_columns(settings.span, input_ids, prompt_mask, self._image_ids(), rows, columns)
        if settings.skip_first:
            target = torch.where(position_in_row(rows) > 0, target, -1)
        image_states = None
        if settings.needs_image_run:
            if image_run.get("position_ids") is None and not makes_own_positions(self):
                image_run["position_ids"] = (image_run["attention_mask"].long().cumsum(-1) - 1).clamp(min=0)
            if image_run.get("inputs_embeds") is None:
                image_run["input_ids"] = input_ids
            image_states = record(self, settings.layers, rows, target.clamp(min=0), **image_run)
        source = (target >= 0).nonzero().flatten()
        strength, places = (settings.alpha, settings.beta), (rows[source], target[source], source)
        whole = FusionEdit(settings, *strength, text_states, image_states, *places)
        return FusionPlan(settings, text_run, whole, *input_ids.shape)

    def _image_ids(self) -> list[int]:
        """Placeholder ids of images and, where the model has them, of videos."""
        ids = (self.config.image_token_id, getattr(self.config, "video_token_id", None))
        return [i for i in ids if i is not None]

    def _check_prompt(self, input_ids, past: int, new_ids_only: bool, kwargs):
        """A model's own checks of `generate()`'s arguments before anything is computed; may change `kwargs`."""

    def _attention_mask(self, input_ids, generation_config, kwargs):
        """The mask given, or the one `generate()` would infer from the padding ids."""
        if kwargs.get("attention_mask") is None:
            config = generation_config or self.generation_config
            pad, eos = (kwargs.get(name, getattr(config, name)) for name in ("pad_token_id", "eos_token_id"))
            padded = pad is not None and pad not in (eos if isinstance(eos, list) else [eos])
            kwargs["attention_mask"] = (input_ids != pad).long() if padded else torch.ones_like(input_ids)
        return kwargs["attention_mask"]

    def init_continuous_batching(self, *args, **kwargs):
        if self.fusion_config.fusion_enabled and running_plan()[0] is not self:
            instead = "use generate(), or pass fusion=False (config.fusion_enabled=False for a server)"
            raise ValueError(f"continuous batching cannot be fused: {instead}")
        return super().init_continuous_batching(*args, **kwargs)

    def generate_batch(self, *args, fusion=None, **kwargs):
        """Continuous batching, which cannot be fused: only with `fusion=False`."""
        with running(self, None) if fusion is False else nullcontext():
            return super().generate_batch(*args, **kwargs)
