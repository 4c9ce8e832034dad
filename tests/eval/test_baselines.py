"""Rivals of fusion: each is the plain model where it should be, and what it says it is elsewhere."""

import pytest
import torch
from transformers import Qwen2ForCausalLM

from vift_eval.answers.baselines import WAYS, ask, cost, merge_language_model, static_stream, static_vectors
from vift_eval.answers.conditions import load
from vift_eval.models import BUNDLED
from vift_microworld import visual_questions


@pytest.fixture(scope="module")
def bundled():
    return load(str(BUNDLED))


@pytest.fixture(scope="module")
def questions():
    return visual_questions(12, seed=5, split="validation")


def language_model_of(model) -> Qwen2ForCausalLM:
    text = Qwen2ForCausalLM(model.config.text_config)
    text.model.load_state_dict(model.model.language_model.state_dict())
    return text


def test_mixing_in_nothing_is_the_unfused_answer(bundled, questions):
    unfused = ask(*bundled, questions, "unfused")
    assert ask(*bundled, questions, "logit_mix", weight=0.0) == unfused
    assert ask(*bundled, questions, "logit_mix", weight=0.9) != unfused


def test_mixing_in_the_text_run_alone_is_the_blind_answer(bundled, questions):
    assert ask(*bundled, questions, "logit_mix", weight=1.0) == ask(*bundled, questions, "blind")


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
    half = merge_language_model(model, other, 0.5).model.language_model.layers[0].mlp.up_proj.weight
    assert torch.allclose(half, own + 0.5, atol=1e-6)
    whole = merge_language_model(model, other, 1.0)
    assert torch.allclose(whole.model.language_model.layers[0].mlp.up_proj.weight, own + 1.0, atol=1e-6)
    assert torch.equal(whole.lm_head.weight, whole.model.language_model.embed_tokens.weight)  # still tied


def test_merging_refuses_weights_and_models_that_do_not_fit(bundled):
    model, _ = bundled
    with pytest.raises(ValueError, match=r"weight=1.5 must be in \[0, 1\]"):
        merge_language_model(model, language_model_of(model), 1.5)
    config = type(model.config.text_config)(**{**model.config.text_config.to_dict(), "hidden_size": 64})
    with pytest.raises(ValueError, match="language_model has .*64.* the model .*128"):
        merge_language_model(model, Qwen2ForCausalLM(config), 0.5)


def test_the_static_vector_of_one_question_is_its_own_text_stream(bundled, questions):
    model, processor = bundled
    one = questions.select([3])
    vectors = static_vectors(model, processor, one)
    assert ask(model, processor, one, "static_vector", vectors=vectors) == ask(model, processor, one, "fused")


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
    with pytest.raises(ValueError, match="way must be one of unfused"):
        ask(*bundled, questions, "guess")
    with pytest.raises(ValueError, match="merged_weights.*language_model"):
        ask(*bundled, questions, "merged_weights")
    with pytest.raises(ValueError, match="static_vector.*vectors"):
        ask(*bundled, questions, "static_vector")


def test_costs_count_every_decoded_token(bundled, questions):
    model, processor = bundled
    few = questions.select(range(3))
    spent = cost(model, processor, few, {"blind": {}, "caption_first": {}})
    assert set(spent) <= set(WAYS) and "generate" not in vars(model)
    words = [len(processor.tokenizer(text)["input_ids"]) for text in ask(model, processor, few, "blind")]
    assert spent["blind"]["tokens"] == pytest.approx(sum(words) / 3 + 1, abs=0.01)  # and the end of the answer
    assert spent["caption_first"]["tokens"] > spent["blind"]["tokens"] + 4
