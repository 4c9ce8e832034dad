"""Rules, presets, dose, norm, and settings as people have them: one meaning, whatever the type or the name."""

import numpy as np
import pytest
import torch
from transformers import DynamicCache, StaticCache

from modeling_vift import TextStreamCache, resolve_fusion
from tests.modeling.tiny import (
    DETAILS,
    GREEDY,
    IMG,
    STRONG,
    batch_inputs,
    logits_of,
    row_inputs,
    tiny_config,
    tiny_model,
)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_cascade_and_additive_are_the_same_at_alpha_one(model):
    cascade, additive = (
        model.generate(**batch_inputs(), **GREEDY, **STRONG, **DETAILS, fusion_rule=rule)
        for rule in ("cascade", "additive")
    )
    assert torch.equal(logits_of(cascade), logits_of(additive))


def test_one_fused_layer_makes_all_rules_agree(model):
    logits = [
        logits_of(
            model.generate(
                **batch_inputs(), **GREEDY, **DETAILS, alpha=0.8, beta=0.3, fusion_layers=[2], fusion_rule=rule
            )
        )
        for rule in ("cascade", "additive", "independent")
    ]
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=1e-9, atol=1e-9)


def test_dose_is_beta_times_layers(model):
    by_dose = model.generate(**batch_inputs(), **GREEDY, **DETAILS, dose=0.8, fusion_layers="0:4")
    by_beta = model.generate(**batch_inputs(), **GREEDY, **DETAILS, beta=0.2, fusion_layers="0:4")
    assert torch.equal(logits_of(by_dose), logits_of(by_beta))


def test_presets_and_config_fields_are_the_defaults_of_generate():
    model = tiny_model(fusion_layers="1:3", fusion_presets={"strong": {"beta": 0.5, "fusion_span": "after_image"}})
    preset = model.generate(**batch_inputs(), **GREEDY, **DETAILS, fusion="strong")
    spelt = model.generate(
        **batch_inputs(), **GREEDY, **DETAILS, beta=0.5, fusion_span="after_image", fusion_layers=[1, 2]
    )
    assert torch.equal(logits_of(preset), logits_of(spelt))
    assert not torch.equal(logits_of(preset), logits_of(model.generate(**batch_inputs(), **GREEDY, **DETAILS)))


def test_a_norm_preserving_edit_keeps_the_norm(model):
    fusion = {"beta": 0.5, "fusion_layers": [2], "fusion_norm": True}
    with torch.no_grad():
        plain = model(**row_inputs(0), output_hidden_states=True).hidden_states[2]
        fused = model(**row_inputs(0), output_hidden_states=True, fusion=fusion).hidden_states[2]
    torch.testing.assert_close(fused.norm(dim=-1), plain.norm(dim=-1), rtol=1e-12, atol=0)
    assert not torch.allclose(fused, plain)


def test_a_given_text_stream_replaces_the_prompts_own(model):
    inputs = batch_inputs()
    stream = model.text_run(inputs["input_ids"], inputs["attention_mask"], fusion_layers=1.0)
    own = model.generate(**inputs, **GREEDY, **DETAILS, **STRONG)
    given = model.generate(**inputs, **GREEDY, **DETAILS, **STRONG, text_stream=stream)
    assert torch.equal(logits_of(given), logits_of(own))
    stream.states = {layer: torch.zeros_like(states) for layer, states in stream.states.items()}
    nothing = model.generate(**inputs, **GREEDY, **DETAILS, **STRONG, text_stream=stream)
    plain = model.generate(**inputs, **GREEDY, **DETAILS, fusion=False)
    assert torch.equal(logits_of(nothing), logits_of(plain))


@pytest.mark.parametrize(
    "layers",
    [
        range(1, 3),
        (1, 2),
        (layer for layer in (1, 2)),
        np.arange(1, 3),
        [np.int64(1), np.int32(2)],
        torch.tensor([1, 2]),
        {1, 2},
        "1:3",
    ],
    ids=lambda layers: type(layers).__name__,
)
def test_layers_of_any_collection_are_the_same_layers(layers):
    assert resolve_fusion(tiny_config(), fusion_layers=layers).layers == (1, 2)


@pytest.mark.parametrize(
    "whole", [1.0, np.float64(1.0), np.float32(1.0), torch.tensor(1.0)], ids=lambda x: type(x).__name__
)
def test_a_fraction_of_any_type_is_a_fraction(whole):
    assert resolve_fusion(tiny_config(), fusion_layers=whole).layers == (0, 1, 2, 3)


@pytest.mark.parametrize(
    "layers",
    [1, np.int64(1), torch.tensor(1), True, {"1": 2}, [1, 2.5], [True, 2], ["1", "2"], [[1, 2]], None.__class__],
)
def test_layers_that_could_mean_two_things_are_refused_by_name(layers):
    with pytest.raises(ValueError, match="fusion_layers="):
        resolve_fusion(tiny_config(), fusion_layers=layers)


@pytest.mark.parametrize("strength", [np.float32(0.25), np.float64(0.25), torch.tensor(0.25), np.array(0.25)])
def test_a_coefficient_of_any_number_type_is_that_number(strength):
    settings = resolve_fusion(tiny_config(), alpha=strength, beta=strength)
    assert settings.alpha == 0.25 and settings.beta == 0.25 and type(settings.beta) is float
    assert resolve_fusion(tiny_config(), dose=np.int64(2), fusion_layers=[0, 1]).beta == 1.0


@pytest.mark.parametrize("values", [[0.1, 0.2], (0.1, 0.2), np.array([0.1, 0.2]), (x for x in (0.1, 0.2))])
def test_a_coefficient_for_each_row_of_any_collection(values):
    torch.testing.assert_close(resolve_fusion(tiny_config(), beta=values).beta, torch.tensor([0.1, 0.2]))


@pytest.mark.parametrize("name", ["alpha", "beta", "dose"])
@pytest.mark.parametrize("value", [{"a": 1}, ["a"], [[0.1]], [], [True], [None], b"1", object()])
def test_what_is_no_coefficient_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        resolve_fusion(tiny_config(), **{name: value})


@pytest.mark.parametrize("name", ["fusion_rule", "fusion_span"])
@pytest.mark.parametrize("value", [["cascade"], {"all": 1}, 1, b"all"])
def test_a_name_that_is_no_string_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}=.* is unknown; known: "):
        resolve_fusion(tiny_config(), **{name: value})


def test_config_generate_and_presets_know_the_same_names(model):
    """`fusion_alpha`, `fusion_beta` and `fusion_dose` are the config's names of what calls may shorten."""
    presets = {"long": {"fusion_alpha": 0.9, "fusion_beta": 0.3}, "short": {"alpha": 0.9, "beta": 0.3}}
    named = tiny_model(fusion_presets=presets)
    call = lambda **kwargs: logits_of(named.generate(**row_inputs(0), **GREEDY, **DETAILS, **kwargs))  # noqa: E731
    expected = call(alpha=0.9, beta=0.3)
    for kwargs in (
        {"fusion_alpha": 0.9, "fusion_beta": 0.3},
        {"fusion": presets["long"]},
        {"fusion": "long"},
        {"fusion": "short"},
        {"fusion_alpha": 0.9, "fusion_dose": 0.6},
    ):
        assert torch.equal(call(**kwargs), expected), kwargs
    with pytest.raises(ValueError, match="beta and fusion_beta are one setting: give one"):
        call(beta=0.3, fusion_beta=0.3)
    with pytest.raises(ValueError, match="unknown fusion argument 'fusion_strength'; known: alpha, beta"):
        call(fusion_strength=0.3)


@pytest.mark.parametrize("stream", [{}, [1], "cache", torch.zeros(2, 2), 1.0], ids=lambda x: type(x).__name__)
def test_a_text_stream_of_another_type_is_refused_by_name(model, stream):
    with pytest.raises(ValueError, match=f"text_stream is a {type(stream).__name__}: pass a TextStream"):
        model.generate(**row_inputs(0), **GREEDY, text_stream=stream)


@pytest.mark.parametrize("make", [lambda config: DynamicCache(), lambda config: StaticCache(config, 40)])
@pytest.mark.parametrize("kept", [True, False])
def test_a_cache_that_is_handed_in_changes_nothing(model, make, kept):
    expected = model.generate(**row_inputs(0), **GREEDY, **STRONG)
    stream = {"text_stream": TextStreamCache()} if kept else {}
    cache = make(model.config.get_text_config())
    assert torch.equal(model.generate(**row_inputs(0), **GREEDY, **STRONG, past_key_values=cache, **stream), expected)


@pytest.mark.parametrize("place", ["layer", "attention"])
def test_a_hook_of_someone_else_sees_each_run_and_changes_nothing(model, place):
    layer, lengths = model.get_decoder().layers[1], []
    expected = model.generate(**row_inputs(0), **GREEDY, **STRONG)
    module = layer if place == "layer" else layer.self_attn.q_proj
    handle = module.register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[1]))
    assert torch.equal(model.generate(**row_inputs(0), **GREEDY, **STRONG), expected)
    handle.remove()
    assert lengths == [7, 11, 1, 1, 1, 1, 1], "the text run, the prompt with its image, the answer"


def test_wrapper_ids_leave_the_text_stream_with_the_image():
    wrapped = tiny_model(image_wrapper_token_ids=[4, 6])
    stream = wrapped.text_run(torch.tensor([[3, 4, *IMG, 6, 7, 8]]))
    assert stream.columns.tolist() == [0, 7, 8]
