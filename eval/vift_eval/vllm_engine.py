"""The engine of `engine.py` on vLLM, fused by the plug-in `vift_serve` (docs/serving.md).

The requests of a batch go to vLLM at once, which batches them as it likes: give it large ones.
"""

from types import SimpleNamespace

import torch

from vift_hub.cli import UserError

from .engine import SAMPLING_KEYS, Answer, Engine, Request

RENAMED = {"repetition_penalty": "repetition_penalty", "min_new_tokens": "min_tokens"}  # `generate()`'s -> vLLM's
NEUTRAL = {
    "num_beams": 1,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}  # what vLLM has not, unless it says nothing


class VLLMEngine(Engine):
    """
    Args:
        pretrained, revision: folder or Hub id of a VIFT checkpoint.
        dtype: "auto", "float32", "bfloat16" or "float16".
        options: of `vllm.LLM`.

    Raises:
        UserError: vLLM or its plug-in is not there.
    """

    def __init__(self, pretrained: str, revision=None, dtype: str = "auto", max_new_tokens: int = 1024, **options):
        try:
            from vllm import LLM, ModelRegistry
        except ImportError as error:
            raise UserError("engine=vllm needs vLLM: docs/serving.md says how to install it") from error
        from transformers import AutoProcessor, GenerationConfig

        from modeling_vift import VIFTConfig

        where = {"revision": revision}
        self.llm = LLM(pretrained, revision=revision, dtype=dtype, **options)
        if "VIFTForConditionalGeneration" not in ModelRegistry.get_supported_archs():
            raise UserError("engine=vllm: vLLM does not know the plug-in vift_serve (VLLM_PLUGINS leaves it out?)")
        model_config = self.llm.llm_engine.model_config
        model = SimpleNamespace(
            config=VIFTConfig.from_pretrained(pretrained, **where),
            generation_config=GenerationConfig.from_pretrained(pretrained, **where),
            dtype=model_config.dtype,
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        )
        super().__init__(model, AutoProcessor.from_pretrained(pretrained, **where), max_new_tokens)
        self.positions = min(self.positions, model_config.max_model_len)

    def inputs(self, prompts: list[tuple[str, list]], side: str = "left"):
        """As vLLM takes them, which expands the placeholders by itself."""
        return [
            {"prompt": text} | ({"multi_modal_data": {"image": images}} if images else {}) for text, images in prompts
        ]

    def generate(self, inputs, request: Request) -> list[Answer]:
        from vllm import SamplingParams

        self.settings(request)  # a bad fusion argument is a ValueError, as without vLLM
        given = {name: value for name, value in request.generation.items() if NEUTRAL.get(name) != value}
        if unknown := [name for name in given if name in NEUTRAL]:
            raise ValueError(f"{unknown[0]}={given[unknown[0]]}: vLLM has none; drop engine=vllm or {unknown[0]}")
        options = {ours: given[name] for name, ours in RENAMED.items() if name in given}
        options |= {name: given[name] for name in SAMPLING_KEYS if name in given and given["do_sample"]}
        options = {"temperature": 1.0 if given["do_sample"] else 0.0} | options
        params = SamplingParams(**options, max_tokens=request.max_new_tokens, extra_args=request.fusion or None)
        outputs = self.llm.generate(inputs, params, use_tqdm=False)
        return [self._answered(output, request) for output in outputs]

    def _answered(self, output, request: Request) -> Answer:
        used, tokens = len(output.prompt_token_ids), list(output.outputs[0].token_ids)
        return self._answer(tokens, used, min(request.max_new_tokens, self.positions - used), request)

    def score(self, prompts, continuations, request: Request):
        raise ValueError("log-likelihoods of fused prompts come from transformers only: drop engine=vllm")
