"""What a server with fusion is started with: settings of vLLM under which answers would be silently wrong are refused.

vLLM calls `FusedConfig.verify_and_update_config` while it checks its settings, for every model that has one.
"""

from importlib.metadata import version

from packaging.version import Version
from vllm.config import CUDAGraphMode
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform

from .requests import RequestFusion
from .rows import FusionRows, rows_class

VLLM = ("0.32", "0.33")  # from, below: interfaces that vLLM does not promise are used
# whose decoders in vLLM are embeddings, layers of (positions, hidden_states, residual), norm, and nothing between them
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "qwen2_5_vl_text", "qwen3_vl_text")
WORKERS = ("auto", "vllm.v1.worker.gpu_worker.Worker", "vllm.v1.worker.cpu_worker.CPUWorker")


def refusals(vllm_config) -> list[str]:
    """Why a server with these settings could answer wrongly: each a clause that names the setting."""
    config, parallel = vllm_config.model_config, vllm_config.parallel_config
    text = config.hf_config.get_text_config()
    kind, rope = text.model_type, _rope(text)
    contexts = (parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size)
    known = current_platform.is_cpu() or current_platform.is_cuda_alike()
    scheduler = vllm_config.scheduler_config.scheduler_cls
    checks = {
        "speculative_config: drafted tokens would not be fused": vllm_config.speculative_config,
        "pipeline_parallel_size: the text run needs all layers in one worker": parallel.pipeline_parallel_size > 1,
        "context parallelism: a worker must see whole prompts": max(contexts) > 1,
        "sliding_window: the text run attends to all of its text": config.get_sliding_window(),
        "a mixture of experts: its workers would wait for each other's text runs": config.is_moe,
        "enable_lora: adapters are set for the tokens of a batch, not for its texts": vllm_config.lora_config,
        "kv_transfer_config: another server's KV cache may be fused otherwise": vllm_config.kv_transfer_config,
        "enable_prompt_embeds: embeddings without ids cannot be fused": config.enable_prompt_embeds,
        "enable_dbo: two halves of a batch would run at once": parallel.use_ubatching,
        f"model_type={kind!r} of text_config: known are {', '.join(DECODERS)}": kind not in DECODERS,
        f"worker_cls={parallel.worker_cls!r}: its model runner is not known": parallel.worker_cls not in WORKERS,
        f"platform {current_platform.device_name!r}: its model runner is not known": not known,
        f"scheduler_cls={scheduler!r}: one of vift_serve keeps the prefix cache apart": scheduler is not None,
        f"rope_type={rope!r}: positions in the text run would be others": rope in ("dynamic", "longrope"),
    }
    return [reason for reason, wrong in checks.items() if wrong]


def _rope(text_config) -> str:
    return (getattr(text_config, "rope_parameters", None) or {}).get("rope_type", "default")


class FusedConfig(VerifyAndUpdateConfig):
    """For the models of `vift_serve.model`."""

    @staticmethod
    def verify_and_update_config(vllm_config) -> None:
        check_versions()
        config = vllm_config.model_config
        try:
            RequestFusion(config.hf_config).settings(None)
        except ValueError as error:
            raise ValueError(f"the model's own fusion setting cannot be served: {error}") from error
        if reasons := refusals(vllm_config):
            raise ValueError(f"fusion cannot be served with {'; '.join(reasons)}")
        if vllm_config.use_v2_model_runner:
            from .states import FusionArguments as kind
        else:
            kind = FusionRows
        config.logits_processors = [*(config.logits_processors or ()), rows_class(kind, config.hf_config)]
        if current_platform.is_cuda_alike() and not config.enforce_eager:
            # whole graphs would be replayed without asking which tokens are fused; pieces end at our operator
            compilation = vllm_config.compilation_config
            compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE
            compilation.splitting_ops = [*compilation._attention_ops, "vllm::vift_fuse"]
        vllm_config.additional_config |= {"vift_serve": "fused"}  # graphs compiled without fusion are others
        vllm_config.scheduler_config.scheduler_cls = "vift_serve.scheduler.salted_scheduler"


def check_versions() -> None:
    """Raises a RuntimeError that names the pair where vLLM and transformers were not tested together."""
    import vllm

    from modeling_vift.configuration_vift import TRANSFORMERS

    pair = f"vllm {vllm.__version__} and transformers {version('transformers')}"
    if not Version(VLLM[0]) <= Version(Version(vllm.__version__).base_version) < Version(VLLM[1]):
        raise RuntimeError(f"{pair}: vift_serve was made for vllm >={VLLM[0]},<{VLLM[1]} with {TRANSFORMERS}")
