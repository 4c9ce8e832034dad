"""`vift convert` from folders as the authors' code writes them: prompts and pixels exact, logits to 1e-5."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.modeling.checkpoint import save_checkpoint
from vift_hub.commands import convert as main

SYSTEM = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
BUNNY = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
TRAINING = {
    "mm_projector_lr": 2e-6,
    "unfreeze_vision_tower": True,
    "use_s2": False,
    "use_mm_proj": True,
    "tune_mm_mlp_adapter": False,
    "freeze_mm_mlp_adapter": False,
    "tokenizer_padding_side": "right",
    "tokenizer_model_max_length": 4096,
}
TEXT = Qwen2Config(
    vocab_size=272, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False, eos_token_id=258, bos_token_id=256,
)  # fmt: skip
VISION = SiglipVisionConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8
)


def tokenizer():
    """Qwen's kind: bytes, three special tokens at the end, no unknown token; 256 + 3 of 272 rows are used."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|endoftext|>", eos_token="<|im_end|>")


class Authors:
    """The authors' parts, their forward pass in a few lines, and the folders that their code writes."""

    def __init__(self, folder):
        torch.manual_seed(0)
        self.folder, self.tower, self.text = folder, SiglipVisionModel(VISION).eval(), Qwen2ForCausalLM(TEXT).eval()
        self.connector = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 32))
        for module in (self.tower, self.text, self.connector):
            with torch.no_grad():
                [p.normal_(0.5 if "norm" in n else 0.0, 0.3) for n, p in module.named_parameters()]
        self.tower.save_pretrained(folder / "tower")
        SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / "tower")
        self.config = self.text.config.to_dict() | TRAINING | {
            "model_type": "bunny-qwen2",
            "architectures": ["BunnyQwen2ForCausalLM"],
            "mm_vision_tower": str(folder / "tower"),
            "mm_projector_type": "mlp2x_gelu",
            "mm_hidden_size": 16,
            "image_aspect_ratio": "pad",
        }  # fmt: skip
        self.generation = {"eos_token_id": [258, 256], "pad_token_id": 256, "repetition_penalty": 1.05}

    def projector(self, prefix="model.mm_projector."):
        return {prefix + name: tensor.clone() for name, tensor in self.connector.state_dict().items()}

    def language_model(self):
        saved = self.folder / "language_model"
        self.text.save_pretrained(saved)
        tokenizer().save_pretrained(saved)
        (saved / "generation_config.json").write_text(json.dumps(self.generation))
        return saved

    def write(self, name, **config):
        saved = self.folder / name
        saved.mkdir()
        (saved / "config.json").write_text(json.dumps(self.config | config))
        return saved

    def whole(self, name="whole", **config):
        saved = self.write(name, **config)
        tower = {"model.vision_tower.vision_tower.vision_model." + n.removeprefix("vision_model."): t.clone()
                 for n, t in self.tower.state_dict().items()}  # fmt: skip
        assert any("head." in n for n in tower) and any("layers.2." in n for n in tower)
        text = {n: t.clone() for n, t in self.text.state_dict().items()}
        save_file(text | self.projector() | tower, saved / "model.safetensors")
        tokenizer().save_pretrained(saved)
        (saved / "generation_config.json").write_text(json.dumps(self.generation))
        return saved

    def stage1(self, name="stage1", **config):
        saved = self.write(name, image_aspect_ratio="square", **config)
        torch.save(self.projector(), saved / "mm_projector.bin")
        return saved

    def lora(self, base, **config):
        """Rank 2 on the queries and the last projection; the reference adds it by itself."""
        saved, adapter = self.write("lora"), {}
        for n, module in self.text.named_modules():
            if n.endswith(("q_proj", "down_proj")):
                a, b = torch.randn(2, module.in_features) * 0.3, torch.randn(module.out_features, 2) * 0.3
                adapter |= {f"base_model.model.{n}.lora_A.weight": a, f"base_model.model.{n}.lora_B.weight": b}
                with torch.no_grad():
                    module.weight += 16 / 2 * b @ a
        save_file(adapter, saved / "adapter_model.safetensors")
        fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 16, "base_model_name_or_path": str(base), "bias": "none"}
        (saved / "adapter_config.json").write_text(json.dumps(fields | config))
        torch.save(self.projector("base_model.model.model.mm_projector."), saved / "non_lora_trainables.bin")
        return saved

    def reference(self, prompt, image, pad=True):
        """(ids with -200, pixels, logits) from a prompt with `<image>` and an RGB picture."""
        if pad and image.width != image.height:
            side = max(image.size)
            square = Image.new("RGB", (side, side), (127, 127, 127))
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            image = square
        pixels = SiglipImageProcessor(size={"height": 16, "width": 16})(image, return_tensors="pt")["pixel_values"]
        chunks = [tokenizer()(chunk)["input_ids"] for chunk in prompt.split("<image>")]
        ids = chunks[0] + [-200] + chunks[1]
        with torch.no_grad():
            features = self.connector(self.tower(pixels, output_hidden_states=True).hidden_states[-2][0])
            embed = self.text.get_input_embeddings()
            parts = [features if i == -200 else embed(torch.tensor([i])) for i in ids]
            return ids, pixels, self.text(inputs_embeds=torch.cat(parts)[None]).logits[0]


PICTURES = [Image.effect_noise(size, 90).convert("RGB") for size in ((40, 27), (21, 50), (30, 30))]


def same_as_the_authors(authors, output, prompt=None, pad=True):
    model = AutoModelForImageTextToText.from_pretrained(output, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(output)
    prompt = prompt or SYSTEM + "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    for picture in PICTURES:
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = processor(text=text, images=[picture], return_tensors="pt")
        ids, pixels, logits = authors.reference(prompt, picture, pad)
        token = model.config.image_token_id
        assert inputs["input_ids"][0].tolist() == [i for old in ids for i in ([token] * 4 if old == -200 else [old])]
        assert torch.equal(inputs["pixel_values"], pixels)
        with torch.no_grad():
            ours = model(**inputs).logits[0, :, :272]
        torch.testing.assert_close(ours, logits, rtol=1e-5, atol=1e-5)
    return model, processor


def test_a_whole_checkpoint_of_the_authors_keeps_prompt_pixels_and_logits(tmp_path):
    authors = Authors(tmp_path)
    main([str(authors.whole()), str(tmp_path / "vift")])
    model, processor = same_as_the_authors(authors, tmp_path / "vift")
    assert model.generation_config.eos_token_id == [258, 256]
    image_processor = json.loads((tmp_path / "vift" / "processor_config.json").read_text())["image_processor"]
    assert image_processor["image_processor_type"] == "LlavaImageProcessor" and image_processor["do_pad"]
    text = processor.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert text == SYSTEM + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert processor.apply_chat_template(own) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    )


def test_no_training_keys_are_left_in_the_config(tmp_path):
    authors = Authors(tmp_path)
    source = authors.whole(some_later_training_key=1, rope_theta=5000.0, rope_parameters=None)
    main([str(source), str(tmp_path / "vift")])
    config = json.loads((tmp_path / "vift" / "config.json").read_text())
    left = {*TRAINING, "some_later_training_key", "mm_vision_tower", "image_aspect_ratio", "mm_hidden_size"}
    assert not left & (config["text_config"].keys() | config.keys() | config["vision_config"].keys())
    assert config["text_config"]["rope_parameters"]["rope_theta"] == 5000.0


def test_the_repetition_penalty_is_said_kept_and_reset(tmp_path, capsys):
    source = str(Authors(tmp_path).whole())
    main([source, str(tmp_path / "kept")])
    assert "repetition_penalty=1.05" in capsys.readouterr().out
    main([source, str(tmp_path / "reset"), "--repetition-penalty", "1"])
    assert "repetition_penalty=" not in capsys.readouterr().out
    for name, expected in (("kept", 1.05), ("reset", 1.0)):
        saved = json.loads((tmp_path / name / "generation_config.json").read_text())
        assert saved.get("repetition_penalty", 1.0) == expected


def test_both_ends_of_sequence_also_without_a_generation_config(tmp_path):
    source = Authors(tmp_path).whole()
    (source / "generation_config.json").unlink()
    main([str(source), str(tmp_path / "vift")])
    saved = json.loads((tmp_path / "vift" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [258, 256]


@pytest.mark.parametrize("said", ["config", "option"])
def test_stock_bunnys_own_conversation(tmp_path, said):
    authors = Authors(tmp_path)
    source = authors.whole(**({"version": "bunny"} if said == "config" else {}))
    main([str(source), str(tmp_path / "vift"), *(["--conversation", "bunny"] if said == "option" else [])])
    _, processor = same_as_the_authors(authors, tmp_path / "vift", BUNNY + "USER: <image>\nWhat is it? ASSISTANT:")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert processor.apply_chat_template(turns) == BUNNY + "USER: Hi ASSISTANT: Ho<|endoftext|>"
    tokens = processor.tokenizer.apply_chat_template(
        turns, chat_template=processor.chat_template, return_dict=True, return_assistant_tokens_mask=True
    )
    answer = [i for i, mask in zip(tokens["input_ids"], tokens["assistant_masks"]) if mask]
    assert processor.tokenizer.decode(answer) == "Ho<|endoftext|>"


def test_a_stage_1_folder_with_its_language_model(tmp_path):
    authors = Authors(tmp_path)
    language_model = authors.language_model()
    main([str(authors.stage1()), str(tmp_path / "vift"), "--language-model", str(language_model)])
    model, _ = same_as_the_authors(authors, tmp_path / "vift", pad=False)
    assert model.generation_config.eos_token_id == [258, 256]
    assert model.generation_config.repetition_penalty == 1.05


@pytest.mark.parametrize("named_by", ["option", "adapter"])
def test_a_lora_folder_is_merged_into_its_base(tmp_path, named_by):
    authors = Authors(tmp_path)
    base = authors.language_model()
    source = authors.lora(base if named_by == "adapter" else "/nowhere/base")
    main([str(source), str(tmp_path / "vift"), *(["--language-model", str(base)] if named_by == "option" else [])])
    same_as_the_authors(authors, tmp_path / "vift")


class Malice:
    def __reduce__(self):
        return print, ("ran",)


def test_what_cannot_be_converted_is_one_line_that_says_what_would_do(tmp_path, capsys):
    authors = Authors(tmp_path)
    base, out = authors.language_model(), tmp_path / "out"

    def refused(*parts, args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(args[0]), str(out), *map(str, args[1:])])
        read = capsys.readouterr()
        assert stopped.value.code == 2 and read.err.count("\n") == 1 and "ran" not in read.out, read
        assert all(str(part) in read.err for part in parts) and not out.exists(), read.err

    whole, stage1 = authors.whole(), authors.stage1()
    refused(stage1 / "mm_projector.bin", "connector only: pass --language-model", args=[stage1])
    refused("--language-model=/nowhere", "no such file or folder", args=[stage1, "--language-model", "/nowhere"])
    refused("is a 'siglip_vision_model'", "'qwen2'", args=[stage1, "--language-model", tmp_path / "tower"])
    refused(whole, "leave out --language-model", args=[whole, "--language-model", base])
    refused("repetition_penalty=-1.0", "1 is none", args=[whole, "--repetition-penalty", "-1"])
    refused("repetition_penalty=nan", "1 is none", args=[whole, "--repetition-penalty", "nan"])
    for i, (name, value, said) in enumerate([
        ("image_aspect_ratio", "anyres", "'pad' or 'square'"), ("use_s2", True, "use_s2=True"),
        ("mm_use_im_start_end", True, "mm_use_im_start_end=True"), ("version", "v0", "give --conversation"),
        ("mm_patch_merge_type", "spatial_unpad", "'flat'"), ("model_type", "bunny-stablelm", "bunny-qwen2"),
        ("mm_vision_tower", "/nowhere/siglip", "give --vision-tower"),
    ]):  # fmt: skip
        source = authors.whole(f"whole{i}", **{name: value})
        refused(source / "config.json", said, args=[source])

    lora = authors.lora("/nowhere/base")
    refused("/nowhere/base", lora / "adapter_config.json", "give --language-model", args=[lora])
    adapter = json.loads((lora / "adapter_config.json").read_text())
    for change in ({"use_dora": True}, {"alpha_pattern": {"q_proj": 3}}, {"fan_in_fan_out": True}):
        (lora / "adapter_config.json").write_text(json.dumps(adapter | change))
        refused(lora / "adapter_config.json", *change, "peft", args=[lora, "--language-model", base])
    (lora / "adapter_config.json").write_text(json.dumps(adapter))
    (lora / "non_lora_trainables.bin").rename(lora / "elsewhere")
    refused("LoRA folder without non_lora_trainables.bin", args=[lora, "--language-model", base])
    torch.save({"mm_projector.0.weight": Malice()}, lora / "non_lora_trainables.bin")
    refused(lora / "non_lora_trainables.bin", "weights_only=True", args=[lora, "--language-model", base])
    (lora / "elsewhere").replace(lora / "non_lora_trainables.bin")
    extra = {"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.zeros(2, 32)}
    save_file(extra | {n.replace("A.weight", "B.weight"): torch.zeros(32, 2) for n in extra},
              lora / "adapter_model.safetensors")  # fmt: skip
    refused("adapter_model.safetensors", "layers.7.", args=[lora, "--language-model", base])
    torch.save({"mm_projector.0.weight": Malice()}, stage1 / "mm_projector.bin")
    refused(stage1 / "mm_projector.bin", "weights_only=True", args=[stage1, "--language-model", base])
    (stage1 / "mm_projector.bin").write_bytes(b"no pickle")
    refused(stage1 / "mm_projector.bin", "weights_only=True", args=[stage1, "--language-model", base])
    (whole / "model.safetensors").write_bytes(b"no tensors")
    refused(whole / "model.safetensors", "does not load", args=[whole])
    (lora / "adapter_config.json").write_text("[]")
    refused(lora / "adapter_config.json", "holds a list", args=[lora, "--language-model", base])
    (lora / "adapter_config.json").write_text('{"lora_alpha": null}')
    refused(lora / "adapter_config.json", "lora_alpha=None", args=[lora, "--language-model", base])


def test_options_that_do_not_go_with_the_source_are_refused(tmp_path, capsys):
    save_checkpoint(tmp_path / "vift")
    main([str(tmp_path / "vift"), str(tmp_path / "llava"), "--to", "llava"])
    for args in (["vift", "out", "--to", "llava"], ["llava", "out"]):
        for option in ("--vision-tower", "--language-model", "--conversation"):
            capsys.readouterr()
            with pytest.raises(SystemExit) as stopped:
                main([*(str(tmp_path / a) for a in args[:2]), *args[2:], option, "bunny"])
            err = capsys.readouterr().err
            assert stopped.value.code == 2 and option[2:].replace("-", "_") + "=bunny" in err and "leave it out" in err


def test_tied_embeddings_and_other_precisions_keep_logits(tmp_path):
    authors = Authors(tmp_path)
    authors.text.lm_head.weight = authors.text.model.embed_tokens.weight
    source = authors.whole(tie_word_embeddings=True, use_cache=False)
    weights = load_file(source / "model.safetensors")
    del weights["lm_head.weight"]
    connector = {n: t.double() for n, t in weights.items() if "mm_projector" in n}
    save_file(weights | connector, source / "model.safetensors")
    main([str(source), str(tmp_path / "vift")])
    model, _ = same_as_the_authors(authors, tmp_path / "vift")
    assert {p.dtype for p in model.parameters()} == {torch.float32} and model.config.text_config.use_cache
