"""The text run packed into the prefill: the same answers as from a pass of its own, and only where that is sure."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from modeling_vift import TextStreamCache, packed_vift
from tests.modeling.test_golden import TOLERANCE, golden, relative_error
from tests.modeling.tiny import IMAGE, PROMPTS, batch_inputs, row_inputs, tiny_model

STRONG = {"alpha": 0.85, "beta": 0.4, "fusion_layers": [0, 1, 3]}
GREEDY = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [IMAGE]}
DETAILS = {"output_logits": True, "return_dict_in_generate": True}
IMAGES = (0, 1, 3)  # the prompts that hold one


@pytest.fixture
def model(monkeypatch):
    """A model that notes each text pass in `model.passes` and each packed prefill in `model.packed`."""
    model = tiny_model()
    model.passes, model.packed, record, pack = [], [], model._record, packed_vift.PackedFusion.pack

    def counting(layers, rows, columns, **inputs):
        model.passes.append(tuple(inputs["input_ids"].shape))
        return record(layers, rows, columns, **inputs)

    def packing(self, kwargs, attention):
        kwargs = pack(self, kwargs, attention)
        model.packed.append(tuple(kwargs["inputs_embeds"].shape[:2]))
        return kwargs

    model._record = counting
    monkeypatch.setattr(packed_vift.PackedFusion, "pack", packing)
    return model


def logits_of(out):
    return torch.stack(out.logits, dim=1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("span", ["all", "after_image", "reference"])
@pytest.mark.parametrize("rule", ["cascade", "additive", "independent"])
def test_packed_agrees_with_the_reference(model, rule, span, attention):
    """Left-padded rows of different lengths, 1 or 2 images, text before, between and after them."""
    model.set_attn_implementation(attention)
    # an unpacked run with eager attention gives NaN on left padding in float64 (its softmax is float32), fused or not
    rows, width = (IMAGES, 15) if attention == "sdpa" or rule == "cascade" else ((0,), 11)
    out = model.generate(
        **batch_inputs(rows, pad_to=width), **GREEDY, **DETAILS, **STRONG, fusion_rule=rule, fusion_span=span
    )
    longest = {"after_image": 6 if len(rows) > 1 else 4}.get(span, 7)  # without the text before the image
    assert model.packed == [(len(rows), width + longest)]
    for i, row in enumerate(rows):
        knobs = {"alpha": 0.85, "beta": 0.4, "layers": [0, 1, 3], "rule": rule, "span": span}
        expected, _ = golden(model, row, knobs, out.sequences[i, -6:].tolist())
        for step in range(6):
            assert relative_error(out.logits[step][i].numpy(), expected[len(PROMPTS[row]) - 1 + step]) < TOLERANCE


def test_what_is_left_in_the_cache_is_the_prompt_with_image(model):
    out = model.generate(**row_inputs(0), **GREEDY, **DETAILS, **STRONG)
    assert model.packed == [(1, 11 + 7)] and not model.passes
    apart = model.generate(**row_inputs(0), **GREEDY, **DETAILS, **STRONG, text_stream=TextStreamCache(0))
    assert model.passes == [(1, 7)] and len(model.packed) == 1
    assert torch.equal(out.sequences, apart.sequences)
    for ours, theirs in zip(out.past_key_values.layers, apart.past_key_values.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.values, theirs.values, rtol=1e-9, atol=1e-9)
    unfused = model.generate(**row_inputs(0), **GREEDY, **DETAILS, fusion=False)
    assert not torch.allclose(logits_of(out), logits_of(unfused))


@pytest.mark.parametrize(
    "knobs", [{"beta": [0.4, 0.1]}, {"alpha": [1.0, 0.9], "beta": 0.0}, {"alpha": 1.0, "beta": [0.0, 0.3]}]
)
def test_a_coefficient_for_each_row(model, knobs):
    inputs, knobs = (
        batch_inputs((0, 3)),
        STRONG | {name: torch.tensor(v) if isinstance(v, list) else v for name, v in knobs.items()},
    )
    packed = model.generate(**inputs, **GREEDY, **DETAILS, **knobs)
    assert len(model.packed) == 1
    apart = model.generate(**inputs, **GREEDY, **DETAILS, **knobs, text_stream=TextStreamCache(0))
    torch.testing.assert_close(logits_of(packed), logits_of(apart), rtol=1e-9, atol=1e-9)


def test_text_before_the_image_runs_once_with_after_image(model):
    model.generate(**row_inputs(0), **GREEDY, **STRONG, fusion_span="after_image")
    assert model.packed == [(1, 11 + 4)], "3 of 7 text tokens stand before the image"


@pytest.mark.parametrize("rows", [(0,), (0, 1, 3)])
@pytest.mark.parametrize(
    "knobs",
    [
        {"fusion_layers": [0, 1]},  # a packed run would go through two layers for nothing
        {"alpha": 1.0, "beta": 0.0},
        {"output_hidden_states": True},
        {"num_beams": 2},
        {"num_return_sequences": 2, "num_beams": 2},
        {"cache_implementation": "static", "disable_compile": True},
        {"use_cache": False},
        {"prefill_chunk_size": 3},
        {"text_stream": TextStreamCache(0)},
    ],
    ids=lambda knobs: next(iter(knobs)),
)
def test_where_packing_is_not_sure_the_text_run_is_a_pass_of_its_own(model, rows, knobs):
    model.generate(**batch_inputs(rows), **GREEDY, **STRONG | knobs)
    assert not model.packed and len(model.passes) == 1


def test_rows_without_an_image_are_not_packed(model):
    model.generate(**batch_inputs(), **GREEDY, **STRONG)
    assert not model.packed and len(model.passes) == 1


@pytest.mark.parametrize(
    "cache", [lambda model: DynamicCache(), lambda model: StaticCache(model.config.text_config, 40)]
)
def test_caches_that_are_handed_in(model, cache):
    answer = model.generate(**row_inputs(0), **GREEDY, **STRONG, past_key_values=cache(model))
    assert not model.packed
    assert torch.equal(answer, model.generate(**row_inputs(0), **GREEDY, **STRONG)) and model.packed


@pytest.mark.parametrize("place", ["layer", "attention"])
def test_a_hook_of_someone_else_never_sees_the_text_run(model, place):
    layer, shapes = model.get_decoder().layers[1], []
    module = layer if place == "layer" else layer.self_attn.q_proj
    expected = model.generate(**row_inputs(0), **GREEDY, **STRONG)
    handle = module.register_forward_hook(lambda m, args, output: shapes.append(args[0].shape[1]))
    assert torch.equal(model.generate(**row_inputs(0), **GREEDY, **STRONG), expected)
    assert shapes == [7, 11, 1, 1, 1, 1, 1] and len(model.packed) == 1
    handle.remove()
    model.generate(**row_inputs(0), **GREEDY, **STRONG, output_hidden_states=True)  # leaves transformers' own hooks
    model.generate(**row_inputs(0), **GREEDY, **STRONG)
    assert len(model.packed) == 2


def test_sliding_windows_are_not_packed(model):
    """The fixture counts the packed prefills of every model."""
    text = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}
    sliding = tiny_model(text_config=text)
    assert "sliding_attention" in sliding.config.text_config.layer_types
    apart = sliding.generate(**row_inputs(0), **GREEDY, **DETAILS, **STRONG, text_stream=TextStreamCache(0))
    own = sliding.generate(**row_inputs(0), **GREEDY, **DETAILS, **STRONG)
    assert torch.equal(logits_of(own), logits_of(apart)) and not model.packed


def test_long_prompts_are_not_packed(model, monkeypatch):
    monkeypatch.setattr(packed_vift, "MOST_ON_CPU", (17, 17))
    model.generate(**row_inputs(0), **GREEDY, **STRONG)
    assert not model.packed and model.passes == [(1, 7)], "11 tokens and 7 of text are 18"
    monkeypatch.setattr(packed_vift, "MOST_ON_CPU", (18, 18))
    model.generate(**row_inputs(0), **GREEDY, **STRONG)
    assert len(model.packed) == 1
    monkeypatch.setattr(packed_vift, "MOST_ON_CPU", (18, 6))
    model.generate(**row_inputs(0), **GREEDY, **STRONG)
    assert len(model.packed) == 1 and model.passes == [(1, 7)] * 2


def test_a_text_run_that_goes_on_with_the_answer_is_not_packed(model):
    model.generate(**row_inputs(0), **GREEDY, **STRONG, fusion_answer=True)
    assert not model.packed and model.passes == [(1, 7)] + [(1, 1)] * 5
