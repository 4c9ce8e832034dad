"""Another generate() in place of ours, and models that `attach_fusion` cannot vouch for: fused, or refused by name."""

import functools
from unittest.mock import patch

import accelerate
import pytest
import torch
import transformers

from modeling_vift import TextStreamCache, attach_fusion, generate
from tests.modeling.families import FAMILIES, GEMMA3, IMAGE, PAD, SIGLIP
from tests.modeling.tiny import batch_inputs, row_inputs, tiny_model

STRONG = {"beta": 0.4, "fusion_layers": 1.0}
GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [IMAGE]}
LLAVA = next(family for family in FAMILIES if family.name == "Llava")

LOOP = """
import torch
from transformers import GenerationMixin

def _loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    return GenerationMixin._sample(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)

"""
REPOSITORIES = {  # as they are published: around GenerationMixin's generate(), around the model's, on its own
    "mixin": LOOP
    + "def generate(model, *a, **k): return GenerationMixin.generate(model, *a, **k, custom_generate=_loop)",
    "model": LOOP + "def generate(model, *a, **k): return model.generate(*a, **k, custom_generate=_loop)",
    "alone": """
import torch

def generate(model, input_ids, pixel_values=None, attention_mask=None, max_new_tokens=4, **kwargs):
    for _ in range(max_new_tokens):
        logits = model(input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask).logits
        logits[..., 60] = -torch.inf  # the image placeholder
        input_ids = torch.cat([input_ids, logits[:, -1:].argmax(-1)], dim=1)
        attention_mask = torch.cat([attention_mask, attention_mask[:, -1:]], dim=1)
    return input_ids
""",
}  # fmt: skip


@pytest.fixture
def repository(tmp_path):
    def write(kind):
        (tmp_path / kind / "custom_generate").mkdir(parents=True)
        (tmp_path / kind / "config.json").write_text("{}")
        (tmp_path / kind / "custom_generate/generate.py").write_text(REPOSITORIES[kind])
        return {"custom_generate": str(tmp_path / kind), "trust_remote_code": True}

    return write


def models():
    model = tiny_model()
    model.config.fusion_beta, model.config.fusion_layers = 0.4, 1.0
    yield model, batch_inputs()
    model = LLAVA.model()
    yield attach_fusion(model, fusion_beta=0.4, fusion_layers=1.0), LLAVA.batch(model)


@pytest.mark.parametrize("kind", ["mixin", "model"])
def test_another_repositorys_generate_is_fused_as_ours_is(kind, repository):
    other = repository(kind)
    for model, inputs in models():
        asked = {
            "config": {},
            "call": {"beta": -0.7, "fusion_layers": [1, 3]},
            "on": {"fusion": True},
            "answer": {"fusion_answer": True},
            "kept": {"text_stream": TextStreamCache()},
            "beams": {"num_beams": 2},
            "off": {"fusion": False},
        }
        answers = {name: model.generate(**inputs, **GREEDY, **knobs) for name, knobs in asked.items()}
        for name, knobs in asked.items():
            if kind == "model" and name == "kept" or name == "beams":
                continue
            assert torch.equal(model.generate(**inputs, **GREEDY, **knobs, **other), answers[name]), name
        assert not torch.equal(answers["config"], answers["off"]) and not torch.equal(
            answers["config"], answers["call"]
        )


def test_a_generate_that_runs_the_model_by_itself_is_refused(repository):
    other = repository("alone")
    for model, inputs in models():
        for knobs in ({}, STRONG, {"fusion": True}):
            with pytest.raises(
                ValueError, match=r"custom_generate='.*alone' made nothing of the fusion.*fusion=False"
            ):
                model.generate(**inputs, **GREEDY, **knobs, **other)
        model.generate(**inputs, max_new_tokens=4, fusion=False, **other)

    def alone(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        return input_ids

    with pytest.raises(ValueError, match="custom_generate=<function .*alone.* made nothing of the fusion"):
        tiny_model().generate(**row_inputs(0), **GREEDY, **STRONG, custom_generate=alone)


def test_a_model_with_its_repositorys_own_generate_is_not_attached_to():
    model = LLAVA.model()
    model.generate = functools.partial(lambda *args, model, **kwargs: None, model=model)
    with pytest.raises(ValueError, match="Llava.* has a generate.* of its repository"):
        attach_fusion(model)
    model.generate = functools.partial(generate.generate, model=model)  # ours fuses
    attach_fusion(model)


# models that look right and are not ---------------------------------------------------------------------------

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 8}


def paligemma():
    text = SMALL | {"model_type": "gemma", "vocab_size": 64, "num_key_value_heads": 1, "pad_token_id": PAD}
    config = transformers.PaliGemmaConfig(
        vision_config=SIGLIP | {"projection_dim": 32}, text_config=text, image_token_index=IMAGE, projection_dim=32
    )
    return transformers.PaliGemmaForConditionalGeneration(config)


def gemma3n():
    text = SMALL | {
        "model_type": "gemma3n_text", "vocab_size": 64, "vocab_size_per_layer_input": 64, "num_key_value_heads": 2,
        "hidden_size_per_layer_input": 8, "laurel_rank": 4, "num_kv_shared_layers": 0, "intermediate_size": [64] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "activation_sparsity_pattern": [0.0] * 4,
    }  # fmt: skip
    ids = {"image_token_id": IMAGE, "audio_token_id": 61}
    audio = {"hidden_size": 16, "conf_num_attention_heads": 2, "conf_num_hidden_layers": 1}
    config = transformers.Gemma3nConfig(text_config=text, audio_config=audio, **ids)
    from_config = transformers.AutoModel.from_config
    with patch.object(transformers.AutoModel, "from_config") as tower:  # which needs timm
        tower.side_effect = lambda part: (
            torch.nn.Identity() if part.model_type == "gemma3n_vision" else from_config(part)
        )
        return transformers.Gemma3nForConditionalGeneration(config)


def bidirectional():
    model = LLAVA.model()
    for layer in model.get_decoder().layers:
        layer.self_attn.is_causal = False
    model.set_attn_implementation("sdpa")
    model.get_decoder().forward = functools.partial(_without_mask, model.get_decoder().forward)
    return model


def _without_mask(forward, *args, input_ids=None, inputs_embeds=None, attention_mask=None, **kwargs):
    length = (inputs_embeds if input_ids is None else input_ids).shape[1]
    mask = torch.zeros(1, 1, length, length, dtype=torch.float64)
    return forward(*args, input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=mask, **kwargs)


@pytest.mark.parametrize("make, reason", [
    (paligemma, "text is not causal"), (bidirectional, "text is not causal"),
    (gemma3n, "4, 2, 4, 32. at layer 1 are no .B, S, D."),
])  # fmt: skip
@pytest.mark.parametrize("training", [True, False])
def test_a_model_that_breaks_an_assumption_is_refused_and_left_as_it_was(make, reason, training):
    torch.manual_seed(0)
    model = make().train(training)
    kind, hooks = type(model), [len(module._forward_hooks) for module in model.modules()]
    with pytest.raises(ValueError, match=f"model={kind.__name__} cannot be fused: .*({reason})"):
        attach_fusion(model)
    assert type(model) is kind and model.training is training and not hasattr(model, "fusion_config")
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_an_offloaded_model_is_taken_and_an_empty_one_is_not_run(where, tmp_path):
    expected = attach_fusion(LLAVA.model(), fusion_beta=0.4, fusion_layers=1.0)
    inputs = LLAVA.batch(expected)
    model = LLAVA.model()
    model = accelerate.cpu_offload(model, "cpu") if where == "cpu" else accelerate.disk_offload(model, tmp_path, "cpu")
    attach_fusion(model)
    assert torch.equal(model.generate(**inputs, **GREEDY, **STRONG), expected.generate(**inputs, **GREEDY))
    with torch.device("meta"):
        attach_fusion(LLAVA.model())


def test_ids_that_were_found_stay_when_the_defaults_change():
    model = attach_fusion(LLAVA.model(), [7, 8], fusion_beta=0.2)
    attach_fusion(model, fusion_beta=0.3)
    assert model.fusion_config.image_wrapper_token_ids == [7, 8] and model.fusion_config.fusion_beta == 0.3
    attach_fusion(model, [])
    assert model.fusion_config.image_wrapper_token_ids == []


def test_a_model_in_training_with_dropout_is_taken_and_stays_in_training():
    text = GEMMA3 | {"attention_dropout": 0.5}
    config = next(family for family in FAMILIES if family.name == "Gemma3").config | {"text_config": text}
    model = transformers.Gemma3ForConditionalGeneration(transformers.Gemma3Config(**config)).train()
    model.get_decoder().layers[1].eval()
    modes = [module.training for module in model.modules()]
    attach_fusion(model)
    assert [module.training for module in model.modules()] == modes
