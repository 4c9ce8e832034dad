"""The promises of fused generation, each a test named by it (CONTRIBUTING.md, "Invariants")."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM, TextIteratorStreamer, TextStreamer

from modeling_vift import VIFTForConditionalGeneration
from tests.modeling.reference import vift_logits
from tests.modeling.tiny import (
    DETAILS,
    GREEDY,
    IMAGE,
    IMG,
    LAYERS,
    PAD,
    PROMPTS,
    STRONG,
    batch_inputs,
    images_of,
    logits_of,
    row_inputs,
    tiny_images,
    tiny_model,
)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


# 1 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", ["cascade", "additive"])
def test_beta_zero_alpha_one_is_bit_equal_to_unfused(dtype, rule):
    model, inputs = tiny_model(dtype=dtype), batch_inputs(dtype=dtype)
    knobs = {"alpha": 1.0, "beta": 0.0, "fusion_layers": 1.0, "fusion_rule": rule}
    fused = model.generate(**inputs, **GREEDY, **DETAILS, **knobs)
    plain = model.generate(**inputs, **GREEDY, **DETAILS, fusion=False)
    assert torch.equal(fused.sequences, plain.sequences)
    assert torch.equal(logits_of(fused), logits_of(plain))
    for ours, theirs in zip(fused.past_key_values.layers, plain.past_key_values.layers):
        assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)


def test_fusion_off_is_the_stock_model(model):
    config = copy.deepcopy(model.config)
    config.fusion_enabled = False
    off = VIFTForConditionalGeneration(config).double().eval()
    off.load_state_dict(model.state_dict())
    expected = model.generate(**batch_inputs(), **GREEDY, fusion=False)
    assert torch.equal(off.generate(**batch_inputs(), **GREEDY), expected)
    assert not torch.equal(off.generate(**batch_inputs(), **GREEDY, fusion=True, **STRONG), expected)


# 2 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("span, first", [("all", 0), ("after_image", 7)])
def test_the_edit_is_exactly_where_stated(model, layer, span, first):
    inputs, fusion = row_inputs(0), {"alpha": 0.9, "beta": 0.3, "fusion_layers": [layer], "fusion_span": span}
    with torch.no_grad():
        plain = model(**inputs, output_hidden_states=True).hidden_states
        fused = model(**inputs, output_hidden_states=True, fusion=fusion).hidden_states
    h_q = model.text_run(inputs["input_ids"], fusion_layers=[layer])
    edited = [t for t, token in enumerate(PROMPTS[0]) if token != IMAGE and t >= first]
    others = [t for t in range(len(PROMPTS[0])) if t not in edited]
    for index in range(layer):
        assert torch.equal(fused[index], plain[index]), "layers before the edit are untouched"
    assert torch.equal(fused[layer][0, others], plain[layer][0, others]), "other positions are untouched"
    text = h_q.states[layer][torch.isin(h_q.columns, torch.tensor(edited))]
    torch.testing.assert_close(fused[layer][0, edited], 0.9 * plain[layer][0, edited] + 0.3 * text, rtol=1e-12, atol=0)


def test_text_stream_is_the_text_only_prompt(model):
    """Same ids without the image, contiguous positions 0 ... T-1: a plain run over the text gives the same states."""
    stream = model.text_run(**{k: v for k, v in batch_inputs().items() if k != "pixel_values"}, fusion_layers=1.0)
    assert sorted(stream.states) == list(range(LAYERS))
    start = 0
    for row in (0, 1, 3):  # row 2 has no image and takes no part
        text = torch.tensor([[token for token in PROMPTS[row] if token != IMAGE]])
        with torch.no_grad():
            states = model(input_ids=text, output_hidden_states=True).hidden_states
        for layer in range(LAYERS):
            ours = stream.states[layer][start : start + text.shape[1]]
            torch.testing.assert_close(ours, states[layer][0], rtol=1e-10, atol=1e-12)
        start += text.shape[1]
    assert start == len(stream.rows) and stream.rows.unique().tolist() == [0, 1, 3]


# 3 ---------------------------------------------------------------------------------------------------------


def test_a_batch_equals_its_rows_alone(model):
    batch = model.generate(**batch_inputs(pad_to=17), **GREEDY, **DETAILS, **STRONG)
    for row in range(len(PROMPTS)):
        alone = model.generate(**row_inputs(row), **GREEDY, **DETAILS, **STRONG)
        assert torch.equal(batch.sequences[row, 17:], alone.sequences[0, len(PROMPTS[row]) :])
        torch.testing.assert_close(logits_of(batch)[row], logits_of(alone)[0], rtol=1e-9, atol=1e-9)


def test_rows_without_an_image_are_untouched(model):
    inputs = batch_inputs()
    fused = model.generate(**inputs, **GREEDY, **DETAILS, **STRONG)
    plain = model.generate(**inputs, **GREEDY, **DETAILS, fusion=False)
    assert torch.equal(logits_of(fused)[2], logits_of(plain)[2])
    assert not torch.allclose(logits_of(fused)[0], logits_of(plain)[0])


def test_an_inferred_attention_mask_equals_a_given_one(model):
    inputs = batch_inputs()
    mask = inputs.pop("attention_mask")
    given = model.generate(**inputs, attention_mask=mask, **GREEDY, **STRONG)
    assert torch.equal(model.generate(**inputs, **GREEDY, **STRONG), given)
    assert torch.equal(model.generate(inputs.pop("input_ids"), **inputs, **GREEDY, **STRONG), given)


# 4 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["cascade", "additive", "independent"])
def test_cache_on_equals_cache_off(model, rule):
    knobs = {**GREEDY, **DETAILS, **STRONG, "alpha": 0.9, "fusion_rule": rule}
    on = model.generate(**batch_inputs(), **knobs)
    off = model.generate(**batch_inputs(), **knobs, use_cache=False)
    assert torch.equal(on.sequences, off.sequences)
    torch.testing.assert_close(logits_of(on), logits_of(off), rtol=1e-9, atol=1e-9)


# 5 ---------------------------------------------------------------------------------------------------------


def same(model, inputs, plain_kwargs=None, **kwargs):
    """Greedy tokens with `kwargs` equal those without."""
    expected = model.generate(**inputs, **GREEDY, **STRONG, **(plain_kwargs or {}))
    assert torch.equal(model.generate(**inputs, **GREEDY, **STRONG, **kwargs), expected)
    unfused = model.generate(**inputs, **GREEDY, **(plain_kwargs or {}), fusion=False)
    assert not torch.equal(unfused, expected), "the check could not fail: fused and unfused answers are equal"


@pytest.mark.parametrize("chunk", [1, 3, 5, 64])
def test_chunked_prefill_equals_whole_prefill(model, chunk):
    same(model, batch_inputs(), prefill_chunk_size=chunk)


def test_static_cache_equals_dynamic_cache(model):
    same(model, batch_inputs(), cache_implementation="static", disable_compile=True)


def test_compiled_decode_equals_eager(model):
    from transformers import CompileConfig

    compiled = copy.deepcopy(model)
    compiled._compiled_call = None
    config = CompileConfig(backend="eager", fullgraph=True, mode="default", dynamic=False)
    config._compile_all_devices = True
    same(compiled, batch_inputs(), cache_implementation="static", compile_config=config)


def test_compiled_forward_equals_eager(model):
    compiled = copy.deepcopy(model)
    compiled.forward = torch.compile(compiled.forward, backend="eager")
    expected = model.generate(**batch_inputs(), **GREEDY, **STRONG)
    assert torch.equal(compiled.generate(**batch_inputs(), **GREEDY, **STRONG), expected)


def test_prompt_lookup_equals_greedy(model):
    same(model, row_inputs(0), prompt_lookup_num_tokens=3)


@pytest.mark.parametrize("assistant", ["text", "vift", "itself"])
def test_assisted_equals_greedy(model, assistant):
    if assistant == "text":
        torch.manual_seed(5)
        helper = Qwen2ForCausalLM(Qwen2Config(**model.config.text_config.to_dict())).double().eval()
        helper.generation_config.pad_token_id = PAD
    else:
        helper = model if assistant == "itself" else tiny_model(seed=7)
    same(model, row_inputs(0), assistant_model=helper)


@pytest.mark.parametrize("rows", [(0,), (0, 1, 2, 3)])
def test_beams_equal_beams_of_the_row_alone(model, rows):
    knobs = {**GREEDY, **STRONG, "num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0}
    batch = model.generate(**batch_inputs(rows, pad_to=17), **knobs).view(len(rows), 2, -1)
    for i, row in enumerate(rows):
        alone = model.generate(**row_inputs(row), **knobs)
        assert torch.equal(batch[i, :, 17:], alone[:, len(PROMPTS[row]) :])


def test_beam_scores_are_the_fused_models_own(model):
    """The score of a returned beam is the log-probability that fused scoring gives to its tokens."""
    inputs, width = row_inputs(1), len(PROMPTS[1])
    out = model.generate(
        **inputs,
        **STRONG,
        num_beams=4,
        max_new_tokens=5,
        length_penalty=0.0,
        suppress_tokens=[IMAGE],
        output_scores=True,
        return_dict_in_generate=True,
    )
    labels = out.sequences.clone()
    labels[:, :width] = -100
    with torch.no_grad():
        logits = model(out.sequences, pixel_values=inputs["pixel_values"], labels=labels, fusion=dict(STRONG)).logits
    log_p = logits[0, width - 1 : -1].log_softmax(-1).gather(1, out.sequences[0, width:, None]).sum()
    assert log_p.item() == pytest.approx(out.sequences_scores[0].item(), rel=1e-6)


@pytest.mark.parametrize("kwargs", [{"num_return_sequences": 3}, {"num_beams": 2}])
def test_sampling_draws_from_the_fused_distribution(model, kwargs):
    """Rows of one prompt start from the same fused distribution, and the same seed draws the same tokens."""
    inputs = batch_inputs()
    knobs = {"max_new_tokens": 4, "do_sample": True, "suppress_tokens": [IMAGE], **kwargs, **STRONG, **DETAILS}
    torch.manual_seed(0)
    first = model.generate(**inputs, **knobs)
    torch.manual_seed(0)
    assert torch.equal(model.generate(**inputs, **knobs).sequences, first.sequences)
    greedy = model.generate(**inputs, **GREEDY, **STRONG, **DETAILS)
    copies = len(first.logits[0]) // len(PROMPTS)
    expected = greedy.logits[0].repeat_interleave(copies, dim=0)
    torch.testing.assert_close(first.logits[0], expected, rtol=1e-9, atol=1e-9)


def test_classifier_free_guidance_fuses_the_conditional_branch(model):
    """guidance 1.5: unconditional logits come from the last prompt token alone and are never fused."""
    inputs = row_inputs(0)
    out = model.generate(**inputs, **GREEDY, **STRONG, guidance_scale=1.5, output_scores=True, **DETAILS)
    with torch.no_grad():
        conditional = model(**inputs, fusion=dict(STRONG)).logits[0, -1].log_softmax(-1)
        unconditional = model(input_ids=inputs["input_ids"][:, -1:]).logits[0, -1].log_softmax(-1)
    expected = 1.5 * (conditional - unconditional) + unconditional
    expected[IMAGE] = -torch.inf
    torch.testing.assert_close(out.scores[0][0].double(), expected, rtol=1e-5, atol=1e-5)


def test_hidden_states_of_generate_are_the_fused_ones(model):
    inputs = row_inputs(0)
    out = model.generate(**inputs, **GREEDY, **STRONG, **DETAILS, output_hidden_states=True)
    with torch.no_grad():
        expected = model(**inputs, fusion=dict(STRONG), output_hidden_states=True).hidden_states
    for ours, theirs in zip(out.hidden_states[0], expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# 6 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule, alpha", [("cascade", 1.0), ("cascade", 0.9), ("additive", 0.9), ("independent", 0.9)])
@pytest.mark.parametrize("all_images", [True, False])
def test_several_turns_on_one_cache_fuse_only_new_tokens(model, all_images, rule, alpha):
    first_turn, images = row_inputs(0), tiny_images()[:2]
    cache = DynamicCache(config=model.config.get_text_config())
    how = {**GREEDY, **STRONG, "alpha": alpha, "fusion_rule": rule}
    first = model.generate(**first_turn, **how, past_key_values=cache)[0].tolist()
    past = cache.get_seq_length()
    assert past == len(first) - 1, "the last token of an answer is not in the cache"
    conversation = [*first, 25, *IMG, 26, 27]
    turn = {"input_ids": torch.tensor([conversation]), "past_key_values": cache}
    if rule != "cascade" and not all_images:  # these rules read an unfused run of the whole conversation
        with pytest.raises(ValueError, match="the prompt has 8 image tokens but pixel_values holds 1 images"):
            model.generate(**turn, pixel_values=images[1:], **how)
        return
    second = model.generate(**turn, pixel_values=images if all_images else images[1:], **how, **DETAILS)
    knobs = {"alpha": alpha, "beta": 0.4, "layers": range(LAYERS), "rule": rule, "span": "all"}
    written = {*range(len(PROMPTS[0])), *range(past, len(conversation))}
    p = {name: value.double().numpy() for name, value in model.state_dict().items()}
    answer = second.sequences[0, len(conversation) :].tolist()
    expected, _ = vift_logits(
        p, model.config.to_dict(), conversation, [image.numpy() for image in images], answer, knobs, written
    )
    ours = logits_of(second)[0].numpy()
    np.testing.assert_allclose(ours, expected[len(conversation) - 1 : -1], rtol=1e-4, atol=1e-5)


def test_a_text_turn_on_an_image_cache_needs_no_image(model):
    cache = DynamicCache(config=model.config.get_text_config())
    first = model.generate(**row_inputs(0), **GREEDY, **STRONG, past_key_values=cache)
    ids = torch.cat([first, torch.tensor([[25, 26, 27]])], dim=1)
    pasts = copy.deepcopy(cache)
    without = model.generate(input_ids=ids, past_key_values=cache, **GREEDY, **STRONG)
    assert torch.equal(
        model.generate(input_ids=ids, pixel_values=images_of(0), past_key_values=pasts, **GREEDY, **STRONG), without
    )


# 7 ---------------------------------------------------------------------------------------------------------


def test_the_model_is_clean_after_an_exception(model):
    expected = model.generate(**batch_inputs(), **GREEDY, fusion=False)

    class Interrupt(Exception):
        pass

    def explode(*_):
        raise Interrupt

    with pytest.raises(Interrupt):
        model.generate(**batch_inputs(), **GREEDY, **STRONG, logits_processor=[explode])
    hook = model.model.language_model.layers[-1].register_forward_pre_hook(explode)
    with pytest.raises(Interrupt):
        model.generate(**batch_inputs(), **GREEDY, **STRONG)
    hook.remove()
    assert torch.equal(model.generate(**batch_inputs(), **GREEDY, fusion=False), expected)
    with torch.no_grad():
        plain = model(**batch_inputs()).logits[:, -1]
    plain[:, IMAGE] = -torch.inf
    assert torch.equal(plain.argmax(-1), expected[:, batch_inputs()["input_ids"].shape[1]])


def test_threads_with_other_coefficients_do_not_mix(model):
    betas = [0.0, 0.2, 0.5, 1.0]
    inputs = batch_inputs()
    expected = {b: model.generate(**inputs, **GREEDY, beta=b, fusion_layers=1.0) for b in betas}
    assert not torch.equal(expected[0.0], expected[1.0])
    wrong, barrier = [], threading.Barrier(len(betas))

    def work(beta):
        barrier.wait()
        for _ in range(5):
            answer = model.generate(**inputs, **GREEDY, beta=beta, fusion_layers=1.0)
            if not torch.equal(answer, expected[beta]):
                wrong.append(beta)

    threads = [threading.Thread(target=work, args=(beta,)) for beta in betas]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_fuse_like_the_original(clone):
    model, inputs = tiny_model(dtype=torch.float32), batch_inputs(dtype=torch.float32)
    other = clone(model)
    same_answer = model.generate(**inputs, **GREEDY, **STRONG)
    assert torch.equal(other.generate(**inputs, **GREEDY, **STRONG), same_answer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(model.generate(**inputs, **GREEDY, **STRONG), same_answer)


def test_a_model_called_inside_another_ones_generate_keeps_its_own_fusion(model):
    inner, inputs = tiny_model(seed=3), row_inputs(0)
    expected, inner_expected = (m.generate(**inputs, **GREEDY, **STRONG) for m in (model, inner))
    seen = []

    def ask(input_ids, scores):
        seen.append(inner.generate(**inputs, **GREEDY, **STRONG))
        seen.append(model.generate(**inputs, **GREEDY, fusion=False))
        return scores

    assert torch.equal(model.generate(**inputs, **GREEDY, **STRONG, logits_processor=[ask]), expected)
    assert torch.equal(seen[0], inner_expected)
    assert torch.equal(seen[1], model.generate(**inputs, **GREEDY, fusion=False))


# 8 ---------------------------------------------------------------------------------------------------------


class IdTokenizer:
    """Decodes ids as their numbers: what a streamer needs of a tokenizer."""

    def decode(self, ids, **kwargs):
        return "".join(f"{int(i)}\n" for i in torch.as_tensor(ids).flatten())


def test_streamed_text_equals_the_returned_text(model, capsys):
    streamer = TextStreamer(IdTokenizer(), skip_prompt=True)
    out = model.generate(**row_inputs(0), **GREEDY, **STRONG, streamer=streamer)
    assert capsys.readouterr().out.split() == [str(i) for i in out[0, len(PROMPTS[0]) :].tolist()]


def test_streaming_from_a_thread_equals_the_returned_text(model):
    streamer = TextIteratorStreamer(IdTokenizer(), skip_prompt=True, timeout=60)
    kwargs = row_inputs(0) | GREEDY | STRONG | {"streamer": streamer}
    thread = threading.Thread(target=model.generate, kwargs=kwargs)
    thread.start()
    streamed = "".join(streamer).split()
    thread.join()
    expected = model.generate(**row_inputs(0), **GREEDY, **STRONG)[0, len(PROMPTS[0]) :]
    assert streamed == [str(i) for i in expected.tolist()]
