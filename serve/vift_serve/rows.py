"""Who is in which row of a batch, on vLLM's first model runner: what a logits processor is told before each forward.

The processor touches no logit. It is also where a request's arguments are validated, in the process that answers HTTP:
vLLM asks the class, so that there is one class for each model's config, which another process can unpickle.
"""

import copyreg
import weakref
from abc import ABCMeta

from vllm.forward_context import get_forward_context
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.interface import MoveDirectionality

from .requests import RequestFusion

_OF_ENGINE = weakref.WeakValueDictionary()  # instance_id of a VllmConfig -> its FusionRows


def validate(requests: RequestFusion, params) -> None:
    """Raises a ValueError for a request that cannot be fused as it asks."""
    settings = requests.settings(params.extra_args)
    # vLLM's beam search makes such requests, with the beam's tokens as if they were of the prompt
    beam = params.max_tokens == 1 and params.watermarking is False and not params.detokenize and params.logprobs
    if beam and settings is not None and not settings.answer:
        why = "hands an answer's tokens back as a prompt's, which would be fused"
        raise ValueError(f"beam search of vLLM {why}: serve with fusion_answer or without fusion")


class _OfConfig(ABCMeta):
    """The class of classes that are made for one config."""


def rows_class(base: type, hf_config) -> type:
    """`base` for models of this config."""
    return _OfConfig(base.__name__, (base,), {"__module__": base.__module__, "hf_config": hf_config})


copyreg.pickle(_OfConfig, lambda cls: (rows_class, (cls.__mro__[1], cls.hf_config)))


class FusionRows(LogitsProcessor):
    """Row of the batch -> its `FusedRequest`, or None."""

    hf_config = None

    @classmethod
    def validate_params(cls, sampling_params):
        validate(RequestFusion(cls.hf_config), sampling_params)

    def __init__(self, vllm_config, device, is_pin_memory):
        self.requests, self.rows = RequestFusion(vllm_config.model_config.hf_config), {}
        _OF_ENGINE[vllm_config.instance_id] = self

    def is_argmax_invariant(self) -> bool:
        return True

    def apply(self, logits):
        return logits

    def update_state(self, batch_update):
        if batch_update is None:
            return
        for row in batch_update.removed:
            self.rows.pop(row, None)
        for row, params, prompt_ids, outputs in batch_update.added:
            settings = self.requests.settings(params.extra_args)
            self.rows[row] = None if prompt_ids is None else self.requests.request(settings, prompt_ids, outputs)
        for one, other, direction in batch_update.moved:
            first, second = self.rows.pop(one, None), self.rows.pop(other, None)
            self.rows[other] = first
            if direction == MoveDirectionality.SWAP:
                self.rows[one] = second

    def batch(self) -> list:
        """(request, first row of the tokens, first position, number of tokens) of what is fused in this forward."""
        metadata = get_forward_context().attn_metadata
        active = {row: request for row, request in self.rows.items() if request is not None and not request.is_done}
        if metadata is None or not active:
            return []
        own = next(iter(metadata.values()))
        starts, lengths = own.query_start_loc.tolist(), own.seq_lens.tolist()
        counts = {row: starts[row + 1] - starts[row] for row in active}
        return [
            (request, starts[row], lengths[row] - counts[row], counts[row])
            for row, request in sorted(active.items())
            if counts[row] > 0
        ]


def rows_of(vllm_config) -> FusionRows:
    """The rows of an engine; a RuntimeError where its runner made none."""
    if vllm_config.instance_id not in _OF_ENGINE:
        raise RuntimeError("this engine's model runner made no logits processor of vift_serve: nothing would be fused")
    return _OF_ENGINE[vllm_config.instance_id]
