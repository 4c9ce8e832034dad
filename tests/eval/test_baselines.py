"""Baselines of fusion: each is the plain model where it should be, and what it says it is elsewhere."""

import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM

from vift_eval.answers.baselines import merge_language_model, static_stream, static_vectors
from vift_eval.answers.conditions import CONDITIONS, ask, evaluate, meaning
from vift_eval.answers.generate import decoded
from vift_eval.models import BUNDLED, load_model
from vift_microworld import visual_questions


@pytest.fixture(scope="module")
def bundled():
    return load_model(str(BUNDLED))


@pytest.fixture(scope="module")
def questions():
    return visual_questions(12, seed=5, split="validation")


def language_model_of(model) -> Qwen2ForCausalLM:
    text = Qwen2ForCausalLM(model.config.text_config)
    text.model.load_state_dict(model.model.language_model.state_dict())
    return text


def test_mixing_in_nothing_is_the_unfused_answer(bundled, questions):
    unfused = evaluate(*bundled, questions, "unfused")
    assert evaluate(*bundled, questions, "logit_mix", weight=0.0) == unfused
    assert evaluate(*bundled, questions, "logit_mix", weight=0.9) != unfused


def test_mixing_in_the_text_run_alone_is_the_blind_answer(bundled, questions):
    assert evaluate(*bundled, questions, "logit_mix", weight=1.0) == evaluate(*bundled, questions, "blind")


def test_merging_identical_weights_changes_no_bit(bundled):
    model, _ = bundled
    merged = merge_language_model(model, language_model_of(model), 0.37)
    for (name, before), (_, after) in zip(model.named_parameters(), merged.named_parameters()):
        assert torch.equal(before, after), name


def test_merging_goes_from_one_model_to_the_other(bundled):
    model, _ = bundled
    other = language_model_of(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    own = model.model.language_model.layers[0].mlp.up_proj.weight
    half = merge_language_model(model, other, np.float32(0.5)).model.language_model.layers[0].mlp.up_proj.weight
    assert torch.allclose(half, own + 0.5, atol=1e-6)
    whole = merge_language_model(model, other, 1.0)
    assert torch.allclose(whole.model.language_model.layers[0].mlp.up_proj.weight, own + 1.0, atol=1e-6)
    assert torch.equal(whole.lm_head.weight, whole.model.language_model.embed_tokens.weight)  # still tied


def test_merging_has_a_weight_for_each_layer_and_one_for_the_rest(bundled):
    model, _ = bundled
    other, before = language_model_of(model), dict(model.model.language_model.named_parameters())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    weights = [0.0, 0.25, 0.5, 0.75, 1.0, -0.25, -0.5, -1.0, 0.1]
    merged = merge_language_model(model, other, weights).model.language_model
    for name, parameter in merged.named_parameters():
        weight = weights[int(name.split(".")[1])] if name.startswith("layers.") else 0.1
        assert torch.allclose(parameter, before[name] + weight, atol=1e-5), name


def test_merging_refuses_weights_and_models_that_do_not_fit(bundled):
    model, _ = bundled
    with pytest.raises(ValueError, match=r"weight=1.5 must be in \[-1, 1\]"):
        merge_language_model(model, language_model_of(model), 1.5)
    with pytest.raises(ValueError, match="weight has 8 numbers, 8 layers and all else need 9"):
        merge_language_model(model, language_model_of(model), [0.5] * 8)
    config = type(model.config.text_config)(**{**model.config.text_config.to_dict(), "hidden_size": 64})
    with pytest.raises(ValueError, match="language_model has .*64.* the model .*128"):
        merge_language_model(model, Qwen2ForCausalLM(config), 0.5)


def test_the_static_vector_of_one_question_is_its_own_text_stream(bundled, questions):
    model, processor = bundled
    one = questions.select([3])
    vectors = static_vectors(model, processor, one)
    assert evaluate(model, processor, one, "static_vector", vectors=vectors) == evaluate(
        model, processor, one, "fused"
    )


def test_static_vectors_are_means_by_place_from_the_end(bundled, questions):
    model, processor = bundled
    vectors = static_vectors(model, processor, questions)
    alone = [static_vectors(model, processor, questions.select([i])) for i in range(len(questions))]
    for layer, vector in vectors.items():
        for place in (0, 3, len(vector) - 1):
            states = [single[layer][place] for single in alone if len(single[layer]) > place]
            assert torch.allclose(vector[place], torch.stack(states).mean(dim=0), atol=1e-4)
    short = {layer: vector[:2] for layer, vector in vectors.items()}  # longer prompts repeat the first vector
    ids = torch.tensor([[model.config.image_token_id] * 9 + [5, 6, 7, 8]])
    stream = static_stream(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, short)
    layer = next(iter(short))
    assert torch.equal(stream.states[layer], short[layer][[1, 1, 1, 0]])


def test_what_is_missing_or_unknown_is_refused(bundled, questions):
    with pytest.raises(ValueError, match="condition='guess' must be one of unfused"):
        evaluate(*bundled, questions, "guess")
    with pytest.raises(ValueError, match="merged weights need language_model"):
        evaluate(*bundled, questions, "merged_weights")
    with pytest.raises(ValueError, match="merged_layers needs weights"):
        evaluate(*bundled, questions, "merged_layers")
    with pytest.raises(ValueError, match="static_vector.*vectors"):
        evaluate(*bundled, questions, "static_vector")


def test_every_condition_says_what_it_is_and_answers(bundled, questions):
    model, processor = bundled
    needs = {
        "merged_weights": {"language_model": language_model_of(model)},
        "merged_layers": {"language_model": language_model_of(model), "weights": [0.5] * 9},
        "static_vector": {"vectors": static_vectors(model, processor, questions)},
        "band": {"fusion_layers": "0:4"},
        "replaced": {"fusion_layers": "1:2"},
    }
    few = questions.select(range(3))
    for name in CONDITIONS:
        assert len(evaluate(model, processor, few, name, max_new_tokens=2, **needs.get(name, {}))) == 3, name
        assert meaning(name) and "\n" not in meaning(name)


def test_answers_count_every_decoded_token(bundled, questions):
    model, processor = bundled
    few = questions.select(range(3))
    blind, captioned = (ask(model, processor, few, name) for name in ("blind", "caption_first"))
    for answer, after_caption in zip(blind, captioned):
        words = processor.tokenizer(answer.text)["input_ids"]
        assert decoded(answer) == len(words) + 1  # and the end of the answer
        assert decoded(after_caption) > decoded(answer) + 4
    assert [decoded(a) for a in ask(model, processor, few, "unfused", max_new_tokens=2)] == [2, 2, 2]  # cut off
    assert "generate" not in vars(model)
