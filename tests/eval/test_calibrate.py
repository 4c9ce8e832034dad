"""calibrate(): the choice is valid, the best of what was tried, kept in the config; bad input is refused by name."""

import json

import pytest

from modeling_vift import resolve_fusion
from tests.status import status_of
from vift_eval import calibrate as module
from vift_eval.answers.conditions import read_back
from vift_eval.answers.generate import prompts_of
from vift_eval.calibrate import calibrate
from vift_eval.calibrate_command import main
from vift_eval.engine import Engine
from vift_eval.models import BUNDLED, load_model
from vift_microworld import language, visual_questions

OPTIONS = {
    "caption_query": language.DETAILED_QUERIES[0],
    "read_back": read_back,
    "caption_tokens": 48,
    "answer_tokens": 4,
    "doses": (0.5, 2.0),
    "bands": ("0:4", "4:8"),
    "alphas": (0.9,),
}


@pytest.fixture(scope="module")
def prompts():
    rows = visual_questions(8, seed=7, split="validation")
    return [row[0] for row in rows["images"]], list(rows["question"])


@pytest.fixture(scope="module")
def calibrated(prompts):
    model, processor = load_model(str(BUNDLED))
    return model, processor, calibrate(model, processor, *prompts, **OPTIONS)


def test_the_choice_is_the_best_of_the_table_and_beats_no_fusion(calibrated):
    _, _, found = calibrated
    assert len(found["table"]) == 5  # two bands x two doses, and another alpha
    best = max(found["table"], key=lambda row: row["score"])
    assert found["score"] == best["score"] > found["unfused_score"]
    assert (found["fusion_layers"], found["fusion_dose"]) == (best["fusion_layers"], best["dose"])
    assert found["fusion_alpha"] == best["alpha"]


def test_the_sink_is_the_first_tokens_length_over_the_others(prompts):
    model, processor = load_model(str(BUNDLED))
    engine, rows = Engine(model, processor), [{"question": "where is it?", "images": prompts[0][:1]}]
    inputs = engine.inputs(prompts_of(engine, rows))
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    embedding = model.get_input_embeddings().weight.detach()
    text = ids[0][mask[0].bool() & (ids[0] != model.config.image_token_id)]
    lengths = embedding[text].norm(dim=-1)
    expected = lengths[0] / lengths[1:].median()
    assert module.sink_of(model, ids, mask, [0]) == pytest.approx(float(expected), rel=1e-5)


def test_without_the_first_token_is_tried_where_it_is_a_sink(prompts, monkeypatch):
    monkeypatch.setattr(module, "SINK", 0.0)
    model, processor = load_model(str(BUNDLED))
    few = [part[:3] for part in prompts]
    found = calibrate(model, processor, *few, **OPTIONS | {"bands": ("4:8",), "doses": (2.0,), "alphas": ()})
    with_first, without = found["table"]
    assert without == with_first | {"fusion_skip_first": True, "score": without["score"]}
    assert without["score"] != with_first["score"]
    assert found["fusion_skip_first"] is model.config.fusion_skip_first
    assert found["fusion_skip_first"] == (without["score"] > max(with_first["score"], found["unfused_score"]))


def test_the_score_is_the_likelihood_of_the_answer_from_the_own_caption(calibrated, prompts):
    """Recomputed row by row, from the answer's words, without padding."""
    import torch

    model, processor, found = calibrated
    row = found["table"][1]
    likelihoods = []
    for picture, question, answer in zip(*prompts, found["answers"]):
        turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        prompt = processor.apply_chat_template(turn, add_generation_prompt=True)
        inputs = processor(text=prompt, images=picture, return_tensors="pt")
        ids = processor.tokenizer(answer)["input_ids"] + [processor.tokenizer.eos_token_id]
        length = inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        labels = inputs["input_ids"].clone()
        labels[:, :length] = -100
        fusion = {"fusion_layers": row["fusion_layers"], "dose": row["dose"], "alpha": row["alpha"]}
        with torch.no_grad():
            logits = model(**inputs, labels=labels, fusion=fusion).logits[0, length - 1 : -1]
        likelihoods.append(logits.log_softmax(dim=-1)[torch.arange(len(ids)), ids].mean())
    assert float(torch.stack(likelihoods).mean()) == pytest.approx(row["score"], abs=1e-4)


def test_the_choice_is_in_the_config_and_survives_saving(calibrated, tmp_path):
    model, _, found = calibrated
    model.config.save_pretrained(tmp_path)
    saved = type(model.config).from_pretrained(tmp_path)
    for config in (model.config, saved):
        settings = resolve_fusion(config)
        first, stop = map(int, found["fusion_layers"].split(":"))
        assert settings.layers == tuple(range(first, stop)) and settings.alpha == found["fusion_alpha"]
        assert settings.beta * len(settings.layers) == pytest.approx(found["fusion_dose"])


def test_where_nothing_beats_no_fusion_it_is_switched_off(prompts):
    model, processor = load_model(str(BUNDLED))
    harmful = OPTIONS | {"bands": ("6:8",), "doses": (-4.0,), "alphas": ()}
    found = calibrate(model, processor, *prompts, **harmful)
    assert found["fusion_dose"] == 0.0 and found["score"] == found["unfused_score"]
    assert model.config.fusion_enabled is False


def test_store_false_leaves_the_config_alone_and_a_model_without_fusion_is_calibrated(prompts):
    model, processor = load_model(str(BUNDLED))
    model.config.fusion_enabled = False
    before = model.config.to_dict()
    few = [values[:2] for values in prompts]
    found = calibrate(model, processor, *few, **OPTIONS, store=False)
    assert model.config.to_dict() == before
    assert all(row["score"] != found["unfused_score"] for row in found["table"])


def test_bad_input_is_refused_by_name(calibrated, prompts):
    model, processor, _ = calibrated
    images, questions = prompts
    with pytest.raises(ValueError, match="7 images, 8 questions"):
        calibrate(model, processor, images[:-1], questions, **OPTIONS)
    with pytest.raises(ValueError, match="0 images, 0 questions"):
        calibrate(model, processor, [], [], **OPTIONS)
    with pytest.raises(ValueError, match="'4:12' reaches layer 11"):
        calibrate(model, processor, images, questions, **OPTIONS | {"bands": ("4:12",)})
    with pytest.raises(ValueError, match="hold no candidate"):
        calibrate(model, processor, images, questions, **OPTIONS | {"doses": (99.0,)})


# --- the command ------------------------------------------------------------------------------------


def test_the_command_writes_a_model_with_the_choice(tiny_checkpoint, tmp_path, capsys):
    rows = visual_questions(4, seed=7, split="validation")
    lines = []
    for i, row in enumerate(rows):
        row["images"][0].save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "question": row["question"]}))
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    arguments = ["--model", str(tiny_checkpoint), "--prompts", str(tmp_path / "prompts.jsonl"), "--n", "3"]
    assert main([*arguments, "--output", str(tmp_path / "new")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("3 prompts") and "chosen: " in said
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert (f"fusion_dose {config['fusion_dose']}" in said) == config["fusion_enabled"]
    assert (tmp_path / "new" / "generation_vift.py").is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--n", "0"], "--n=0 must be at least 1"),
        (["--prompts", "nowhere.jsonl"], "--prompts=nowhere.jsonl can't be read"),
        (["--prompts", "bad.jsonl"], "line 1: not"),
        (["--output", "."], "exists and is not an empty folder"),
    ],
)
def test_a_bad_command_is_one_line_and_status_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"picture": "a.png"}\n')
    assert status_of(main, arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
