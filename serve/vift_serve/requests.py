"""What a request asks of fusion: its settings, which of its tokens are written with which state, its cache's salt.

Settings have the names of `generate()` and come in `SamplingParams.extra_args`, over HTTP in `vllm_xargs`. A request
is one row of the batch: S tokens in its prompt, N of them text.
"""

import hashlib
import json
from dataclasses import dataclass, field

import numpy as np
import torch

from modeling_vift.attach_vift import _wrapper_ids
from modeling_vift.configuration_vift import VIFTConfig
from modeling_vift.interfaces_vift import has_deepstack
from modeling_vift.positions_vift import is_one_of, span_columns, text_positions
from modeling_vift.settings_vift import OVERRIDES, STRENGTHS, SWITCHES, FusionSettings, resolve_fusion

ARGUMENTS = ("fusion", *OVERRIDES, *(f"fusion_{name}" for name in STRENGTHS))
OF_VLLM = ("kv_transfer_params", "ec_transfer_params", "kv_cache_report_mode", "session_id")  # its own extra_args
_BOOLEANS = {0: False, 1: True, "false": False, "true": True}  # `vllm_xargs` has no booleans: JSON's true comes as 1


class RequestFusion:
    """Fusion's terms of one model, given its config."""

    def __init__(self, config):
        self.config = config
        self.fusion_config = config if hasattr(config, "fusion_presets") else _attached(config)
        ids = (config.image_token_id, getattr(config, "video_token_id", None))
        self.image_ids = [i for i in ids if i is not None]

    def settings(self, extra_args: dict | None) -> FusionSettings | None:
        """
        Settings of a request as `generate()` resolves them; None where fusion is off.

        Raises:
            ValueError: with `resolve_fusion`'s message; an argument that is neither ours nor vLLM's; several values
                for one row; a rule that reads a run of the prompt with its image.
        """
        given = {name: value for name, value in (extra_args or {}).items() if name not in OF_VLLM}
        if unknown := sorted(str(name) for name in given if name not in ARGUMENTS):
            raise ValueError(f"unknown argument {unknown[0]!r} in vllm_xargs; known: {', '.join(ARGUMENTS)}")
        for name in ("fusion", *SWITCHES):
            value = given.get(name)
            if isinstance(value, int | str) and value in _BOOLEANS:
                given[name] = _BOOLEANS[value]
        settings = resolve_fusion(self.fusion_config, given.pop("fusion", None), **given)
        if settings is None:
            return None
        for name in ("alpha", "beta"):
            if isinstance(value := getattr(settings, name), torch.Tensor):
                raise ValueError(f"{name}={value.tolist()} must be one number: a request is one row")
        if settings.needs_image_run:
            why = "needs a second run of the prompt with its image (h_vq), which is not made here: use 'cascade'"
            raise ValueError(f"fusion_rule={settings.rule!r} with alpha={settings.alpha} {why}")
        if settings.span == "reference" and has_deepstack(self.config):
            why = "writes image positions, where this model adds features between layers (DeepStack)"
            raise ValueError(f"fusion_span='reference' {why}: use 'all' or 'after_image'")
        return settings

    def salt(self, settings: FusionSettings | None, prompt_ids: list[int]) -> str | None:
        """
        What a prompt's KV cache depends on besides tokens and images: equal salts, equal KV of a common prefix.

        None where nothing is fused: such requests share the cache of an unfused server. Under the spans `after_image`
        and `reference`, what is written in a prefix depends on how many image tokens the whole prompt has.
        """
        count = 0 if settings is None else sum(token in self.image_ids for token in prompt_ids)
        if not count:
            return None
        kept = dict(vars(settings))
        if settings.span != "all":
            kept["images"] = [count, sum(token in self.fusion_config.image_wrapper_token_ids for token in prompt_ids)]
        return "vift:" + hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

    def request(self, settings: FusionSettings | None, prompt_ids: list[int], outputs: list[int]):
        """The `FusedRequest` of a row; None where fusion is off or the prompt holds no image: it is untouched."""
        if settings is None:
            return None
        ids, mask = torch.tensor([prompt_ids]), torch.ones(1, len(prompt_ids), dtype=torch.long)
        wrappers = self.fusion_config.image_wrapper_token_ids
        rows, columns = text_positions(ids, mask, self.image_ids, wrappers)
        if not is_one_of(ids, self.image_ids).any() or not len(columns):
            return None
        target = span_columns(settings.span, ids, mask, self.image_ids, rows, columns).numpy().copy()
        if settings.skip_first:
            target[0] = -1
        return FusedRequest(settings, len(prompt_ids), ids[0, columns].tolist(), target, outputs)


def _attached(config) -> VIFTConfig:
    """The fusion fields of another model than VIFT: `fusion_...` among its config's, as `attach_fusion` takes them."""
    fields = {name: value for name, value in vars(config).items() if name.startswith("fusion_")}
    if unknown := [name for name in fields if not hasattr(VIFTConfig, name)]:
        raise ValueError(f"unknown fusion field {unknown[0]!r}; VIFTConfig describes the known ones")
    depth = {"model_type": "qwen2", "num_hidden_layers": config.get_text_config().num_hidden_layers}
    return VIFTConfig(text_config=depth, image_wrapper_token_ids=_wrapper_ids(config, None), **fields)


@dataclass
class FusedRequest:
    """
    One fused request in a batch: which token is written with which state of its text stream, and how far that is.

    Texts grow with the answer under `fusion_answer`: text token i >= N is the answer's token i - N, at position
    S + i - N, which is written onto itself.
    """

    settings: FusionSettings
    length: int  # S
    text: list[int]  # (N,), ids
    target: np.ndarray  # (N,), the position each text token is written at; -1 where it is not
    outputs: list[int]  # the answer so far, which the model runner extends
    computed: int | None = None  # positions that went through the model; None before the first
    done: int = 0  # text tokens that went through the text run
    kv: dict = field(default_factory=dict)  # layer -> (keys, values) of those, each (done, heads, head size)

    @property
    def is_done(self) -> bool:
        """Nothing is written from here on."""
        return not self.settings.answer and self.computed is not None and self.computed >= self.length

    def places(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(text tokens, positions), each (M,), of what is written at positions start ... stop - 1."""
        source = np.nonzero((self.target >= start) & (self.target < stop))[0]
        position = self.target[source]
        if self.settings.answer and stop > self.length:
            answer = np.arange(max(start, self.length), stop)
            source = np.concatenate([source, answer - self.length + len(self.text)])
            position = np.concatenate([position, answer])
        return source, position

    def ids(self, start: int, stop: int) -> list[int]:
        """Ids of the text tokens start ... stop - 1."""
        split = len(self.text)
        return self.text[start:stop] + list(self.outputs[max(start - split, 0) : max(stop - split, 0)])
