"""Interventions: nothing is the identity, bit for bit; cutting everything is the blind run; nothing is left behind."""

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from tests.modeling.families import FAMILIES
from tests.modeling.tiny import IMAGE, LAYERS, batch_inputs, row_inputs, tiny_model
from vift_layers.interventions import knock_out, skip, transplant, window

# transformers' eager attention takes its softmax in float32, whatever the model's dtype
DTYPES = {"eager": torch.float32, "sdpa": torch.float64}
EXACT = {torch.float32: 1e-5, torch.float64: 1e-12}


def build(attention: str, **kwargs):
    model = tiny_model(dtype=DTYPES[attention], **kwargs)
    model.set_attn_implementation(attention)
    return model


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request):
    return build(request.param)


@pytest.fixture(scope="module")
def other(model):
    return build(model.config._attn_implementation, seed=5)


def rows(model, row=None):
    return batch_inputs(dtype=model.dtype) if row is None else row_inputs(row, dtype=model.dtype)


def logits(model, **inputs):
    with torch.no_grad():
        return model(**inputs).logits


def traces(model):
    """All that a hook or a replaced forward could leave on any module."""
    return [
        (
            name,
            len(m._forward_hooks),
            len(m._forward_pre_hooks),
            sorted(k for k in vars(m) if k in ("forward", "_transplants")),
        )
        for name, m in model.named_modules()
    ]


def test_nothing_is_the_identity_bit_for_bit(model):
    inputs = rows(model)
    plain, answer = logits(model, **inputs), model.generate(**inputs, max_new_tokens=4, fusion=False)
    before = traces(model)
    for ways in (
        knock_out(model, []),
        skip(model, range(0)),
        skip(model, [], "image"),
        transplant(model, model, "0:4"),
    ):
        with ways:
            assert torch.equal(logits(model, **inputs), plain)
    with knock_out(model, "0:0"), transplant(model, model, "~1:2"):
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, fusion=False), answer)
    text = rows(model, 2)  # no image: nothing to cut or to skip
    plain = logits(model, **text)
    with knock_out(model, "0:4"), skip(model, "0:4", "image"):
        assert torch.equal(logits(model, **text), plain)
    assert traces(model) == before


def test_an_equal_donor_changes_no_bit(model):
    twin = build(model.config._attn_implementation)
    with transplant(model, twin, range(LAYERS)):
        assert torch.equal(logits(model, **rows(model)), logits(model, fusion=False, **rows(model)))


@pytest.mark.parametrize("row", [0, 1, 3])
def test_cutting_every_edge_is_the_blind_run_at_the_same_positions(model, row):
    inputs = rows(model, row)
    text = inputs["input_ids"][0] != IMAGE
    positions = torch.arange(len(text))[text][None]
    blind = logits(model, input_ids=inputs["input_ids"][:, text], position_ids=positions)
    with knock_out(model, range(LAYERS)):
        cut = logits(model, **inputs)[:, text]
    assert torch.allclose(cut, blind, rtol=0, atol=EXACT[model.dtype] * float(blind.abs().max()))
    assert not torch.allclose(logits(model, **inputs)[:, text][:, -1], blind[:, -1], rtol=1e-3)


def test_cutting_every_edge_ignores_the_picture_while_it_answers(model):
    inputs = rows(model)
    other = inputs | {"pixel_values": inputs["pixel_values"].flip(0)}
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "fusion": False, "suppress_tokens": [IMAGE]}
    answers = []
    for one in (inputs, other):
        with knock_out(model, range(LAYERS)):
            answers.append(model.generate(**one, **options))
    assert torch.equal(*answers)
    assert not torch.equal(*(model.generate(**one, **options) for one in (inputs, other)))
    # cache off reads the same
    with knock_out(model, range(LAYERS)):
        again = model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(again, answers[0])


def test_a_window_leaves_earlier_layers_as_they_were(model):
    inputs = rows(model, 0)
    with torch.no_grad():
        plain = model(**inputs, output_hidden_states=True).hidden_states
        with knock_out(model, [2]):
            cut = model(**inputs, output_hidden_states=True).hidden_states
    assert all(torch.equal(plain[i], cut[i]) for i in range(3)) and not torch.equal(plain[3], cut[3])
    image = inputs["input_ids"][0] == IMAGE
    assert torch.allclose(
        plain[3][0, image], cut[3][0, image], atol=EXACT[model.dtype]
    )  # the image's own reading is not cut


def test_skipping_is_where_it_says(model):
    inputs = rows(model, 1)
    image = inputs["input_ids"][0] == IMAGE
    with torch.no_grad():
        plain = model(**inputs, output_hidden_states=True).hidden_states
        for tokens, skipped in (("all", image | ~image), ("image", image), ("text", ~image)):
            with skip(model, [1], tokens):
                states = model(**inputs, output_hidden_states=True).hidden_states
            assert torch.equal(states[1], plain[1])
            assert torch.equal(states[2][0, skipped], plain[1][0, skipped])
            assert torch.equal(states[2][0, ~skipped], plain[2][0, ~skipped])


def test_a_transplant_has_the_donors_weights(model, other):
    inputs, weights = rows(model), model.state_dict()
    with transplant(model, other, "1:3"):
        results = logits(model, **inputs)
    mixed = build(model.config._attn_implementation)
    state = {n: other.state_dict()[n] if ".layers.1." in n or ".layers.2." in n else p for n, p in weights.items()}
    state |= {n: p for n, p in weights.items() if "vision_tower" in n}
    mixed.load_state_dict(state)
    assert torch.equal(results, logits(mixed, **inputs))
    assert not torch.equal(results, logits(model, **inputs))


def test_all_layers_skipped_with_fusion_writes_the_text_run(model):
    """Hooks of fusion come after: what it writes at a layer's input is not skipped away."""
    inputs = rows(model, 0)
    with skip(model, [0]):
        fused = model.generate(**inputs, fusion=True, alpha=0.0, beta=1.0, fusion_layers="1:2", max_new_tokens=3)
    assert fused.shape[1] > inputs["input_ids"].shape[1]


def test_threads_do_not_mix_and_an_exception_leaves_nothing(model, other):
    inputs = rows(model)
    logits(model, **inputs)
    before = traces(model)
    ways = {
        "plain": lambda: skip(model, []),
        "cut": lambda: knock_out(model, range(LAYERS)),
        "skip": lambda: skip(model, [1, 2]),
        "donor": lambda: transplant(model, other, [2]),
    }

    def run(way):
        with ways[way]():
            return logits(model, **inputs)

    alone = {way: run(way) for way in ways}
    assert len({str(value[0, -1, :4].tolist()) for value in alone.values()}) == 4
    wrong = []

    def loop(way):
        wrong.extend(way for _ in range(12) if not torch.equal(run(way), alone[way]))

    threads = [threading.Thread(target=loop, args=(way,)) for way in ways for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong
    for way in ways:
        with pytest.raises(RuntimeError), ways[way]():
            raise RuntimeError
    assert traces(model) == before


FEW = [f for f in FAMILIES if f.name in ("Llava", "LlavaOnevision", "Qwen2_5_VL", "SmolVLM", "Gemma3", "InternVL")]


@pytest.mark.parametrize("family", FEW, ids=lambda family: family.name)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_other_families_ignore_the_picture_when_every_edge_is_cut(family, attention):
    dtype = DTYPES[attention]
    model = family.model(dtype=dtype)
    model.set_attn_implementation(attention)
    inputs = family.batch(model, dtype=dtype)
    other = inputs | {"pixel_values": inputs["pixel_values"].flip(-1) * 0.5}
    text = (inputs["input_ids"] != IMAGE) & inputs["attention_mask"].bool()
    plain = [logits(model, **one)[text] for one in (inputs, other)]
    with knock_out(model, "0:4"):
        cut = [logits(model, **one)[text] for one in (inputs, other)]
    scale = float(cut[0].abs().max())
    assert (cut[0] - cut[1]).abs().max() <= 10 * EXACT[dtype] * scale < (plain[0] - plain[1]).abs().max()
    with skip(model, "0:4"), knock_out(model, []), transplant(model, model, "0:4"):
        skipped = logits(model, **inputs)
    assert not torch.allclose(skipped[text], plain[0], atol=1e-3)


def test_bad_arguments_are_named(model, other):
    with pytest.raises(ValueError, match=r"layers=\[4\] reaches outside layers 0 to 3"), knock_out(model, [4]):
        pass
    with pytest.raises(ValueError, match="tokens='video' must be one of all, image, text"), skip(model, [1], "video"):
        pass
    with pytest.raises(ValueError, match="'first:stop'"), skip(model, "x"):
        pass
    deep = tiny_model(text_config={"num_hidden_layers": 5})
    with pytest.raises(ValueError, match="donor has 5 layers, model has 4"), transplant(model, deep, [0]):
        pass
    with pytest.raises(ValueError, match="inputs_embeds without input_ids"), knock_out(model, [0]):
        model(inputs_embeds=torch.zeros(1, 3, 32, dtype=model.dtype))
    assert window("~1:3", 4) == (0, 3) and window(":2", 4) == (0, 1)


def test_lmms_eval_answers_under_an_intervention(tiny_checkpoint, monkeypatch):
    from vift_eval.engine import Request
    from vift_eval.lmms import model as lmms_model

    entered = []
    for name in ("knock_out", "skip"):
        monkeypatch.setattr(lmms_model.interventions, name, recorded(name, entered))
    lm = lmms_model.VIFT.create_from_arg_string(
        f"pretrained={tiny_checkpoint},knock_out=1:3,skip=~1:3,skip_tokens=image"
    )
    assert lm.record["interventions"] == {"knock_out": "1:3", "skip": "~1:3", "skip_tokens": "image"}
    entered.clear()  # they were tried once, so that a bad window is refused at the start

    def answer(settings, chosen):
        assert entered == ["in knock_out 1:3", "in skip ~1:3 image"]
        return ["x"]

    monkeypatch.setattr(lm, "_batches", lambda *args: [(Request(1), [0])])
    assert lm._run([SimpleNamespace(task_name="t", doc_id=0)], [{}], answer, "test") == ["x"]
    assert entered[2:] == ["out skip", "out knock_out"]
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"layers='1:9' reaches outside layers 0 to 3"):
        lmms_model.VIFT.create_from_arg_string(f"pretrained={tiny_checkpoint},knock_out=1:9")


def recorded(name, entered):
    @contextmanager
    def context(model, *arguments):
        entered.append(" ".join(["in", name, *arguments]))
        yield
        entered.append(f"out {name}")

    return context
