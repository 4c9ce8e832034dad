"""`vift init` takes the parts that people have, keeps what they compute, and refuses by name what it cannot."""

import itertools
import os
import sys
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset, Features
from PIL import Image

from tests.modeling.processor_files import Family
from vift_hub.commands import init as main
from vift_hub.init import build
from vift_hub.parts import LITE_NAMES
from vift_train.config import VIFTTrainingConfig
from vift_train.data import FEATURES
from vift_train.trainer import VIFTTrainer

SMALL = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 256,
}  # fmt: skip
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief."
    "<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMED = (  # as Gemma's
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
THINKING = (  # as Qwen3's: an empty thought before the last answer
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INSTRUCT = (  # as Llama 2's and Mistral's
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
LANGUAGE_MODELS = {  # name -> (class, its fields, template)
    "llama": ("Llama", {}, INSTRUCT),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}, CHATML),
    "qwen3": ("Qwen3", {"head_dim": 8}, THINKING),
    "gemma3": ("Gemma3", {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64}, TRIMMED),
    "mistral": ("Mistral", {"sliding_window": None}, INSTRUCT),
    "olmo2": ("Olmo2", {}, CHATML),
    "smollm-gguf": (None, {}, CHATML),
    "granite": ("Granite", {"logits_scaling": 8.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5}, CHATML),
    "neox": ("GPTNeoX", {}, CHATML),
    "cohere": ("Cohere", {"logit_scale": 0.0625, "tie_word_embeddings": True}, CHATML),
}
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCHES = TOWER | {"image_size": 32, "patch_size": 8}
TOWERS = ["siglip", "clip", "dinov2", "registers", "vit", "efficientnet"]


def tokenizer(template):
    made = Family("Llava", {}, "", ["<think>", "</think>"]).tokenizer()
    made.bos_token, made.chat_template = "<|im_start|>", template
    return made


def write_language_model(kind, folder):
    name, fields, template = LANGUAGE_MODELS[kind]
    torch.manual_seed(1)
    if name is None:
        return write_gguf(folder, template)
    config_class = getattr(transformers, "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config")
    model = getattr(transformers, f"{name}ForCausalLM")(config_class(**SMALL | fields))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return str(folder)


def write_gguf(folder, template) -> str:
    """A tiny Llama as llama.cpp stores it."""
    gguf = pytest.importorskip("gguf")
    folder.mkdir()
    writer, made = gguf.GGUFWriter(str(folder / "tiny.gguf"), "llama"), tokenizer(template)
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(320)
    tokens = [made.convert_ids_to_tokens(i) if i < len(made) else f"<unused{i}>" for i in range(320)]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1 if i < 256 else 3 for i in range(320)])
    writer.add_token_scores([0.0] * 320)
    writer.add_token_merges([])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_pad_token_id(256)
    writer.add_chat_template(template)
    shapes = {"token_embd": (320, 32), "output_norm": (32,), "output": (320, 32)}
    for block in ("blk.0", "blk.1"):
        shapes |= {f"{block}.attn_q": (32, 32), f"{block}.attn_k": (16, 32), f"{block}.attn_v": (16, 32)}
        shapes |= {f"{block}.attn_output": (32, 32), f"{block}.attn_norm": (32,), f"{block}.ffn_norm": (32,)}
        shapes |= {f"{block}.ffn_{name}": (64, 32) for name in ("gate", "up")} | {f"{block}.ffn_down": (32, 64)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", (0.2 * torch.randn(shape) + ("norm" in name)).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(folder / "tiny.gguf")


def write_tower(kind, folder):
    torch.manual_seed(2)
    if kind == "siglip":
        text = {"vocab_size": 50} | {name: value for name, value in TOWER.items() if "size" in name or "num" in name}
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=PATCHES))
    elif kind == "clip":
        model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**PATCHES))
    elif kind == "efficientnet":
        return write_efficientnet_lite(folder)
    else:
        name = {"dinov2": "Dinov2", "registers": "Dinov2WithRegisters", "vit": "ViT"}[kind]
        model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**PATCHES))
    model.save_pretrained(folder)
    mean = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32}, **mean).save_pretrained(folder)
    return str(folder)


def write_efficientnet_lite(folder):
    """Random weights under the names of the files that people have; lite0's own sizes, which the name stands for."""
    config = transformers.EfficientNetConfig(
        width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, image_size=224, hidden_act="relu6"
    )
    weights = {}
    for name, tensor in transformers.EfficientNetModel(config).state_dict().items():
        for theirs, ours in LITE_NAMES.items():
            prefix = ours.replace(r"\1", name.split(".")[2] if "blocks" in name else "")
            if name.startswith(prefix):
                block = f"_blocks.{name.split('.')[2]}." if "blocks" in name else ""
                last = theirs.removeprefix("^").removeprefix(r"_blocks\.(\d+)\.").replace("\\", "")
                weights[block + last + name.removeprefix(prefix)] = tensor
    folder.mkdir()
    torch.save(weights, folder / "efficientnet-lite0-random.pth")
    return str(folder / "efficientnet-lite0-random.pth")


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    folder, written = tmp_path_factory.mktemp("parts"), {}

    def get(kind):
        if kind not in written:
            write = write_language_model if kind in LANGUAGE_MODELS else write_tower
            written[kind] = write(kind, folder / kind)
        return written[kind]

    return get


def ask(processor, text="what is it", size=(60, 40)):
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(turn, add_generation_prompt=True)
    return processor(text=prompt, images=Image.effect_noise(size, 80).convert("RGB"), return_tensors="pt")


def source_of(place):
    options = {"gguf_file": Path(place).name} if place.endswith(".gguf") else {}
    folder = Path(place).parent if options else place
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


# every language model and every tower once; all pairs with VIFT_ALL_PARTS=1
PAIRS = [(model, TOWERS[i % len(TOWERS)]) for i, model in enumerate(LANGUAGE_MODELS)]
PAIRS = list(itertools.product(LANGUAGE_MODELS, TOWERS)) if os.environ.get("VIFT_ALL_PARTS") else PAIRS


@pytest.mark.parametrize(("language_model", "tower"), PAIRS)
def test_parts_joined_trained_saved_and_loaded_answer_fused(part, tmp_path, language_model, tower):
    model, processor = build(part(tower), part(language_model), torch.float32, pool=2 if tower == "vit" else 1)
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        expected, ours = source_of(part(language_model))(ids).logits, model(input_ids=ids).logits
    assert (ours[..., : expected.shape[-1]] - expected).abs().max() <= 1e-5 * expected.abs().max()
    inputs = ask(processor)
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == model.config.image_seq_length

    row = {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "what"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]}
    picture = Image.effect_noise((40, 40), 90).convert("RGB")
    image_rows = [
        {"id": str(i), "messages": [row, answer], "images": [picture], "modality": "image"} for i in range(2)
    ]
    text_row = {"role": "user", "content": [{"type": "text", "text": "say cat"}]}
    text_rows = [{"id": f"t{i}", "messages": [text_row, answer], "images": [], "modality": "text"} for i in range(2)]
    model.name_or_path = ""
    for stage, moved in ((1, {"multi_modal_projector"}), (2, {"multi_modal_projector", "language_model", "lm_head"})):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        args = VIFTTrainingConfig(
            str(tmp_path / f"stage{stage}"), stage=stage, max_steps=5, per_device_train_batch_size=2, use_cpu=True,
            bf16=False, learning_rate=1e-2, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        features = Features({name: FEATURES[name] for name in image_rows[0]})
        rows = Dataset.from_list(image_rows + (text_rows if stage == 2 else []), features=features)
        VIFTTrainer(model, args, rows, processing_class=processor).train()
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        assert {next(one for one in (*moved, "vision_tower") if one in name) for name in changed} <= moved and changed
        assert all("vision_tower" not in name for name in changed)
    model.eval().save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "saved", trust_remote_code=True
    ).eval()
    again = transformers.AutoProcessor.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    inputs, greedy = ask(again), {"max_new_tokens": 3, "do_sample": False, "output_logits": True}
    greedy["return_dict_in_generate"] = True
    fused = [one.generate(**inputs, **greedy, beta=0.4, fusion_layers=1.0).logits[0] for one in (model, loaded)]
    torch.testing.assert_close(*fused, rtol=0, atol=1e-5)
    assert not torch.equal(fused[0], model.generate(**inputs, **greedy, fusion=False).logits[0])


@pytest.mark.parametrize(("tower", "options", "tokens"), [
    ("siglip", {}, 16), ("siglip", {"pixel_shuffle": 2}, 4), ("clip", {"pool": 2}, 4), ("registers", {}, 16),
    ("registers", {"pixel_shuffle": 4}, 1), ("dinov2", {"pool": 2, "pixel_shuffle": 2}, 1), ("efficientnet", {}, 49),
    ("efficientnet", {"pool": 2}, 16), ("efficientnet", {"pixel_shuffle": 7}, 1), ("vit", {"pool": 3}, 4),
])  # fmt: skip
def test_image_tokens_are_what_one_forward_pass_gives(part, tower, options, tokens):
    model, processor = build(part(tower), part("qwen2"), torch.float32, **options)
    assert model.config.image_seq_length == tokens
    for size in ((30, 90), (64, 64)):
        inputs = ask(processor, size=size)
        assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == tokens
        assert model.generate(**inputs, max_new_tokens=1).shape[1] == inputs["input_ids"].shape[1] + 1


def test_pictures_have_the_size_that_the_towers_own_processor_gives(part, tmp_path):
    """DINOv2's positions are of 518 pixels, its processor gives 224."""
    dino = transformers.Dinov2Config(**PATCHES | {"image_size": 64})
    transformers.Dinov2Model(dino).save_pretrained(tmp_path)
    transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    for mode, tokens in ((None, 16), ("pad", 64)):
        model, processor = build(str(tmp_path), part("qwen2"), torch.float32, image_aspect_ratio=mode)
        inputs = ask(processor)
        assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == tokens
        model.generate(**inputs, max_new_tokens=1)


def test_class_and_register_tokens_are_dropped_and_a_shuffle_puts_patches_side_by_side(part):
    for tower, prefix in (("siglip", 0), ("clip", 1), ("dinov2", 1), ("registers", 5), ("vit", 1)):
        model, processor = build(part(tower), part("qwen2"), torch.float32, pixel_shuffle=2)
        pixels = ask(processor)["pixel_values"]
        read = []
        hook = model.model.multi_modal_projector.linear_1.register_forward_pre_hook(
            lambda _, args, r=read: r.append(args[0])
        )
        with torch.no_grad():
            model.model.get_image_features(pixels, return_dict=True)
            states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][0, prefix:]
        hook.remove()
        grid = states.view(4, 4, 16)
        for row, column in itertools.product(range(2), range(2)):
            square = grid[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(4, 16)
            assert torch.equal(read[0][0, 2 * row + column].view(16, 4).T, square), tower


@torch.no_grad()
def test_a_model_in_bfloat16_is_the_same_once_loaded(part, tmp_path):
    model, _ = build(part("siglip"), part("qwen2"))
    model.save_pretrained(tmp_path)
    here, loaded = (one(torch.arange(3, 30)[None]).logits for one in (model, type(model).from_pretrained(tmp_path)))
    assert here.dtype == loaded.dtype == torch.bfloat16 and torch.equal(here, loaded)


def test_a_feature_map_keeps_its_statistics_in_training(part):
    model, _ = build(part("efficientnet"), part("qwen2"), torch.float32)
    norms = [m for m in model.train().modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms) and model.model.language_model.training


def test_pixels_are_padded_to_the_mean_colour_or_squashed(part):
    wide = Image.new("RGB", (64, 32), (255, 0, 0))
    for mode, corner in (("pad", 0.0), ("square", 1.0), (None, 1.0)):
        _, processor = build(part("siglip"), part("qwen2"), torch.float32, image_aspect_ratio=mode)
        pixels = processor(text="<image>", images=wide, return_tensors="pt")["pixel_values"][0]
        assert pixels.shape == (3, 32, 32) and abs(float(pixels[0, 0, 0]) - corner) < 0.01, mode


def test_default_system_prompt_is_the_same_in_both_runs_and_in_training(part):
    _, processor = build(part("siglip"), part("qwen2"), torch.float32)
    text = processor.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    image = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hi"}]}]
    assert processor.apply_chat_template(image, add_generation_prompt=True).replace("<image>", "") == text
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n")


class Malicious:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


def bad_parts(part, folder):
    """name -> (arguments that differ, words of the refusal)."""
    phi = transformers.PhiConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"})
    gemma2 = transformers.Gemma2Config(**SMALL, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=0.1)
    for name, model in (("phi", transformers.PhiForCausalLM(phi)),
                        ("gemma2", transformers.Gemma2ForCausalLM(gemma2))):  # fmt: skip
        model.save_pretrained(folder / name)
        tokenizer(CHATML).save_pretrained(folder / name)
    transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SMALL)).save_pretrained(folder / "plain")
    bare = tokenizer(None)
    bare.save_pretrained(folder / "plain")
    transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SMALL)).save_pretrained(folder / "endless")
    tokenizer("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}").save_pretrained(folder / "endless")
    naflex = transformers.Siglip2VisionConfig(**TOWER, num_patches=16, patch_size=8)
    swin = transformers.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], image_size=32, window_size=4)
    pvt = transformers.PvtV2Config(hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, image_size=64)
    pixtral, mamba = transformers.PixtralVisionConfig(**PATCHES), transformers.MambaConfig(**SMALL)
    for name, model in (("naflex", transformers.Siglip2VisionModel(naflex)), ("swin", transformers.SwinModel(swin)),
                        ("pvt", transformers.PvtV2Model(pvt)), ("pixtral", transformers.PixtralVisionModel(pixtral)),
                        ("mamba", transformers.MambaForCausalLM(mamba))):  # fmt: skip
        model.save_pretrained(folder / name)
        transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder / name)
    tokenizer(CHATML).save_pretrained(folder / "mamba")
    torch.save({"x": Malicious()}, folder / "efficientnet-lite0-evil.pth")
    torch.save({"x": torch.zeros(1)}, folder / "efficientnet-lite0-other.pth")
    torch.save({"x": torch.zeros(1)}, folder / "resnet.pth")
    return {
        "phi": ({"--language-model": folder / "phi"}, "the head of a phi has a bias or is no matrix"),
        "gemma2": ({"--language-model": folder / "gemma2"}, "a gemma2 changes its logits after the head"),
        "endless": ({"--language-model": folder / "endless"}, "its chat template"),
        "swin": ({"--vision-tower": folder / "swin"}, "its 16 features are no square grid of 8 x 8 patches; take one"),
        "pvt": ({"--vision-tower": folder / "pvt"}, "the pvt_v2 has attention and feature maps"),
        "pixtral": ({"--vision-tower": folder / "pixtral"}, "patches of several pictures into one row"),
        "mamba": ({"--language-model": folder / "mamba"}, "a mamba does not run inside VIFT (MambaModel has no"),
        "layer": ({"--feature-layer": "9"}, "feature_layer=9 must be in"),
        "naflex": ({"--vision-tower": folder / "naflex"}, "a NaFlex tower"),
        "a language model": ({"--vision-tower": part("qwen2")}, "is a qwen2, which reads no pictures"),
        "evil": ({"--vision-tower": folder / "efficientnet-lite0-evil.pth"}, "can't be read as weights alone"),
        "other": ({"--vision-tower": folder / "efficientnet-lite0-other.pth"}, "has other weights than lite0"),
        "resnet": ({"--vision-tower": folder / "resnet.pth"}, "names no EfficientNet-Lite"),
        "package": ({"--vision-tower": "package:no_such"}, "no such package is installed"),
        "empty package": ({"--language-model": "package:json"}, "holds no single config.json"),
        "shuffle": ({"--pixel-shuffle": "3"}, "pixel_shuffle=3 do not fit a grid of 4 x 4"),
        "pool": ({"--pool": "0"}, "pool=0 must be at least 1"),
        "nowhere": ({"--language-model": folder / "nowhere"}, "nowhere"),
    }  # fmt: skip


def test_every_refusal_names_the_part_and_the_reason(part, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, (change, words) in bad_parts(part, tmp_path).items():
        given = {"--vision-tower": part("siglip"), "--language-model": part("qwen2")}
        given |= {"--output": tmp_path / "out"} | change
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for pair in given.items() for word in pair])
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert stopped.value.code == 2 and error.startswith("vift init: error: ") and words in error, (name, error)
        assert not (tmp_path / "out").exists() and not (tmp_path / "PWNED").exists()


def test_ctrl_c_and_a_full_disk_leave_nothing(part, tmp_path, capsys, monkeypatch):
    arguments = ["--vision-tower", part("siglip"), "--language-model", part("qwen2")]
    arguments += ["--output", str(tmp_path / "o/p")]
    stops = ((KeyboardInterrupt(), 130, "stopped"), (OSError(28, "No space left"), 2, "o/p cannot"))
    for error, status, words in stops:

        def save(*_, error=error, **__):
            raise error

        monkeypatch.setattr(transformers.LlavaProcessor, "save_pretrained", save)
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert stopped.value.code == status and words in told and list((tmp_path / "o").iterdir()) == []


def test_a_part_is_found_in_a_package_without_importing_it(part, tmp_path, monkeypatch, capsys):
    package = tmp_path / "carries_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('needs another package')")
    (package / "models").mkdir()
    os.link(part("efficientnet"), package / "models" / "efficientnet-lite0-1.pth")
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["--vision-tower", "package:carries_weights", "--language-model", part("qwen2")]
    main([*arguments, "--output", str(tmp_path / "out"), "--dtype", "float32", "--image-aspect-ratio", "pad"])
    assert "connector" in capsys.readouterr().out and "carries_weights" not in sys.modules
    assert transformers.AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True).image_processor.do_pad
