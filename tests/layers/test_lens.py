"""The logit-lens rule: it reads what the model's own head says of each layer, and takes the range around the peak."""

import pytest
import torch

from vift_eval.answers.generate import prompts_of
from vift_eval.calibrate import calibrate
from vift_eval.engine import Engine
from vift_eval.models import BUNDLED, load_model
from vift_layers.lens import lens_band, lens_profile
from vift_microworld import visual_questions


@pytest.fixture(scope="module")
def bundled():
    return load_model(str(BUNDLED))


@pytest.fixture(scope="module")
def questions():
    return visual_questions(24, seed=5, split="validation")


def batches_of(engine, questions, tokens):
    prompts = prompts_of(engine, [questions[i] for i in range(len(questions))])
    return [engine.continued(prompts[at : at + 9], tokens[at : at + 9]) for at in range(0, len(prompts), 9)]


def test_at_the_end_the_lens_is_the_model_itself(bundled, questions):
    """Representation L through norm and head are the model's own logits; before it, a hand-made pass of one row."""
    model, processor = bundled
    engine = Engine(model, processor)
    answers = engine.tokenizer(list(questions["answer"]), add_special_tokens=False)["input_ids"]
    batches = batches_of(engine, questions, answers)
    profile = lens_profile(model, batches)
    candidates = sorted({tokens[0] for tokens in answers})
    prompts = prompts_of(engine, [questions[i] for i in range(len(questions))])
    right = torch.zeros(model.config.get_text_config().num_hidden_layers + 1)
    for prompt, (first, *_) in zip(prompts, answers):
        with torch.no_grad():
            out = model(**engine.inputs([prompt]), fusion=False, output_hidden_states=True)
            states = [state[0, -1] for state in out.hidden_states[:-1]]
            logits = [model.lm_head(model.model.language_model.norm(state)) for state in states] + [out.logits[0, -1]]
        right += torch.tensor([candidates[int(one[candidates].argmax())] == first for one in logits])
    assert profile == pytest.approx((right / len(prompts)).tolist(), abs=1e-4)
    assert len(set(profile)) > 2


def test_one_and_the_same_answer_tells_nothing(bundled, questions):
    engine = Engine(*bundled)
    batches = batches_of(engine, questions.select(range(3)), [[7, 8], [7], [7]])
    with pytest.raises(ValueError, match="the 3 prompts have 1 different answers"):
        lens_profile(bundled[0], batches)


@pytest.mark.parametrize(
    ("profile", "band"),
    [
        ([0.1, 0.2, 0.8, 0.7, 0.2, 0.9], "2:4"),  # what leaves the last layer does not count
        ([0.1, 0.2, 0.3, 0.9, 0.95], "3:4"),
        ([0.5, 0.5, 0.5, 0.5], "0:3"),  # flat: nothing speaks against any layer
        ([0.2, 0.9], "0:1"),
    ],
)
def test_the_band_has_half_of_the_rise_at_the_inputs_of_layers(profile, band):
    assert lens_band(profile) == band


def test_a_profile_of_one_value_is_refused():
    with pytest.raises(ValueError, match="profile has 1 values"):
        lens_band([0.3])


def test_calibrate_tries_the_doses_in_the_band_of_the_lens_alone(bundled, questions):
    model, processor = bundled
    images = [row[0] for row in questions["images"]]
    result = calibrate(
        model, processor, images, list(questions["question"]), bands="lens", doses=(0.5, 1.0), alphas=(),
        caption_tokens=12, answer_tokens=4, store=False,
    )  # fmt: skip
    band = lens_band(result["lens"])
    assert {row["fusion_layers"] for row in result["table"]} == {band} and result["fusion_layers"] == band
    assert {row["dose"] for row in result["table"]} == {0.5, 1.0}


def test_one_band_need_not_be_in_a_list(bundled, questions):
    """A string is a band, not the bands that its letters are."""
    few = questions.select(range(2))
    result = calibrate(
        *bundled, [row[0] for row in few["images"]], list(few["question"]), bands="0:4", doses=(1.0,), alphas=(),
        caption_tokens=4, answer_tokens=2, store=False,
    )  # fmt: skip
    assert [row["fusion_layers"] for row in result["table"]] == ["0:4"]
