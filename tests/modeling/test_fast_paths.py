"""What makes fusion fast changes no answer: kept text streams, questions asked twice in a batch, compiled models."""

import copy
import threading

import pytest
import torch
from transformers import StaticCache

from modeling_vift import TextStreamCache
from tests.modeling.test_golden import TOLERANCE, golden, relative_error
from tests.modeling.tiny import IMAGE, PROMPTS, batch_inputs, row_inputs, text_passes, tiny_model

STRONG = {"beta": 0.4, "fusion_layers": 1.0}
GREEDY = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [IMAGE]}
DETAILS = {"output_logits": True, "return_dict_in_generate": True}


@pytest.mark.parametrize("rule", ["cascade", "additive", "independent"])
@pytest.mark.parametrize("span", ["all", "after_image"])
def test_kept_and_repeated_questions_agree_with_the_reference(rule, span):
    """The first call runs four questions of five rows, one twice; the second none, with other coefficients."""
    model, cache = tiny_model(), TextStreamCache()
    passes = text_passes(model)
    rows = (0, 3, 0, 2, 1)
    for alpha, beta in ((0.85, 0.3), (0.9, 0.2)):
        knobs = {"alpha": alpha, "beta": beta, "fusion_layers": [1, 2], "fusion_rule": rule, "fusion_span": span}
        out = model.generate(**batch_inputs(rows), **GREEDY, **DETAILS, **knobs, text_stream=cache)
        for i, row in enumerate(rows):
            answer = out.sequences[i, -6:].tolist()
            knobs = {"alpha": alpha, "beta": beta, "layers": [1, 2], "rule": rule, "span": span}
            expected, _ = golden(model, row, knobs, answer)
            for step in range(6):
                ours = out.logits[step][i].numpy()
                assert relative_error(ours, expected[len(PROMPTS[row]) - 1 + step]) < TOLERANCE
    assert passes == [(3, 7)] and len(cache.streams) == 3


def test_beta_zero_with_a_cache_is_bit_equal_to_unfused():
    model, cache = tiny_model(dtype=torch.float32), TextStreamCache()
    plain = model.generate(**batch_inputs(dtype=torch.float32), **GREEDY, **DETAILS, fusion=False)
    for _ in range(2):
        knobs = {"alpha": 1.0, "beta": 0.0, "fusion_layers": 1.0, "text_stream": cache}
        fused = model.generate(**batch_inputs(dtype=torch.float32), **GREEDY, **DETAILS, **knobs)
        assert torch.equal(torch.stack(fused.logits), torch.stack(plain.logits))
    assert model.generate(**row_inputs(2), **GREEDY, text_stream=cache).shape[0] == 1  # no image: nothing to keep


def test_the_cache_holds_at_most_its_bytes_and_drops_what_was_used_longest_ago():
    model = tiny_model()
    passes = text_passes(model)
    size = [7 * 32 * 8, 4 * 32 * 8, 6 * 32 * 8]  # rows 0, 1, 3: T tokens of one layer in float64
    cache = TextStreamCache(max_bytes=size[0] + size[1])

    def ask(row, layers=(2,)):
        model.generate(**row_inputs(row), **GREEDY, beta=0.3, fusion_layers=list(layers), text_stream=cache)

    for row in (0, 1, 0):
        ask(row)
    assert passes == [(1, 7), (1, 4)] and cache.bytes == size[0] + size[1]
    ask(3)
    assert len(cache.streams) == 1 and cache.bytes == size[2], "both had to leave"
    ask(1)
    ask(3, layers=(1, 2))  # other layers are another stream, and alone too large with row 1
    assert len(passes) == 5 and cache.bytes <= cache.max_bytes
    with pytest.raises(ValueError, match="max_bytes=-1 "):
        TextStreamCache(-1)


def test_changed_weights_and_switched_adapters_empty_the_cache():
    from peft import LoraConfig, get_peft_model

    model, cache = tiny_model(), TextStreamCache()

    def fresh():
        """Whether the cached answer is that of the model as it is now; and the answer."""
        kept = model.generate(**row_inputs(0), **GREEDY, **STRONG, **DETAILS, text_stream=cache).logits
        own = model.generate(**row_inputs(0), **GREEDY, **STRONG, **DETAILS).logits
        assert torch.equal(torch.stack(kept), torch.stack(own))
        return torch.stack(own)

    seen = [fresh()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model(**row_inputs(0), labels=row_inputs(0)["input_ids"]).loss.backward()
    optimizer.step()
    seen.append(fresh())
    model.load_state_dict(tiny_model(seed=1).state_dict())
    seen.append(fresh())
    lora = LoraConfig(target_modules=r".*language_model.*q_proj", r=4, init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    seen.append(fresh())
    with adapted.disable_adapter():
        assert torch.equal(fresh(), seen[2])
    adapted.merge_adapter()
    seen.append(fresh())
    assert all(not torch.equal(a, b) for a, b in zip(seen[:-2], seen[1:-1])), "each change was one"
    other = tiny_model(seed=4)
    kept = other.generate(**row_inputs(0), **GREEDY, **STRONG, text_stream=cache)
    assert torch.equal(kept, other.generate(**row_inputs(0), **GREEDY, **STRONG))


def test_threads_share_a_cache():
    model, cache = tiny_model(), TextStreamCache(max_bytes=3 * 7 * 32 * 8 * 4)
    rows = (0, 1, 3, 0)
    expected = [model.generate(**row_inputs(row), **GREEDY, **STRONG) for row in rows]
    right = []

    def work(i):
        for _ in range(8):
            answer = model.generate(**row_inputs(rows[i]), **GREEDY, **STRONG, text_stream=cache)
            right.append(torch.equal(answer, expected[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert right == [True] * 32


@pytest.mark.slow
def test_a_compiled_language_model_does_not_recompile_for_other_lengths():
    """
    Whole graphs for text pass, prefill and decoding; after the first call no length of prompt or text is a new one.

    A bucket is a length of the static cache and a number of rows with an image; 1 row and several are compiled apart.
    """
    from torch._dynamo.testing import CompileCounter

    model, count = tiny_model(text_config={"num_hidden_layers": 2}), CompileCounter()
    compiled = copy.deepcopy(model)
    compiled.model.language_model.compile(backend=count, dynamic=True, fullgraph=True)
    graphs = []
    for rows, pad_to in (((0, 1), 20), ((1, 3), 20), ((3, 1), 17), ((0, 3), 29)):
        inputs = batch_inputs(rows, pad_to=pad_to)
        cache = StaticCache(config=model.config.get_text_config(), max_cache_len=40)
        answer = compiled.generate(**inputs, **GREEDY, **STRONG, past_key_values=cache, disable_compile=True)
        assert torch.equal(answer, model.generate(**inputs, **GREEDY, **STRONG))
        assert not torch.equal(answer, model.generate(**inputs, **GREEDY, fusion=False))
        graphs.append(count.frame_count)
    assert graphs[0] and set(graphs) == {graphs[0]}, graphs
