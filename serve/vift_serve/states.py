"""Who is where in a batch, on vLLM's second model runner (Model Runner V2): a model's own `ModelState`.

Written against the source of vLLM 0.32 and tested with stubs; never run, since that runner needs Triton.
"""

from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

from .requests import RequestFusion
from .rows import validate


class FusionArguments(LogitsProcessor):
    """Validates a request's arguments where HTTP is answered; touches no logit."""

    hf_config = None

    @classmethod
    def validate_params(cls, sampling_params):
        validate(RequestFusion(cls.hf_config), sampling_params)

    def add_request(self, req_idx, sampling_params) -> bool:
        return False

    def apply(self, logits, ctx):
        return logits


class FusedModelState(DefaultModelState):
    def __init__(self, vllm_config, model, encoder_cache, device):
        super().__init__(vllm_config, model, encoder_cache, device)
        self.fused = {}  # place of a request -> its `FusedRequest` or None

    def add_request(self, req_index, new_req_data):
        super().add_request(req_index, new_req_data)
        params, prompt_ids = new_req_data.sampling_params, new_req_data.prompt_token_ids
        requests, self.fused[req_index] = self.model.fusion.requests, None
        if params is not None and prompt_ids is not None:
            # a request that was preempted comes back with its answer so far
            outputs = list(new_req_data.prefill_token_ids[len(prompt_ids) :])
            self.fused[req_index] = requests.request(requests.settings(params.extra_args), prompt_ids, outputs)

    def prepare_inputs_embeds(self, scheduled_encoder_inputs, input_batch, req_states):
        embeddings = super().prepare_inputs_embeds(scheduled_encoder_inputs, input_batch, req_states)
        self.model.batch = [
            (request, int(first), int(start), int(count))
            for place, first, start, count in zip(
                input_batch.idx_mapping_np,
                input_batch.query_start_loc_np,
                input_batch.num_computed_tokens_np,
                input_batch.num_scheduled_tokens,
            )
            if (request := self.fused.get(int(place))) is not None and not request.is_done
        ]
        return embeddings

    def prepare_dummy_inputs(self, num_reqs, num_tokens):
        self.model.batch = []
        return super().prepare_dummy_inputs(num_reqs, num_tokens)
