"""What is captured: the right tokens on every family, means and last tokens, on disk as in memory, resumed."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.modeling.families import FAMILIES
from vift_eval.layers.pairs import micro_pairs
from vift_layers import capture as c
from vift_layers.band import choose_band, overlap_profile


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint):
    from vift_eval.models import load_model

    return load_model(str(tiny_checkpoint))


@pytest.fixture(scope="module")
def pairs():
    return micro_pairs(24)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_modality_of_each_token_is_found(family):
    """The truth is what the model does: the tokens whose input embedding changes with the picture are the image's."""
    model = family.model(dtype=torch.float32)
    inputs = family.batch(model, dtype=torch.float32)
    other = inputs | {"pixel_values": inputs["pixel_values"].flip(-1) * 0.5}
    seen = []
    with torch.no_grad(), c.recording(model, lambda layer, states: seen.append((layer, states.clone()))):
        for one in (inputs, other):
            model(**one)
    first, second = (states for layer, states in seen if layer == 0)
    changed = (first != second).any(dim=-1)
    modality = c.token_modality(model.config, inputs["input_ids"], inputs["attention_mask"])
    # LLaVA-NeXT and OneVision end each row of an image with the same learned vector, at a placeholder of its own
    fixed = (modality == c.IMAGE) & ~changed
    newline = getattr(model.model, "image_newline", None)
    assert not (changed & (modality != c.IMAGE)).any() and changed.any()
    assert not fixed.any() or torch.equal(first[fixed], newline.expand(int(fixed.sum()), -1))
    assert torch.equal(modality == c.PAD, inputs["attention_mask"] == 0)
    text = modality == c.TEXT
    words = model.get_input_embeddings()(inputs["input_ids"])[text]
    scale = first[text].norm() / words.norm()  # Gemma scales its embeddings
    assert torch.allclose(first[text], scale * words, rtol=1e-3, atol=1e-5)
    assert [layer for layer, _ in seen] == 2 * list(range(model.config.get_text_config().num_hidden_layers + 1))
    assert not any(module._forward_hooks for module in model.get_decoder().layers[-1:])


def test_vectors_are_the_last_token_and_the_mean_of_the_modality(tiny, pairs):
    model, processor = tiny
    results = c.capture(model, processor, pairs, batch_size=5)
    assert results.forms == ("image", "text", "control") and results.num_layers == 4
    token = processor.image_token
    for number in (0, 7, 23):
        pair = pairs[number]
        for form, words in (("image", pair["query"]), ("text", f"{pair['caption']} {pair['query']}")):
            prompt = (
                c.render(processor, words) if form == "image" else c.render(processor, pair["query"], pair["caption"])
            )
            inputs = processor(text=prompt, images=pair["image"] if form == "image" else None, return_tensors="pt")
            with torch.no_grad():
                states = model(**inputs, output_hidden_states=True).hidden_states
            ids = inputs["input_ids"][0]
            if form == "image":
                kept = ids == processor.tokenizer.convert_tokens_to_ids(token)
                assert kept.sum() == 9
            else:  # the caption's words, between what the template writes around them
                caption = processor.tokenizer(pair["caption"], add_special_tokens=False)["input_ids"]
                start = next(i for i in range(len(ids)) if ids[i : i + len(caption)].tolist() == caption)
                kept = torch.zeros_like(ids, dtype=torch.bool)
                kept[start : start + len(caption)] = True
            for layer in range(4):  # transformers' last one is after the final norm
                for pooling, expected in (
                    ("last", states[layer][0, -1]),
                    ("mean", states[layer][0, kept].mean(dim=0)),
                ):
                    assert np.allclose(results.states(form, pooling, layer)[number], expected, atol=2e-5)


def test_the_last_representation_is_before_the_final_norm(tiny, pairs):
    model, processor = tiny
    results = c.capture(model, processor, pairs[:3])
    inputs, _ = c.model_inputs(model, processor, pairs[:1], "image")
    with torch.no_grad():
        normed = model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1]
        own = model.get_decoder().norm(torch.tensor(results.states("image", "last", 4)[0]))
    assert torch.allclose(own, normed, atol=1e-4)


def test_the_control_has_another_caption_of_the_same_query():
    pairs = [{"query": "ab"[number % 2], "caption": str(number)} for number in range(9)] + [{"query": "c"}]
    partner = c.controls(pairs)
    assert all(partner[i] != i for i in range(10))
    assert all(pairs[partner[i]]["query"] == pairs[i]["query"] for i in range(9))


def test_a_killed_capture_goes_on_and_equals_one_that_never_was(tiny, pairs, tiny_checkpoint, tmp_path):
    model, processor = tiny
    whole = c.capture(model, processor, pairs, batch_size=4)
    code = (
        "import sys, time\nfrom vift_eval.layers.pairs import micro_pairs\n"
        "from vift_eval.models import load_model\n"
        "from vift_layers.capture import capture\n"
        f"capture(*load_model({str(tiny_checkpoint)!r}), micro_pairs(24), {str(tmp_path / 'c')!r}, batch_size=4, "
        "progress=lambda done: (print(done, flush=True), time.sleep(60 if done == 12 else 0)))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.strip() == "12":
            break
    process.kill()
    process.wait()
    process.stdout.close()
    assert json.loads((tmp_path / "c" / c.STATE).read_text())["done"] == 12
    done = []
    resumed = c.capture(model, processor, pairs, tmp_path / "c", batch_size=4, progress=done.append)
    assert done == [16, 20, 24]
    for form in whole.forms:
        for pooling in c.POOLINGS:
            for layer in range(5):
                assert (resumed.states(form, pooling, layer) == whole.states(form, pooling, layer)).all()
    assert c.capture(model, processor, pairs, tmp_path / "c", batch_size=4, progress=done.append) and len(done) == 3
    with pytest.raises(ValueError, match="holds the capture of another model or other rows"):
        c.capture(model, processor, pairs[:20], tmp_path / "c", batch_size=4)
    scratch = whole.folder
    assert scratch.is_dir() and scratch != resumed.folder
    del whole
    assert not scratch.exists(), "a capture without a folder leaves no files"


def test_batches_do_not_matter(tiny, pairs):
    model, processor = tiny
    one, many = (c.capture(model, processor, pairs[:8], batch_size=size) for size in (1, 8))
    for form in one.forms:
        for pooling in c.POOLINGS:
            for layer in range(5):
                assert np.allclose(one.states(form, pooling, layer), many.states(form, pooling, layer), atol=1e-4)


def test_a_copied_picture_form_gives_full_overlap_and_the_first_layer_has_none(tiny):
    pairs = [pair | {"query": "what is in the picture ?"} for pair in micro_pairs(60)]
    results = c.capture(*tiny, pairs, batch_size=20)
    assert results.forms == ("image", "text")  # one query: chance is known without a control
    np.save(results.folder / "text_last.npy", np.load(results.folder / "image_last.npy") * 3 + 1)
    profile = overlap_profile(results, k=6)
    assert np.isnan(profile[0])  # before the first layer all last tokens are the same
    assert np.allclose(profile[1:], 1 - 6 / 59, atol=0.01)


def test_bad_rows_are_named(tiny, pairs):
    with pytest.raises(ValueError, match="row 2 has no caption"):
        c.capture(*tiny, [*pairs[:2], pairs[2] | {"caption": ""}])
    with pytest.raises(ValueError, match="39 pairs of image and caption are too few"):
        choose_band(*tiny, (pairs * 2)[:39])


def test_the_models_that_can_not_be_captured_are_refused():
    class Config:
        model_type, image_token_id = "bert", None

    with pytest.raises(ValueError, match="model_type='bert' has no image placeholder"):
        c.image_token_ids(Config)
