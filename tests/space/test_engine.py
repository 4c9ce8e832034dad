"""The engine's answers are those of `generate()`; what fusion moves is what the formula says."""

import sys
import time
import types
from importlib import util

import matplotlib.cbook
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_vift import resolve_fusion
from space.app import presets
from space.endpoints import Endpoints
from space.engine import KNOWN, UNFUSED, Engine, locate
from space.worlds import Drawings, scene_picture
from vift_eval.known import Known, best_limit
from vift_eval.models import BUNDLED
from vift_hub.cli import UserError
from vift_microworld import render, sample_scenes, visual_questions
from vift_microworld.data import user_turn

BAND = {"fusion_layers": "2:5"}


@pytest.fixture(scope="module")
def engine():
    return Engine(str(BUNDLED))


def last(iterator):
    *_, final = iterator
    return final


def ask(text):
    return [{"role": "user", "content": text}]


def alone(engine, row, **fusion):
    """The answer of one plain `generate()` call, as README shows it."""
    turns = [user_turn(row["question"], image=True)]
    turns[0]["content"][0]["image"] = row["images"][0]
    inputs = engine.processor.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    output = engine.model.generate(**inputs, do_sample=False, max_new_tokens=40, **fusion)
    return engine.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("rule", ["cascade", "additive", "independent"])
def test_both_answers_are_those_of_generate(engine, rule):
    fusion = {"fusion_layers": "0:4", "fusion_rule": rule, "fusion_answer": rule == "cascade"}
    for row in visual_questions(3, seed=3):
        pair = last(engine.answers(ask(row["question"]), row["images"][0], [UNFUSED, (0.9, 0.4)], fusion, 40))
        assert pair == [alone(engine, row, fusion=False), alone(engine, row, alpha=0.9, beta=0.4, **fusion)]


def test_answers_grow(engine):
    row = visual_questions(1)[0]
    steps = list(engine.answers(ask("describe the picture in detail ."), row["images"][0], [UNFUSED], {}, 40))
    assert len(steps) > 3
    assert all(after[0].startswith(before[0]) for before, after in zip(steps, steps[1:]))


def test_an_enlarged_scene_has_the_pixels_of_the_scene(engine):
    scene = sample_scenes(1, 0, "test")[0]
    small, large = (
        engine.processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
        for image in (render([scene])[0], scene_picture(scene))
    )
    assert torch.equal(small, large)


def test_a_visitor_who_leaves_stops_generate(engine):
    row, steps = visual_questions(1)[0], []
    hook = engine.model.register_forward_pre_hook(lambda *_: (steps.append(1), time.sleep(0.05))[0])
    try:
        running = engine.answers(ask("describe the picture in detail ."), row["images"][0], [UNFUSED], {}, 64)
        next(running)
        running.close()
        time.sleep(0.3)  # the step that was under way
        stopped_at = len(steps)
        time.sleep(0.3)
        assert len(steps) == stopped_at < 15
    finally:
        hook.remove()


def test_an_error_inside_generate_reaches_the_caller(engine):
    def fail(*_):
        raise RuntimeError("broken")

    hook = engine.model.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="broken"):
            list(engine.answers(ask("what is there ?"), visual_questions(1)[0]["images"][0], [UNFUSED], {}, 8))
    finally:
        hook.remove()


def test_without_beta_nothing_moves_and_with_beta_as_much_as_the_formula_says(engine):
    row = visual_questions(1)[0]
    still = engine.movement(ask(row["question"]), row["images"][0], {"alpha": 1.0, "beta": 0.0} | BAND)
    assert max(map(max, still["moved"])) == 0
    found = engine.movement(ask(row["question"]), row["images"][0], {"alpha": 1.0, "beta": 0.3} | BAND)
    tokens, moved = found["tokens"], torch.tensor(found["moved"])
    assert moved.shape == (engine.num_layers + 1, len(tokens)) and len(found["layers"]) == engine.num_layers + 1
    image = tokens.index("image (9 tokens)")
    assert moved[:2].max() == 0 and moved[2].max() > 0  # below the band, and its first layer
    assert moved[2, image] == 0
    # at the first fused layer h' - h = beta h(q)
    inputs = engine.prompt(ask(row["question"]), row["images"][0], 1, 1)
    with torch.inference_mode():
        plain = engine.model(**inputs, output_hidden_states=True).hidden_states[2][0]
        text = engine.model.text_run(inputs["input_ids"], fusion_layers="2:3")
    expected = 0.3 * text.states[2].norm(dim=-1) / plain[text.columns].norm(dim=-1)
    others = [number for number in range(len(tokens)) if number != image]
    torch.testing.assert_close(moved[2, others], expected)


def test_every_preset_is_the_configs(engine):
    named = presets(engine.config)
    alpha, beta, first, stop, rule, span = next(iter(named.values()))
    default = resolve_fusion(engine.config, True)
    assert (alpha, rule, span) == (default.alpha, default.rule, default.span)
    assert beta == pytest.approx(default.beta, abs=1e-4) and tuple(range(first, stop)) == default.layers
    assert set(engine.config.fusion_presets) < set(named)
    half = named["top half of the layers (the paper's)"]
    assert half[2:4] == [engine.num_layers // 2, engine.num_layers]


def test_the_strip_begins_unfused_for_every_alpha(engine):
    row = visual_questions(1, seed=5)[0]
    _, points = Endpoints(engine).sweep(row["images"][0], row["question"], 0.0, 1.0, 1, 2, "cascade", "all", 40)
    at = {point["beta"]: point for point in points}
    assert [at[beta]["alpha"] for beta in (0, 0.5, 1, 2)] == [1, 0.5, 0, 0]
    assert at[0]["answer"] == alone(engine, row, fusion=False)
    assert at[0.5]["answer"] == alone(engine, row, alpha=0.5, beta=0.5, fusion_layers="1:2")
    assert at[1]["answer"] == alone(engine, row, alpha=0.0, beta=1.0, fusion_layers="1:2")


def test_the_strip_begins_unfused_and_contains_each_answer_alone(engine):
    row = visual_questions(1, seed=5)[0]
    endpoints = Endpoints(engine)
    html, points = endpoints.sweep(row["images"][0], row["question"], 1.0, 0.5, 0, 4, "cascade", "all", 40)
    assert points[0]["beta"] == 0 and points[0]["answer"] == alone(engine, row, fusion=False)
    assert points[-1]["beta"] == endpoints.beta_top
    for point in points[1::5]:
        assert point["answer"] == alone(engine, row, alpha=1.0, beta=point["beta"], fusion_layers="0:4")
    assert row["question"] in html


def test_conversations_are_held_to_turns_and_tokens(engine):
    def refused(turns, word, tokens=8):
        with pytest.raises(ValueError, match=word):
            next(engine.answers(turns, None, [UNFUSED], {}, tokens))

    reply = {"role": "assistant", "content": "4"}
    refused([reply], "turn 1 must be the user's")
    refused([*ask("hello"), *ask("again")], "turn 2 must be the assistant's")
    refused([*ask("hello"), {"role": "system", "content": "x"}], "assistant")
    refused([*ask("how many ?"), reply] * 30, "60 turns; at most 41")
    refused([*ask("red , " * 160), reply] * 2 + ask("?"), "this model reads at most 504")
    refused(ask("?"), "answer length 65 must be 1 to 64", tokens=65)


def test_a_hub_model_must_be_pinned_and_a_folder_need_not(tmp_path):
    assert locate(str(tmp_path)) == str(tmp_path)
    for name in ("org/model", "org/model@main", "org/model@1234"):
        with pytest.raises(UserError, match="40 hex"):
            locate(name)


def test_a_picture_of_another_world_is_noticed_and_one_of_this_world_is_not(engine):
    photograph, drawing = Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg")), Drawings().scene(0)[0]
    assert engine.is_strange(photograph.convert("RGB")) and engine.is_strange(drawing)
    assert not any(engine.is_strange(engine.world.scene(seed)[0]) for seed in range(5)) and not engine.is_strange(None)


def test_of_weights_that_were_not_measured_nothing_is_said(tmp_path, engine, monkeypatch):
    assert Known.load(KNOWN, BUNDLED).limit == engine.known.limit
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert Known.load(KNOWN, tmp_path) is None
    monkeypatch.setattr(engine, "known", None)
    assert not engine.is_strange(Drawings().scene(0)[0])


def test_the_limit_is_the_middle_of_the_best():
    assert best_limit(np.array([1.0, 2.0, 9.0]), np.array([3.0, 8.0])) == pytest.approx(2.5)


def test_zerogpu_lends_its_gpu_to_what_runs_the_model(monkeypatch):
    lent = []

    def lend(function):
        lent.append(function.__name__)
        return function

    monkeypatch.setitem(sys.modules, "spaces", types.SimpleNamespace(GPU=lend))
    spec = util.spec_from_file_location("space.engine_on_zerogpu", sys.modules["space.engine"].__file__)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.Engine(str(BUNDLED))
    assert lent == ["answers", "movement", "is_strange"]
