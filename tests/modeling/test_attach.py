"""`attach_fusion` gives every family the fusion of a hand-written float64 reference, and leaves nothing behind."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch

from modeling_vift import VIFTConfig, attach_fusion, detach_fusion
from tests.modeling.decoder_reference import Decoder
from tests.modeling.families import END, FAMILIES, IMAGE, LAYERS, NUM_IMAGES, PAD, START, VIDEO

ROWS = (0, 1, 2, 3)
GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [IMAGE, VIDEO, 1]}
DETAILS = {"output_logits": True, "return_dict_in_generate": True}
STRONG = {"beta": 0.3, "fusion_layers": 1.0}
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
one = next(family for family in FAMILIES if family.name == "Qwen2_5_VL")


class Golden:
    """The reference's answer for each row of a batch."""

    def __init__(self, family, model, inputs):
        self.decoder, self.inputs = Decoder(model), inputs
        features, deepstack = family.features(model, inputs)
        features = [feature.numpy() for feature in features]
        stops = np.cumsum([0, *NUM_IMAGES])
        self.features = [features[a:b] for a, b in zip(stops, stops[1:])]
        tokens = [sum(len(feature) for feature in row) for row in self.features]
        cuts = np.cumsum([0, *tokens])
        self.deepstack = [[layer.numpy()[a:b] for layer in deepstack] for a, b in zip(cuts, cuts[1:])]

    def logits(self, row, answer, fusion):
        """(len(answer), V): what is predicted for each token of the answer."""
        ids, mask = self.inputs["input_ids"][row], self.inputs["attention_mask"][row].bool()
        prompt, answer = ids[mask].tolist(), [int(token) for token in answer]
        given = (prompt, self.features[row], self.deepstack[row], answer, fusion, (START, END))
        return self.decoder.fused(*given)[len(prompt) - 1 : -1]

    def error(self, out, fusion):
        """Largest difference of the logits of a greedy run, relative to the largest logit."""
        width = self.inputs["input_ids"].shape[1]
        ours = torch.stack(out.logits, dim=1).double().numpy()
        theirs = np.stack([self.logits(row, out.sequences[row, width:], fusion) for row in ROWS])
        return np.abs(ours - theirs).max() / np.abs(theirs).max()


CASES = [
    ("cascade", "all", [0, 1, 2, 3]),
    ("cascade", "reference", [2, 3]),
    ("additive", "after_image", [0, 1, 2, 3]),
    ("independent", "all", [1, 3]),
]


@every_family
def test_attached_fusion_agrees_with_the_reference(family):
    """A left-padded batch of 0, 1 and 2 images, every rule and span; dynamic and static cache; beams; detached."""
    model = family.model()
    inputs = family.batch(model)
    golden = Golden(family, model, inputs)
    native = model.generate(**inputs, **GREEDY, **DETAILS)
    assert golden.error(native, None) < 1e-5, "the reference is not this model"
    attach_fusion(model, **(family.attach or {}))
    for rule, span, layers in CASES:
        if span == "reference" and family.name == "Qwen3VL":
            with pytest.raises(ValueError, match="fusion_span='reference'.*DeepStack"):
                model.generate(**inputs, **GREEDY, fusion_span=span)
            continue
        fusion = {"alpha": 0.9, "beta": 0.3, "layers": layers, "rule": rule, "span": span}
        knobs = {"alpha": 0.9, "beta": 0.3, "fusion_layers": layers, "fusion_rule": rule, "fusion_span": span}
        out = model.generate(**inputs, **GREEDY, **DETAILS, **knobs)
        assert golden.error(out, fusion) < 1e-5, (rule, span)
        assert golden.error(out, None) > 1e-3, "the check cannot fail: fused and unfused are the same"

    fusion = {"alpha": 1.0, "beta": 0.3, "layers": range(LAYERS), "rule": "cascade", "span": "all"}
    static = {"cache_implementation": "static", "disable_compile": True}
    assert golden.error(model.generate(**inputs, **GREEDY, **DETAILS, **STRONG, **static), fusion) < 1e-5

    beams = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0, "output_scores": True}
    out = model.generate(**inputs, **(GREEDY | DETAILS), **STRONG, **beams)
    for i, sequence in enumerate(out.sequences):
        answer = sequence[inputs["input_ids"].shape[1] :]
        logits = torch.from_numpy(golden.logits(i // 2, answer, fusion))
        score = logits.log_softmax(-1).gather(1, answer[:, None]).sum()
        assert out.sequences_scores[i].item() == pytest.approx(score.item(), rel=1e-5)


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alpha_one_beta_zero_and_detached_are_the_native_model_bit_for_bit(family, dtype):
    model = family.model(dtype=dtype)
    inputs = family.batch(model, dtype=dtype)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    config, native_class = model.config.to_dict(), type(model)

    def answer(**kwargs):
        out = model.generate(**inputs, **GREEDY, **DETAILS, **kwargs)
        layers = [tensor for layer in out.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return [out.sequences, *out.logits, *layers]

    def hooks():
        return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]

    native = answer()
    before = hooks()  # transformers keeps some of its own
    attach_fusion(model, **(family.attach or {}))
    assert sum(hooks()) == sum(before) + LAYERS + 1
    fused = answer(**STRONG)
    for ours, theirs in zip(answer(alpha=1.0, beta=0.0), native):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(answer(fusion=False), native):
        assert torch.equal(ours, theirs)
    assert not torch.equal(torch.stack(fused[1:5]), torch.stack(native[1:5]))
    assert torch.equal(torch.stack(fused[1:5])[:, 2], torch.stack(native[1:5])[:, 2]), "a row without an image"
    detach_fusion(model)
    for ours, theirs in zip(answer(), native):
        assert torch.equal(ours, theirs)
    assert type(model) is native_class and model.config.to_dict() == config
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert hooks() == before
    assert not {"_fusion_hooks", "fusion_config", "generate"} & set(vars(model))
    with pytest.raises(ValueError, match="beta"):
        model.generate(**inputs, **GREEDY, beta=0.1)


@every_family
def test_a_fused_answers_tokens_are_the_last_of_longer_prompts(family):
    model = family.model()
    inputs = family.batch(model)
    attach_fusion(model, **(family.attach or {}))
    width = inputs["input_ids"].shape[1]
    out = model.generate(**inputs, **GREEDY, **DETAILS, **STRONG, fusion_answer=True)
    prompt_only = model.generate(**inputs, **GREEDY, **DETAILS, **STRONG)
    assert not torch.allclose(prompt_only.logits[1], out.logits[1])
    for step in range(1, len(out.logits)):
        tokens = {"input_ids": out.sequences[:, : width + step]}
        for name, value in inputs.items():  # masks and types of tokens
            if name != "input_ids" and value.shape == inputs["input_ids"].shape:
                tokens[name] = torch.cat([value, torch.full((len(value), step), int("mask" in name))], dim=1)
        longer = model.generate(**inputs | tokens, **GREEDY | {"max_new_tokens": 1}, **DETAILS, **STRONG)
        torch.testing.assert_close(longer.logits[0], out.logits[step], rtol=1e-4, atol=1e-5)


def test_a_video_leaves_the_text_stream_like_an_image():
    model = one.model()
    inputs = one.batch(model, rows=(0,))
    ids = torch.where(inputs["input_ids"] == IMAGE, VIDEO, inputs["input_ids"])
    pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]
    video = {
        "input_ids": ids,
        "attention_mask": inputs["attention_mask"],
        "pixel_values_videos": pixels,
        "video_grid_thw": grid,
        "mm_token_type_ids": 2 * (ids == VIDEO).int(),
    }
    golden = Golden(one, model, one.batch(model))  # one frame has the features and positions of an image
    attach_fusion(model)
    out = model.generate(**video, **GREEDY, **DETAILS, **STRONG)
    fusion = {"alpha": 1.0, "beta": 0.3, "layers": range(LAYERS), "rule": "cascade", "span": "all"}
    theirs = golden.logits(0, out.sequences[0, ids.shape[1] :], fusion)
    ours = torch.stack(out.logits, dim=1)[0].double().numpy()
    assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 1e-5


def test_defaults_given_when_attaching_are_used_and_can_be_changed():
    model = one.model()
    inputs = one.batch(model)
    attach_fusion(model, fusion_beta=0.3, fusion_layers=1.0)
    spelt = model.generate(**inputs, **GREEDY, **DETAILS, beta=0.3, fusion_layers=1.0)
    default = model.generate(**inputs, **GREEDY, **DETAILS)
    assert torch.equal(torch.stack(default.logits), torch.stack(spelt.logits))
    attach_fusion(model, fusion_enabled=False)
    off = model.generate(**inputs, **GREEDY, **DETAILS)
    detach_fusion(model)
    native = model.generate(**inputs, **GREEDY, **DETAILS)
    assert torch.equal(torch.stack(off.logits), torch.stack(native.logits))
    assert not torch.equal(torch.stack(default.logits), torch.stack(native.logits))


def test_an_attached_model_saves_what_the_native_model_saves(tmp_path):
    model = one.model(dtype=torch.float32)
    model.save_pretrained(tmp_path / "native")
    attach_fusion(model).save_pretrained(tmp_path / "attached")
    names = sorted(file.name for file in (tmp_path / "native").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "attached").iterdir())
    for name in names:
        assert (tmp_path / "native" / name).read_bytes() == (tmp_path / "attached" / name).read_bytes(), name


def test_copies_and_pickles_stay_attached_and_can_be_detached():
    model = attach_fusion(one.model())
    inputs = one.batch(model)
    expected = model.generate(**inputs, **GREEDY, **STRONG)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied.generate(**inputs, **GREEDY, **STRONG), expected)
        native = detach_fusion(copied).generate(**inputs, **GREEDY)
        assert not torch.equal(native, expected)
    assert torch.equal(model.generate(**inputs, **GREEDY, **STRONG), expected), "detaching a copy leaves the model"


def test_threads_that_attach_and_fuse_at_once_do_not_mix():
    family = FAMILIES[0]
    model = family.model(dtype=torch.float32)
    inputs = family.batch(model, dtype=torch.float32)
    betas = [0.0, 0.1, 0.3, 0.5]
    alone = copy.deepcopy(model)
    attach_fusion(alone)
    expected = [alone.generate(**inputs, **GREEDY, **DETAILS, beta=beta, fusion_layers=1.0).logits for beta in betas]
    results = [None] * len(betas)

    def ask(i):
        attach_fusion(model)
        results[i] = model.generate(**inputs, **GREEDY, **DETAILS, beta=betas[i], fusion_layers=1.0).logits

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(betas))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for ours, theirs in zip(results, expected):
        assert torch.equal(torch.stack(ours), torch.stack(theirs))


def test_fusion_reaches_the_model_inside_peft():
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(target_modules=r".*language_model.*q_proj", r=4, init_lora_weights=False)
    adapted = get_peft_model(one.model(), lora)
    inputs = one.batch(one.model())
    native = adapted.generate(**inputs, **GREEDY)
    assert attach_fusion(adapted) is adapted
    fused = adapted.generate(**inputs, **GREEDY, **STRONG)
    assert not torch.equal(fused, native)
    assert torch.equal(adapted.generate(**inputs, **GREEDY, fusion=False), native)
    merged = adapted.merge_and_unload()
    assert torch.equal(merged.generate(**inputs, **GREEDY, **STRONG), fused)
    assert torch.equal(detach_fusion(merged).generate(**inputs, **GREEDY), native)


def test_what_cannot_be_attached_is_refused_by_name():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from tests.modeling.tiny import tiny_model

    with pytest.raises(ValueError, match="VIFTForConditionalGeneration fuses already"):
        attach_fusion(tiny_model())
    text = Qwen2ForCausalLM(Qwen2Config(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(ValueError, match="Qwen2ForCausalLM has no decoder-only prompt with image placeholders"):
        attach_fusion(text)
    with pytest.raises(ValueError, match="Linear is no transformers model"):
        attach_fusion(torch.nn.Linear(1, 1))
    model = one.model()
    with pytest.raises(ValueError, match="has no fusion attached"):
        detach_fusion(model)
    with pytest.raises(ValueError, match="unknown fusion field 'beta'"):
        attach_fusion(model, beta=0.1)
    with pytest.raises(ValueError, match=r"beta=3.0 must be .* in \[-2.0, 2.0\]"):
        attach_fusion(model, fusion_beta=3.0)
    with pytest.raises(ValueError, match="layers 0 to 3"):
        attach_fusion(model, fusion_layers="2:9")
    assert not hasattr(model, "fusion_config") and VIFTConfig.model_type == "vift" and PAD == 0
