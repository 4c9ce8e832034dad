"""`generate()` with arguments drawn at random: right, or a ValueError that names its cause; nothing stays behind.

Seeded: the same calls on every machine. More of them with VIFT_FUZZ_ROUNDS=5000.
"""

import os
import random

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from modeling_vift import OVERRIDES, TextStreamCache
from tests.modeling.tiny import IMAGE, batch_inputs, row_inputs, tiny_model

ROUNDS = int(os.environ.get("VIFT_FUZZ_ROUNDS", "250"))
GREEDY = {"max_new_tokens": 2, "do_sample": False, "suppress_tokens": [IMAGE]}
NUMBERS = [
    0,
    1,
    -1,
    0.0,
    0.1,
    1.0,
    2.5,
    -3.0,
    1e9,
    float("nan"),
    float("inf"),
    True,
    None,
    np.float32(0.2),
    np.int64(1),
]
NUMBERS += [
    torch.tensor(0.3),
    torch.tensor([0.1, 0.2, 0.3, 0.4]),
    np.array([0.1, 0.2]),
    [0.1] * 4,
    (0.5,),
    [],
    range(4),
]
ODD = [
    "",
    "1:3",
    "3:1",
    ":",
    "a:b",
    "top",
    "cascade",
    "reference",
    b"1:2",
    {},
    {"a": 1},
    [[1]],
    ["x"],
    object(),
    set(),
    1j,
]
LAYERS = [
    0.5,
    1.0,
    0.01,
    [0],
    [1, 2],
    [3, 1],
    [0, 1, 2, 3],
    [4],
    [-1],
    range(2),
    (1,),
    np.arange(4),
    torch.tensor([2]),
]
FUSIONS = [
    None,
    True,
    False,
    "reasoning",
    "instruction",
    "none",
    {"beta": 0.2},
    {"alpha": 0.5, "fusion_rule": "additive"},
]
FUSIONS += [{"x": 1}, 1, 0.5, [], ["reasoning"]]
NAMES = {
    "fusion_rule": ["cascade", "additive", "independent"],
    "fusion_span": ["all", "after_image", "reference"],
    "fusion_norm": [True, False],
    "fusion_answer": [True, False],
    "fusion_skip_first": [True, False],
}


def draw(rng: random.Random, model) -> dict:
    """Keywords of one call: mostly plausible ones, now and then anything."""
    call = {}
    for name in rng.sample(
        OVERRIDES + ("fusion_alpha", "fusion_beta", "fusion_dose", "fusion_odd"), rng.randint(0, 4)
    ):
        anything = NUMBERS + ODD + LAYERS
        plausible = LAYERS if name == "fusion_layers" else NAMES.get(name, NUMBERS)
        call[name] = rng.choice(anything if rng.random() < 0.3 else plausible)
    if rng.random() < 0.5:
        call["fusion"] = rng.choice(FUSIONS)
    if rng.random() < 0.2:
        prompt = {name: value for name, value in batch_inputs().items() if name != "pixel_values"}
        streams = [
            TextStreamCache(),
            model.text_run(**prompt, fusion_layers=1.0),
            model.text_run(**prompt),
            1,
            "x",
            {},
        ]
        call["text_stream"] = rng.choice(streams)
    ways = [{}, {}, {}, {"num_beams": 2}, {"use_cache": False}, {"prefill_chunk_size": 3}, {"guidance_scale": 1.5}]
    ways += [{"num_return_sequences": 2, "num_beams": 2}, {"prompt_lookup_num_tokens": 2}]
    ways += [{"past_key_values": DynamicCache()}, {"cache_implementation": "static", "disable_compile": True}]
    return call | rng.choice(ways)


def names_it(error: ValueError, call: dict) -> bool:
    """Whether the message holds the name of an argument of the call."""
    return any(name in str(error) or name.removeprefix("fusion_") in str(error) for name in call)


@pytest.mark.parametrize("seed", range(4))
def test_a_call_is_right_or_names_what_is_wrong_and_leaves_nothing_behind(seed):
    rng, model = random.Random(seed), tiny_model()
    expected = {rows: model.generate(**inputs, **GREEDY, fusion=False) for rows, inputs in inputs_of().items()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    config, kinds = model.config.to_dict(), {"fused": 0, "refused": 0}
    for _ in range(ROUNDS // 4):
        call, rows = draw(rng, model), rng.choice(list(expected))
        inputs = inputs_of()[rows]
        lookup = call.get("prompt_lookup_num_tokens") and rows == "batch"  # transformers takes one row
        try:
            answer = model.generate(**inputs, **GREEDY, **({} if lookup else call))
            assert answer.shape[1] > inputs["input_ids"].shape[1]
            kinds["fused"] += 1
        except ValueError as error:
            assert names_it(error, call), (call, error)
            kinds["refused"] += 1
        assert torch.equal(model.generate(**inputs, **GREEDY, fusion=False), expected[rows]), call
    assert min(kinds.values()) > ROUNDS // 20, kinds
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert model.config.to_dict() == config


def inputs_of() -> dict:
    return {"batch": batch_inputs(), "one": row_inputs(0), "text": row_inputs(2)}
