"""vLLM's schedulers with a prefix cache that knows about fusion (`salts`)."""

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from .requests import RequestFusion
from .salts import salt_request


class Salted:
    """Before a scheduler in a class's bases."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fusion = RequestFusion(self.vllm_config.model_config.hf_config)

    def add_request(self, request):
        if request.request_id not in self.requests and request.prompt_token_ids is not None:
            settings = self.fusion.settings(request.sampling_params.extra_args)
            salt = self.fusion.salt(settings, request.prompt_token_ids)
            if salt is not None:
                if request.resumable:
                    raise RuntimeError("a session whose prompt grows cannot be fused")
                salt_request(request, salt, settings.answer, self.hash_block_size)
        super().add_request(request)


class SaltedScheduler(Salted, Scheduler):
    pass


class SaltedAsyncScheduler(Salted, AsyncScheduler):
    pass


def salted_scheduler(vllm_config, **kwargs):
    """The scheduler that vLLM would take, salted: which one is decided after a model's config is checked."""
    asynchronous = vllm_config.scheduler_config.async_scheduling
    return (SaltedAsyncScheduler if asynchronous else SaltedScheduler)(vllm_config=vllm_config, **kwargs)
