"""Loading in other ways than whole and in full precision: quantised, spread by `device_map`; fused, with adapters."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from modeling_vift import attach_fusion, detach_fusion
from tests.modeling.checkpoint import save_checkpoint
from tests.modeling.tiny import IMAGE, batch_inputs, row_inputs
from vift_hub.convert import convert

STRONG = {"beta": 0.4, "fusion_layers": 1.0}
GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [IMAGE]}
DETAILS = {"output_logits": True, "return_dict_in_generate": True}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "vift"
    model, _ = save_checkpoint(folder)
    return folder, model


def load(folder, **kwargs):
    return AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, **kwargs)


def first_logits(model, inputs, **kwargs):
    return model.generate(**inputs, **GREEDY, **DETAILS, **kwargs).logits[0]


def near(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def quantised_is_fused(quantised, model):
    """Logits near those of full precision, fused to fused; alpha=1, beta=0 is unfused; a row equals itself alone."""
    inputs = batch_inputs(dtype=torch.float32)
    for knobs in ({"fusion": False}, STRONG):
        assert 0 < near(first_logits(quantised, inputs, **knobs), first_logits(model, inputs, **knobs)) < 0.1
    fused, plain = first_logits(quantised, inputs, **STRONG), first_logits(quantised, inputs, fusion=False)
    assert near(fused, plain) > 0.1
    assert torch.equal(first_logits(quantised, inputs, beta=0.0), plain)
    alone = first_logits(quantised, row_inputs(1, dtype=torch.float32), **STRONG)
    torch.testing.assert_close(alone[0], fused[1], rtol=1e-4, atol=1e-4)


def torchao_int8():
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def test_torchao_int8_weights_are_fused(checkpoint):
    pytest.importorskip("torchao", reason="needs torchao")
    folder, model = checkpoint
    quantised = load(folder, quantization_config=torchao_int8(), dtype=torch.float32)
    weight = quantised.model.language_model.layers[0].self_attn.q_proj.weight
    assert type(weight).__name__ == "Int8Tensor"
    quantised_is_fused(quantised, model)


def test_an_adapter_on_a_quantised_model_is_fused(checkpoint):
    pytest.importorskip("torchao", reason="needs torchao")
    from peft import LoraConfig, get_peft_model

    folder, _ = checkpoint
    quantised = load(folder, quantization_config=torchao_int8(), dtype=torch.float32)
    inputs = batch_inputs(dtype=torch.float32)
    before = first_logits(quantised, inputs, **STRONG)
    lora = LoraConfig(target_modules=r".*language_model.*q_proj", r=4, init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(quantised, lora)
    fused, plain = first_logits(adapted, inputs, **STRONG), first_logits(adapted, inputs, fusion=False)
    assert near(fused, plain) > 0.1 and near(fused, before) > 0.01
    assert torch.equal(first_logits(adapted, inputs, beta=0.0), plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="bitsandbytes is tested on a GPU only")
@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_weights_are_fused(checkpoint, bits):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    from transformers import BitsAndBytesConfig

    folder, model = checkpoint
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    quantised = load(folder, quantization_config=config, device_map={"": 0}, dtype=torch.float16)
    inputs = {name: value.cuda() for name, value in batch_inputs(dtype=torch.float16).items()}
    fused, plain = first_logits(quantised, inputs, **STRONG), first_logits(quantised, inputs, fusion=False)
    assert near(fused, plain) > 0.1 and torch.equal(first_logits(quantised, inputs, beta=0.0), plain)
    reference = first_logits(model, batch_inputs(dtype=torch.float32), **STRONG)
    assert near(fused.cpu().float(), reference) < (0.5 if bits == 4 else 0.1)


PLACES = {
    "cpu": "cpu",
    "auto": "auto",
    "spread": {
        "model.vision_tower": "cpu",
        "model.multi_modal_projector": "cpu",
        "model.language_model.embed_tokens": "cpu",
        "model.language_model.layers.0": "cpu",
        "model.language_model.layers.1": "disk",
        "model.language_model.layers.2": "disk",
        "model.language_model.layers.3": "cpu",
        "model.language_model.norm": "cpu",
        "model.language_model.rotary_emb": "cpu",
        "lm_head": "cpu",
    },
}


@pytest.mark.parametrize("place", PLACES)
def test_device_map_gives_the_answers_of_the_whole_model(checkpoint, tmp_path, place):
    folder, model = checkpoint
    spread = load(folder, device_map=PLACES[place], offload_folder=tmp_path)
    inputs = batch_inputs(dtype=torch.float32)
    for _ in range(2):  # twice: a run must leave the offloading hooks as it found them
        assert torch.equal(spread.generate(**inputs, **GREEDY, **STRONG), model.generate(**inputs, **GREEDY, **STRONG))
    offloaded = [name for name, parameter in spread.named_parameters() if parameter.device.type == "meta"]
    assert bool(offloaded) is (place == "spread")


@pytest.mark.parametrize("how", ["torchao", "spread"])
def test_fusion_attaches_to_a_quantised_or_spread_llava(checkpoint, tmp_path, how):
    folder, model = checkpoint
    convert(str(folder), tmp_path / "llava", "llava")
    options = {"device_map": PLACES["spread"], "offload_folder": tmp_path / "offload"}
    if how == "torchao":
        pytest.importorskip("torchao", reason="needs torchao")
        options = {"quantization_config": torchao_int8(), "dtype": torch.float32}
    llava = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava", **options)
    inputs = batch_inputs(dtype=torch.float32)
    native = first_logits(llava, inputs)
    fused = first_logits(attach_fusion(llava), inputs, **STRONG)
    assert near(fused, first_logits(model, inputs, **STRONG)) < (0.1 if how == "torchao" else 1e-6)
    assert near(fused, native) > 0.1 and torch.equal(first_logits(llava, inputs, beta=0.0), native)
    assert torch.equal(first_logits(detach_fusion(llava), inputs), native)
