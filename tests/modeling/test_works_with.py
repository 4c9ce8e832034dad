"""What surrounds `generate()` works fused: adapters, checkpointing, sharding, offload, quantisation, other LMs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.modeling.tiny import EOS, IMAGE, PAD, PROMPTS, batch_inputs, row_inputs, tiny_model

STRONG = {"beta": 0.4, "fusion_layers": 1.0}
GREEDY = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [IMAGE]}


def test_peft_adapters(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    inputs = batch_inputs()
    before = tiny_model().generate(**inputs, **GREEDY, **STRONG)
    lora = LoraConfig(target_modules=r".*language_model.*q_proj", r=4, init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(tiny_model(), lora)
    fused = adapted.generate(**inputs, **GREEDY, **STRONG)
    assert not torch.equal(fused, before)
    assert not torch.equal(fused, adapted.generate(**inputs, **GREEDY, fusion=False))
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path)
    assert torch.equal(loaded.generate(**inputs, **GREEDY, **STRONG), fused)
    merged = adapted.merge_and_unload()
    assert torch.equal(merged.generate(**inputs, **GREEDY, **STRONG), fused)


@pytest.mark.parametrize("use_reentrant", [False])
def test_gradients_of_fused_scoring_survive_checkpointing(use_reentrant):
    inputs = batch_inputs()
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model(**inputs, labels=labels, fusion=dict(STRONG)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 60
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-9, atol=1e-12)
    assert gradients[0]["model.multi_modal_projector.linear_1.weight"].abs().sum() > 0


def test_quantized_linear_layers():
    """A stand-in for weight-only quantisation: every LM Linear is replaced by another module that rounds."""

    class Rounded(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
            self.weight = torch.nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)
            self.bias = linear.bias

        def forward(self, x):
            return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)

    model = tiny_model()
    for layer in model.model.language_model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, torch.nn.Linear):
                    setattr(parent, name, Rounded(child))
    fused = model.generate(**batch_inputs(), **GREEDY, **STRONG)
    for row in range(4):
        alone = model.generate(**row_inputs(row), **GREEDY, **STRONG)
        assert torch.equal(fused[row, -6:], alone[0, -6:])
    assert not torch.equal(fused, model.generate(**batch_inputs(), **GREEDY, fusion=False))


def test_quantized_cache():
    """Fused logits over an 8-bit cache are near those over a full one (not equal: it rounds), far from unfused."""
    pytest.importorskip("hqq", reason="this quantized cache needs hqq")
    model, inputs = tiny_model(dtype=torch.float32), row_inputs(0, dtype=torch.float32)
    config = {"backend": "hqq", "nbits": 8, "q_group_size": 8, "residual_length": 1}
    quantized = {"cache_implementation": "quantized", "cache_config": config}

    def last_logits(**kwargs):
        one = GREEDY | {"max_new_tokens": 2, "output_logits": True, "return_dict_in_generate": True}
        return model.generate(**inputs, **one, **kwargs).logits[1]

    full, ours = last_logits(**STRONG), last_logits(**STRONG, **quantized)
    gap = (ours - full).norm() / full.norm()
    assert 0 < gap < 0.1 < (last_logits(fusion=False, **quantized) - full).norm() / full.norm()


def test_offloaded_layers(tmp_path):
    from accelerate import disk_offload

    expected = tiny_model().generate(**batch_inputs(), **GREEDY, **STRONG)
    offloaded = disk_offload(tiny_model(), tmp_path, execution_device=torch.device("cpu"), offload_buffers=True)
    for _ in range(2):  # twice: a run must leave the offloading hooks as it found them
        assert torch.equal(offloaded.generate(**batch_inputs(), **GREEDY, **STRONG), expected)


LANGUAGE_MODELS = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "gemma2": {"head_dim": 8, "sliding_window": 6},
    "qwen3": {"head_dim": 8},
    "phi3": {"pad_token_id": PAD},
    "olmo2": {},
}


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_other_decoder_families(name):
    text = {"model_type": name, "eos_token_id": 1, "bos_token_id": 2} | LANGUAGE_MODELS[name]
    model = tiny_model(dtype=torch.float32, text_config=text)
    inputs = batch_inputs(dtype=torch.float32)
    greedy = GREEDY | {"suppress_tokens": [IMAGE, EOS]}
    fused = model.generate(**inputs, **greedy, **STRONG)
    assert not torch.equal(fused, model.generate(**inputs, **greedy, fusion=False))
    width = inputs["input_ids"].shape[1]
    for row, prompt in enumerate(PROMPTS):
        alone = model.generate(**row_inputs(row, dtype=torch.float32), **greedy, **STRONG)
        assert torch.equal(fused[row, width:], alone[0, len(prompt) :])


@pytest.mark.parametrize("mode", ["fsdp2", "tensor_parallel"])
def test_two_ranks(mode, tmp_path):
    """Sharded over two processes, fused answers equal those of one process."""
    script = Path(__file__).with_name("two_ranks.py")
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            str(script),
            mode,
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("equal") == 2
