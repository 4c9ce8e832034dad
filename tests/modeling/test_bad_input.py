"""Bad input is refused with an error that names the argument and both numbers."""

import copy

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from modeling_vift import VIFTConfig
from tests.modeling.tiny import IMG, PROMPTS, batch_inputs, row_inputs, tiny_config, tiny_images, tiny_model

GREEDY = {"max_new_tokens": 3, "do_sample": False}
NAN = float("nan")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


KNOBS = [
    ({"alpha": NAN}, "alpha=nan.*finite number in .0.0, 2.0"),
    ({"alpha": -0.1}, "alpha=-0.1.*.0.0, 2.0"),
    ({"alpha": 2.5}, "alpha=2.5.*.0.0, 2.0"),
    ({"alpha": "1"}, "alpha='1'"),
    ({"beta": NAN}, "beta=nan"),
    ({"beta": float("inf")}, "beta=inf"),
    ({"beta": 3.0}, "beta=3.0.*.-2.0, 2.0"),
    ({"beta": True}, "beta=True"),
    ({"beta": torch.tensor([0.1, NAN, 0.1, 0.1])}, "beta=.*nan"),
    ({"beta": [0.1, 0.2]}, "beta has 2 values, the batch has 4 rows"),
    ({"alpha": torch.ones(3)}, "alpha has 3 values, the batch has 4 rows"),
    ({"beta": torch.ones(2, 2)}, "beta=.*one number, or one a row"),
    ({"beta": 0.1, "dose": 1.4}, "beta=0.1 and dose=1.4 contradict"),
    ({"dose": 100.0}, "dose=100.0.*64.0"),
    ({"dose": 6.0, "fusion_layers": [1]}, "beta .dose=6.0 over 1 layers.=6.0"),
    ({"fusion_layers": [3, 99]}, "fusion_layers=.3, 99. reaches layer 99, .* layers 0 to 3"),
    ({"fusion_layers": [-1]}, "reaches layer -1"),
    ({"fusion_layers": "2:9"}, "fusion_layers='2:9' reaches layer 8"),
    ({"fusion_layers": "3:1"}, "fusion_layers='3:1' must be"),
    ({"fusion_layers": "low"}, "fusion_layers='low' must be"),
    ({"fusion_layers": 1.5}, "fusion_layers=1.5.*.0, 1."),
    ({"fusion_layers": 0.0}, "fusion_layers=0.0"),
    ({"fusion_layers": []}, "fusion_layers=.. must be"),
    ({"fusion_layers": [1, 1]}, "names a layer twice"),
    ({"fusion_layers": 3}, "fusion_layers=3 must be"),
    ({"fusion_rule": "overwrite"}, "fusion_rule='overwrite' is unknown; known: cascade, additive, independent"),
    ({"fusion_span": "image"}, "fusion_span='image' is unknown; known: all, after_image, reference"),
    ({"fusion_skip_first": "no"}, "fusion_skip_first='no' must be True or False"),
    ({"fusion_norm": 1}, "fusion_norm=1 must be True or False"),
    ({"fusion": "reasonning"}, "unknown preset fusion='reasonning'.*reasoning"),
    ({"fusion": 1}, "fusion=1 is neither"),
    ({"fusion": {"layers": "0:2"}}, "unknown fusion argument 'layers'"),
    ({"fusion": False, "beta": 0.2}, "beta given but fusion is off"),
]


@pytest.mark.parametrize("kwargs, message", KNOBS)
def test_a_bad_knob_of_generate_is_named(model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**batch_inputs(), **GREEDY, **kwargs)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("fusion_alpha", NAN, "alpha=nan"),
        ("fusion_beta", 9.0, "beta=9.0"),
        ("fusion_layers", "10:20", "layers 0 to 3"),
        ("fusion_rule", "sum", "fusion_rule='sum'"),
        ("fusion_span", "none", "fusion_span='none'"),
        ("fusion_presets", {"x": {"gamma": 1.0}}, "fusion_presets.'x'.: unknown 'gamma'"),
        ("fusion_presets", {"x": {"beta": 5.0}}, "beta=5.0"),
    ],
)
def test_a_bad_config_field_is_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**{field: value})


def test_beta_and_dose_together_in_the_config_are_refused():
    with pytest.raises(ValueError, match="contradict"):
        VIFTConfig(fusion_beta=0.1, fusion_dose=1.4)


def test_a_placeholder_without_an_image_is_refused(model):
    inputs = row_inputs(0)
    del inputs["pixel_values"]
    for call in (lambda: model.generate(**inputs, **GREEDY), lambda: model(**inputs)):
        with pytest.raises(ValueError, match="4 image tokens but pixel_values holds 0 images"):
            call()


def test_an_image_without_a_placeholder_is_refused(model):
    inputs = row_inputs(2) | {"pixel_values": tiny_images()[:1]}
    for call in (lambda: model.generate(**inputs, **GREEDY), lambda: model(**inputs)):
        with pytest.raises(ValueError, match="0 image tokens but pixel_values holds 1 images, which take 4"):
            call()


@pytest.mark.parametrize("fusion", [None, False])
def test_another_number_of_images_is_refused_with_both_numbers(model, fusion):
    inputs = row_inputs(1) | {"pixel_values": tiny_images()[:3]}
    with pytest.raises(ValueError, match="8 image tokens but pixel_values holds 3 images, which take 12"):
        model.generate(**inputs, **GREEDY, fusion=fusion)


def test_inputs_embeds_without_ids_are_refused_unless_unfused(model):
    embeds = model.get_input_embeddings()(torch.tensor([PROMPTS[2]]))
    with pytest.raises(ValueError, match="inputs_embeds without input_ids cannot be fused"):
        model.generate(inputs_embeds=embeds, **GREEDY)
    assert model.generate(inputs_embeds=embeds, **GREEDY, fusion=False).shape == (1, 3)


def test_a_cache_with_only_the_new_ids_is_refused_unless_unfused(model):
    cache = DynamicCache(config=model.config.get_text_config())
    first = model.generate(**row_inputs(0), **GREEDY, past_key_values=cache)
    new = torch.tensor([[25, *IMG, 26]])
    mask = torch.ones(1, first.shape[1] - 1 + new.shape[1], dtype=torch.long)
    call = {"input_ids": new, "attention_mask": mask, "pixel_values": tiny_images()[:1]}
    with pytest.raises(ValueError, match="past_key_values holds 13 tokens and input_ids has 6.*fusion=False"):
        model.generate(**call, past_key_values=copy.deepcopy(cache), **GREEDY)
    whole = {"input_ids": torch.cat([first[:, :-1], new], dim=1), "pixel_values": tiny_images()[[0, 0]]}
    expected = model.generate(**whole, past_key_values=copy.deepcopy(cache), **GREEDY, fusion=False)
    answer = model.generate(**call, past_key_values=cache, **GREEDY, fusion=False)
    assert torch.equal(answer[:, -3:], expected[:, -3:])


@pytest.mark.parametrize("where", ["kwargs", "config"])
def test_a_paged_cache_is_refused(model, where):
    kwargs = {"cache_implementation": "paged"}
    if where == "config":
        kwargs = {"generation_config": GenerationConfig(**kwargs)}
    with pytest.raises(ValueError, match="cache_implementation='paged' cannot be fused"):
        model.generate(**row_inputs(0), **kwargs)


def test_continuous_batching_is_refused(model):
    with pytest.raises(ValueError, match="continuous batching cannot be fused.*fusion=False"):
        model.generate_batch([PROMPTS[2]])
    with pytest.raises(ValueError, match="continuous batching cannot be fused"):
        model.init_continuous_batching()


def test_fused_scoring_refuses_what_it_cannot_fuse(model):
    embeds = model.get_input_embeddings()(torch.tensor([PROMPTS[2]]))
    with pytest.raises(ValueError, match="fusion needs whole prompts"):
        model(inputs_embeds=embeds, fusion=True)
    with pytest.raises(ValueError, match="unknown preset"):
        model(**row_inputs(0), fusion="none")


def test_a_text_stream_that_does_not_fit_is_refused(model):
    stream = model.text_run(**{k: v for k, v in row_inputs(0).items() if k != "pixel_values"})
    with pytest.raises(ValueError, match="text_stream has 7 states for layer 2, the prompts have 4 text tokens"):
        model.generate(**row_inputs(1), **GREEDY, text_stream=stream)
    with pytest.raises(ValueError, match="text_stream has no states for layer 0"):
        model.generate(**row_inputs(0), **GREEDY, text_stream=stream, fusion_layers=1.0)
    with pytest.raises(ValueError, match="text_stream is given but nothing is fused"):
        model.generate(**row_inputs(2), **GREEDY, text_stream=stream)
    with pytest.raises(ValueError, match="hold no image token"):
        model.text_run(torch.tensor([PROMPTS[2]]))


def test_a_language_model_that_cannot_be_fused_is_named():
    with pytest.raises(ValueError, match="text_config.model_type='gpt2' has no list `layers`"):
        tiny_model(text_config={"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2})
