"""The fused model agrees with a hand-written float64 reference, for every rule, span and image count."""

import itertools

import numpy as np
import pytest
import torch

from modeling_vift import FUSION_RULES, FUSION_SPANS
from tests.modeling.reference import vift_logits
from tests.modeling.tiny import IMAGE, NUM_IMAGES, PROMPTS, batch_inputs, images_of, tiny_model

TOLERANCE = 1e-6  # relative to the largest logit; `generate()` returns its logits in float32


def golden(model, row, fusion, answer=()):
    p = {name: value.double().numpy() for name, value in model.state_dict().items()}
    images = [image.numpy() for image in images_of(row)] if NUM_IMAGES[row] else []
    return vift_logits(p, model.config.to_dict(), PROMPTS[row], images, answer, fusion)


def relative_error(ours, reference):
    return np.abs(ours - reference).max() / np.abs(reference).max()


@pytest.mark.parametrize("norm, skip_first", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("rule, span", list(itertools.product(FUSION_RULES, FUSION_SPANS)))
@pytest.mark.parametrize("layers", [[0, 1, 2, 3], [2, 3], [1]])
def test_padded_batch_agrees_with_the_reference(rule, span, layers, norm, skip_first):
    model = tiny_model()
    knobs = {"alpha": 0.85, "beta": 0.3, "layers": layers, "rule": rule, "span": span, "norm": norm}
    knobs["skip_first"] = skip_first
    out = model.generate(
        **batch_inputs(),
        alpha=0.85,
        beta=0.3,
        fusion_layers=layers,
        fusion_rule=rule,
        fusion_span=span,
        fusion_norm=norm,
        fusion_skip_first=skip_first,
        max_new_tokens=4,
        do_sample=False,
        suppress_tokens=[IMAGE],
        output_logits=True,
        return_dict_in_generate=True,
    )
    width = batch_inputs()["input_ids"].shape[1]
    for row in range(len(PROMPTS)):
        answer = out.sequences[row, width:].tolist()
        expected, _ = golden(model, row, knobs, answer)
        for step in range(4):
            ours = out.logits[step][row].numpy()
            assert relative_error(ours, expected[len(PROMPTS[row]) - 1 + step]) < TOLERANCE
    # the check can fail: fused and unfused are far apart
    unfused, _ = golden(model, 0, None)
    fused, _ = golden(model, 0, knobs)
    assert relative_error(fused[-1], unfused[-1]) > 1e-2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_float32_agrees_with_the_reference(attention):
    model = tiny_model(dtype=torch.float32)
    model.set_attn_implementation(attention)
    knobs = {"alpha": 1.0, "beta": 0.2, "layers": [1, 2, 3], "rule": "cascade", "span": "all"}
    with torch.no_grad():
        out = model(**batch_inputs(dtype=torch.float32), fusion={"beta": 0.2, "fusion_layers": "1:4"})
    for row, prompt in enumerate(PROMPTS):
        expected, _ = golden(model, row, knobs)
        assert relative_error(out.logits[row, -len(prompt) :].numpy(), expected) < 1e-5


def test_alpha_and_beta_of_each_row_agree_with_the_reference():
    model = tiny_model()
    alpha, beta = torch.tensor([1.0, 0.9, 1.0, 0.8]), torch.tensor([0.1, 0.0, 0.5, 0.4])
    with torch.no_grad():
        out = model(**batch_inputs(), fusion={"alpha": alpha, "beta": beta, "fusion_layers": 1.0})
    for row, prompt in enumerate(PROMPTS):
        knobs = {"alpha": float(alpha[row]), "beta": float(beta[row]), "layers": range(4)}
        expected, _ = golden(model, row, knobs | {"rule": "cascade", "span": "all"})
        assert relative_error(out.logits[row, -len(prompt) :].numpy(), expected) < 1e-12


def test_fused_scoring_reads_the_answer_as_generate_would():
    model, answer = tiny_model(), [30, 31, 32]
    ids = torch.tensor([[*PROMPTS[0], *answer]])
    labels = torch.tensor([[-100] * len(PROMPTS[0]) + answer])
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=images_of(0), labels=labels, fusion={"beta": 0.3})
    knobs = {"alpha": 1.0, "beta": 0.3, "layers": [2, 3], "rule": "cascade", "span": "all"}
    expected, _ = golden(model, 0, knobs, answer)
    assert relative_error(out.logits[0].numpy(), expected) < 1e-12
    log_p = expected[-4:-1] - np.log(np.exp(expected[-4:-1]).sum(-1, keepdims=True))
    assert out.loss.item() == pytest.approx(-log_p[range(3), answer].mean(), rel=1e-5)
