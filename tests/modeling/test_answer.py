"""`fusion_answer`: the answer's own tokens are fused too, each as the last token of a longer prompt would be."""

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from modeling_vift import TextStreamCache
from tests.modeling.reference import vift_logits
from tests.modeling.tiny import (
    IMAGE,
    LAYERS,
    PAD,
    PROMPTS,
    batch_inputs,
    images_of,
    row_inputs,
    text_passes,
    tiny_model,
)

GREEDY = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [IMAGE]}
DETAILS = {"output_logits": True, "return_dict_in_generate": True}
THROUGHOUT = {"beta": 0.4, "fusion_layers": 1.0, "fusion_answer": True}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.mark.parametrize("layers, span", [(range(LAYERS), "all"), ([1], "after_image")])
def test_each_token_is_the_references_for_prompt_and_answer_so_far(model, layers, span):
    out = model.generate(
        **row_inputs(1),
        **GREEDY,
        **DETAILS,
        **THROUGHOUT | {"fusion_layers": list(layers)},
        alpha=0.8,
        fusion_span=span,
    )
    sequence, width = out.sequences[0].tolist(), len(PROMPTS[1])
    p = {name: value.double().numpy() for name, value in model.state_dict().items()}
    images = [image.numpy() for image in images_of(1)]
    knobs = {"alpha": 0.8, "beta": 0.4, "layers": layers, "rule": "cascade", "span": span}
    expected, _ = vift_logits(p, model.config.to_dict(), sequence, images, (), knobs)
    ours = torch.stack(out.logits, dim=1)[0].numpy()
    np.testing.assert_allclose(ours, expected[width - 1 : -1], rtol=1e-4, atol=1e-5)
    prompt_only = model.generate(**row_inputs(1), **GREEDY, **DETAILS, beta=0.4, fusion_layers=1.0)
    assert not torch.equal(prompt_only.logits[1], out.logits[1])


def test_a_batch_with_a_strength_a_row_equals_its_rows_alone(model):
    strengths = {"alpha": torch.tensor([1.0, 0.9, 1.0, 0.7]), "beta": torch.tensor([0.4, 0.2, 0.3, 0.0])}
    batch = model.generate(**batch_inputs(pad_to=17), **GREEDY, **DETAILS, **THROUGHOUT | strengths)
    for row in range(len(PROMPTS)):
        one = {name: values[row].item() for name, values in strengths.items()}
        alone = model.generate(**row_inputs(row), **GREEDY, **DETAILS, **THROUGHOUT | one)
        torch.testing.assert_close(
            torch.stack(batch.logits, dim=1)[row], torch.stack(alone.logits, dim=1)[0], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    "kwargs",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 5},
        {"prompt_lookup_num_tokens": 3},
        {"assistant_model": tiny_model(seed=7)},
        {"text_stream": TextStreamCache()},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_every_way_of_decoding_says_the_same(model, kwargs):
    expected = model.generate(**row_inputs(0), **GREEDY, **THROUGHOUT)
    assert torch.equal(model.generate(**row_inputs(0), **GREEDY, **THROUGHOUT, **kwargs), expected)


def test_beams_equal_beams_of_the_row_alone_and_their_scores_are_those_of_scoring(model):
    knobs = {**GREEDY, **THROUGHOUT, "num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0}
    batch = model.generate(**batch_inputs(pad_to=17), **knobs).view(len(PROMPTS), 2, -1)
    for row, prompt in enumerate(PROMPTS):
        alone = model.generate(**row_inputs(row), **knobs, output_scores=True, return_dict_in_generate=True)
        assert torch.equal(batch[row, :, 17:], alone.sequences[:, len(prompt) :])
        labels = alone.sequences.clone()
        labels[:, : len(prompt)] = -100
        pixels = images_of(row)
        for i, sequence in enumerate(alone.sequences):
            with torch.no_grad():
                logits = model(
                    sequence[None], pixel_values=pixels if len(pixels) else None, labels=labels[i : i + 1],
                    fusion=dict(THROUGHOUT),
                ).logits  # fmt: skip
            tokens = sequence[len(prompt) :]
            log_p = logits[0, len(prompt) - 1 : -1].log_softmax(-1).gather(1, tokens[:, None])[tokens != PAD].sum()
            assert log_p.item() == pytest.approx(alone.sequences_scores[i].item(), rel=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_the_text_run_goes_on_with_the_answer(beams):
    """After the first pass each step runs one token of each different text, whatever becomes of the beams."""
    model = tiny_model()
    shapes = text_passes(model)
    model.generate(**batch_inputs((0, 1, 3)), **GREEDY, **THROUGHOUT, num_beams=beams)
    assert shapes[0] == (3, 7) and len(shapes) == 6
    assert all(width == 1 and rows <= 3 * beams for rows, width in shapes[1:]), shapes
    assert max(rows for rows, _ in shapes) == 3 * beams


def test_an_answer_that_is_continued_on_its_cache_equals_one_in_one_go(model):
    whole = model.generate(**row_inputs(0), **GREEDY, **THROUGHOUT)
    cache = DynamicCache(config=model.config.get_text_config())
    half = model.generate(**row_inputs(0), **GREEDY | {"max_new_tokens": 3}, **THROUGHOUT, past_key_values=cache)
    rest = model.generate(half, past_key_values=cache, **GREEDY | {"max_new_tokens": 3}, **THROUGHOUT)
    assert torch.equal(rest, whole)


def test_guidance_leaves_the_unconditional_branch_unfused(model):
    inputs, width = row_inputs(0), len(PROMPTS[0])
    out = model.generate(**inputs, **GREEDY, **THROUGHOUT, guidance_scale=1.5, output_scores=True, **DETAILS)
    with torch.no_grad():
        fused = model(out.sequences, pixel_values=inputs["pixel_values"], fusion=dict(THROUGHOUT)).logits[0]
        plain = model(input_ids=out.sequences[:, width - 1 :]).logits[0]
    conditional, unconditional = fused[width - 1 : -1].log_softmax(-1), plain[:-1].log_softmax(-1)
    expected = 1.5 * (conditional - unconditional) + unconditional
    expected[:, IMAGE] = -torch.inf
    torch.testing.assert_close(torch.cat(out.scores).double(), expected, rtol=1e-4, atol=1e-4)


def test_what_does_not_go_with_it_is_refused_by_name(model):
    for bad, message in [
        ({"fusion_answer": 1}, "fusion_answer=1 must be True or False"),
        ({"fusion_rule": "independent"}, "fusion_answer=True needs the rule 'cascade'"),
        ({"fusion_rule": "additive", "alpha": 0.9}, "not 'additive'"),
        ({"text_stream": model.text_run(row_inputs(0)["input_ids"], None, 1.0)}, "prompt's text run only"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.generate(**row_inputs(0), **GREEDY, **THROUGHOUT | bad)
