"""A fused call that would fuse nothing, less than planned, or with something else, is right or refused by name."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GenerationMixin

from modeling_vift import TextStreamCache, attach_fusion, detach_fusion
from tests.modeling.families import FAMILIES
from tests.modeling.tiny import IMAGE, batch_inputs, row_inputs, tiny_model

STRONG = {"beta": 0.4, "fusion_layers": 1.0}
GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [IMAGE]}
DETAILS = {"output_logits": True, "return_dict_in_generate": True}


@pytest.fixture
def model():
    return tiny_model()


def logits_of(model, **kwargs):
    return torch.stack(model.generate(**row_inputs(0), **GREEDY, **DETAILS, **kwargs).logits)


# decoder layers changed after construction ------------------------------------------------------------------


class Wrapper(nn.Module):
    """What quantisers and fused-module tools put around a layer: the forward with the arguments it knows."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
        known = {name: kwargs[name] for name in ("position_embeddings", "cache", "use_cache") if name in kwargs}
        return self.layer(hidden_states, attention_mask, position_ids, past_key_values=past_key_values, **known)


def replaced(layers, index):
    layers[index] = copy.deepcopy(layers[index])
    layers[index]._forward_hooks.clear()


def wrapped(layers, index):
    layers[index] = Wrapper(layers[index])


def other_list(layers, index):
    layers.insert(index, copy.deepcopy(layers[index]))
    layers[index]._forward_hooks.clear()
    del layers[index + 1]


@pytest.mark.parametrize("change", [replaced, wrapped, other_list])
@pytest.mark.parametrize(
    "way",
    [{}, {"num_beams": 2}, {"use_cache": False}, {"prefill_chunk_size": 3}, {"fusion_answer": True}],
    ids=lambda way: next(iter(way), "plain"),
)
def test_a_layer_that_was_replaced_or_wrapped_is_named_in_every_way_of_running(model, change, way):
    cache, inputs = TextStreamCache(), batch_inputs()
    stream = model.text_run(inputs["input_ids"], inputs["attention_mask"], fusion_layers=1.0)
    model.generate(**inputs, **GREEDY, **STRONG, text_stream=cache)
    change(model.get_decoder().layers, 1)
    sources = [{}, {"text_stream": cache}] + ([] if "fusion_answer" in way else [{"text_stream": stream}])
    for source in sources:
        with pytest.raises(ValueError, match=r"\[2\]"):
            model.generate(**inputs, **GREEDY, **STRONG, **way, **source)
    with pytest.raises(ValueError, match=r"\[2\]"):
        model(**inputs, fusion=dict(STRONG))
    # what does not need that layer is fused as before, and the model runs unfused
    model.generate(**inputs, **GREEDY, beta=0.4, fusion_layers=[0, 1, 3])
    model.generate(**inputs, **GREEDY, fusion=False)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_layer_of_an_attached_model_that_was_replaced_is_named(family):
    model = family.model()
    attach_fusion(model, **(family.attach or {}))
    inputs = family.batch(model)
    settings = {"beta": 0.3, "fusion_layers": 1.0, "max_new_tokens": 2, "do_sample": False}
    cache = TextStreamCache()
    model.generate(**inputs, **settings, text_stream=cache)
    replaced(model.get_decoder().layers, 1)
    for source in ({}, {"text_stream": cache}):
        with pytest.raises(ValueError, match=r"\[2\]"):
            model.generate(**inputs, **settings, **source)
    detach_fusion(model)
    attach_fusion(model, **(family.attach or {}))
    model.generate(**inputs, **settings)


# layers pruned, moved or with another language model around them ---------------------------------------------


def pruned_last(model):
    del model.get_decoder().layers[3]


def pruned_first(model):
    """The config follows, so that no layer is out of range; each hook now stands one layer too early."""
    del model.get_decoder().layers[0]
    model.config.text_config.num_hidden_layers = 3
    for index, layer in enumerate(model.get_decoder().layers):
        layer.self_attn.layer_idx = index


def swapped(model):
    layers = model.get_decoder().layers
    layers[0], layers[2] = layers[2], layers[0]


def other_language_model(model):
    fresh = type(model.model.language_model)(model.config.text_config).to(model.dtype).eval()
    fresh.load_state_dict(model.model.language_model.state_dict())
    model.model.language_model = fresh


CHANGES = [(pruned_last, [2, 3]), (pruned_first, [2]), (swapped, [1]), (other_language_model, [1, 2, 3])]


@pytest.mark.parametrize("change, layers", CHANGES, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("source", ["own", "kept", "given", "answer", "scoring"])
def test_layers_that_are_not_where_fusion_was_built_in_are_named(model, change, layers, source):
    inputs, cache = row_inputs(0), TextStreamCache()
    knobs = {"beta": 0.4, "fusion_layers": layers}
    stream = model.text_run(inputs["input_ids"], fusion_layers=layers)
    model.generate(**inputs, **GREEDY, **knobs, text_stream=cache)
    change(model)
    more = {"kept": {"text_stream": cache}, "given": {"text_stream": stream}, "answer": {"fusion_answer": True}}
    with pytest.raises(ValueError, match=rf"cannot be fused at \[.*{layers[-1]}\]"):
        if source == "scoring":
            model(**inputs, fusion=knobs)
        else:
            model.generate(**inputs, **GREEDY, **knobs, **more.get(source, {}))
    assert model.generate(**inputs, **GREEDY, fusion=False).shape[1] > inputs["input_ids"].shape[1]


# kept text streams ------------------------------------------------------------------------------------------


def lora(model):
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(target_modules=r".*language_model.*q_proj", r=4, init_lora_weights=False)
    inject_adapter_in_model(config, model)
    return [module for module in model.modules() if hasattr(module, "set_scale")]


def scale(model):
    for module in [module for module in model.modules() if hasattr(module, "set_scale")]:
        module.set_scale("default", 3.0)


def hook(model):
    model.get_decoder().layers[0].register_forward_hook(lambda module, args, output: output * 1.5)


def pre_hook(model):
    model.get_decoder().layers[0].mlp.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def buffer(model):
    model.get_decoder().layers[0].mlp.scale.mul_(2)


def forward(model):
    mlp = model.get_decoder().layers[0].mlp
    own = mlp.forward
    mlp.forward = lambda x: own(x) * 2


def parameter(model):
    """Another tensor at the address of the one that is gone, with the same version, type and place."""
    mlp = model.get_decoder().layers[0].mlp
    weight, address = mlp.up_proj.weight.detach() * 2, id(mlp.up_proj.weight)
    for _ in range(10000):
        mlp.up_proj.weight = None
        mlp.up_proj.weight = nn.Parameter(weight.clone())
        if id(mlp.up_proj.weight) == address:
            break


@pytest.mark.parametrize(
    "change", [scale, hook, pre_hook, buffer, forward, parameter], ids=lambda change: change.__name__
)
def test_whatever_changes_the_text_run_empties_the_cache(model, change):
    lora(model)
    mlp = model.get_decoder().layers[0].mlp
    mlp.register_buffer("scale", torch.ones((), dtype=torch.float64))
    mlp.up_proj.weight = nn.Parameter(mlp.up_proj.weight.detach().clone())  # of version 0, as the one of `parameter`
    mlp.register_forward_hook(lambda module, args, output: output * module.scale)
    cache = TextStreamCache()
    before = logits_of(model, **STRONG, text_stream=cache)
    change(model)
    after = logits_of(model, **STRONG)
    assert torch.equal(logits_of(model, **STRONG, text_stream=cache), after) and not torch.equal(before, after)


def test_leaving_autocast_empties_the_cache():
    model, cache = tiny_model(dtype=torch.float32), TextStreamCache()
    inputs = row_inputs(0, dtype=torch.float32)
    ask = lambda **kwargs: torch.stack(model.generate(**inputs, **GREEDY, **DETAILS, **STRONG, **kwargs).logits)  # noqa: E731
    with torch.autocast("cpu", torch.bfloat16):
        ask(text_stream=cache)
    assert torch.equal(ask(text_stream=cache), ask())


# soft prompts, masks, compiled layers -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig"])
def test_soft_prompts_are_refused_by_name_and_run_unfused(model, kind):
    import peft

    size = {"token_dim": 32, "num_transformer_submodules": 1, "num_attention_heads": 2, "num_layers": 4}
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3, **size)
    tuned = peft.get_peft_model(model, config)
    with pytest.raises(ValueError, match="soft prompts of PEFT .* cannot be fused"):
        tuned.generate(**row_inputs(2), **GREEDY, beta=0.3)
    assert torch.equal(model.generate(**row_inputs(0), **GREEDY), tiny_model().generate(**row_inputs(0), **GREEDY))


@pytest.mark.parametrize("shape", [(1, 1, 11, 11), (11,), (1, 11, 11)])
def test_a_mask_of_another_form_is_refused_with_its_shape(model, shape):
    inputs = row_inputs(0) | {"attention_mask": torch.ones(shape, dtype=torch.long)}
    with pytest.raises(ValueError, match=r"attention_mask of shape \(.*11,?\) cannot be fused: pass one of \(B, S\)"):
        model.generate(**inputs, **GREEDY)
    with pytest.raises(ValueError, match=r"attention_mask of shape \(.*11,?\) cannot be fused"):
        model(**inputs, fusion=True)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["own", "kept", "answer"])
def test_regionally_compiled_layers_answer_as_eager_ones(source):
    model = tiny_model(dtype=torch.float32)
    inputs = row_inputs(0, dtype=torch.float32)
    knobs = STRONG | {"own": {}, "kept": {"text_stream": TextStreamCache()}, "answer": {"fusion_answer": True}}[source]
    expected = model.generate(**inputs, **GREEDY, **STRONG | ({"fusion_answer": True} if source == "answer" else {}))
    for layer in model.get_decoder().layers:
        layer.compile(backend="eager")
    for _ in range(2):
        assert torch.equal(model.generate(**inputs, **GREEDY, **knobs), expected)


def test_numpy_arguments_are_those_of_python(model):
    expected = model.generate(**batch_inputs(), **GREEDY, alpha=0.9, beta=0.25, fusion_layers=[1, 2])
    for layers in (np.array([1, 2]), torch.tensor([1, 2]), range(1, 3), (x for x in (1, 2))):
        knobs = {"alpha": np.float64(0.9), "beta": np.full(4, 0.25), "fusion_layers": layers}
        assert torch.equal(model.generate(**batch_inputs(), **GREEDY, **knobs), expected)


def test_a_callable_is_fused(model):
    def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        return GenerationMixin._sample(
            model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs
        )

    expected = model.generate(**row_inputs(0), **GREEDY, **STRONG)
    assert torch.equal(model.generate(**row_inputs(0), **GREEDY, **STRONG, custom_generate=loop), expected)
