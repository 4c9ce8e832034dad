"""`vift convert` keeps the logits, both ways and from LLaVA-1.5's and Bunny's own layout."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.modeling.checkpoint import save_checkpoint, tiny_processor
from tests.modeling.tiny import IMAGE, batch_inputs
from vift_hub.commands import convert as main
from vift_hub.convert import convert

BUNDLED = Path(__file__).parents[2] / "checkpoints" / "vift-micro"


def logits(model, inputs):
    with torch.no_grad():
        return model.float().eval()(**inputs).logits


def test_vift_to_llava_and_back_keeps_logits_weights_and_processor(tmp_path):
    inputs = batch_inputs(dtype=torch.float32)
    model, _ = save_checkpoint(tmp_path / "vift")
    expected = logits(model, inputs)
    main([str(tmp_path / "vift"), str(tmp_path / "llava"), "--to", "llava"])
    llava = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava")
    assert torch.equal(logits(llava, inputs), expected)
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"] and config["model_type"] == "llava"
    assert not [name for name in config if name.startswith("fusion") or name == "auto_map"]
    assert not list((tmp_path / "llava").glob("*.py"))
    main([str(tmp_path / "llava"), str(tmp_path / "back")])
    back = AutoModelForImageTextToText.from_pretrained(tmp_path / "back", trust_remote_code=True)
    assert type(back).__name__ == "VIFTForConditionalGeneration"
    assert torch.equal(logits(back, inputs), expected)
    greedy = {"max_new_tokens": 4, "do_sample": False, "beta": 0.4, "fusion_layers": 1.0}
    fused = model.generate(**inputs, **greedy)
    assert torch.equal(back.generate(**inputs, **greedy), fused)
    for name in ("vift", "llava", "back"):
        processor = AutoProcessor.from_pretrained(tmp_path / name)
        assert processor.to_dict() == AutoProcessor.from_pretrained(tmp_path / "vift").to_dict()
        assert processor.chat_template == tiny_processor().chat_template


def test_the_bundled_model_goes_to_llava_and_back_tensor_for_tensor(tmp_path):
    convert(str(BUNDLED), tmp_path / "llava", "llava")
    convert(str(tmp_path / "llava"), tmp_path / "back")
    from safetensors.torch import load_file

    before, after = (load_file(folder / "model.safetensors") for folder in (BUNDLED, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("stated", [None, 576], ids=["not stated", "saved again by transformers"])
def test_an_old_llava_gets_its_number_of_tokens_from_the_tower(tmp_path, stated):
    model, _ = save_checkpoint(tmp_path / "vift")
    convert(str(tmp_path / "vift"), tmp_path / "llava", "llava")
    for name, old in {"config.json": ["image_seq_length"],
                      "processor_config.json": ["patch_size", "vision_feature_select_strategy",
                                                "num_additional_image_tokens"]}.items():  # fmt: skip
        file = tmp_path / "llava" / name
        config = {key: value for key, value in json.loads(file.read_text()).items() if key not in old}
        if stated and "image_seq_length" in old:
            config["image_seq_length"] = stated
        file.write_text(json.dumps(config))
    converted, processor = convert(str(tmp_path / "llava"), tmp_path / "back")
    assert converted.config.image_seq_length == model.config.image_seq_length == 4
    inputs = processor(text="<image> what", images=[Image.new("RGB", (20, 20))], return_tensors="pt")
    assert int((inputs["input_ids"] == IMAGE).sum()) == 4
    assert torch.isfinite(converted(**inputs).logits).all()
    assert json.loads((tmp_path / "back" / "config.json").read_text())["image_seq_length"] == 4


def test_a_conversion_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, capsys):
    save_checkpoint(tmp_path / "vift")

    def full(self, folder, **kwargs):
        folder.mkdir()
        raise OSError(28, "No space left on device", str(folder / "model.safetensors"))

    monkeypatch.setattr(LlavaForConditionalGeneration, "save_pretrained", full)
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "vift"), str(tmp_path / "out"), "--to", "llava"])
    error = capsys.readouterr().err.splitlines()[-1]  # above it the bars of `save_checkpoint`
    assert stopped.value.code == 2 and error.startswith(
        f"vift convert: error: output={tmp_path}/out cannot be written"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["vift"]


CLIP = CLIPVisionConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8
)
SIGLIP = SiglipVisionConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8
)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}


def original_checkpoint(folder, kind, inside):
    """LLaVA-1.5's (CLIP, Llama) or Bunny's (SigLIP, Qwen2) own layout; returns a function prompt, image -> logits."""
    torch.manual_seed(0)
    clip = kind == "llava"
    tower = CLIPVisionModel(CLIP) if clip else SiglipVisionModel(SIGLIP)
    processor = tiny_processor()
    vocabulary = 60  # <image> is no token here: its id is added by the conversion
    text = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **TEXT)) if clip else None
    text = text or Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary, **TEXT))
    connector = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 32))
    for module in (tower, text, connector):
        with torch.no_grad():
            [parameter.normal_(0.5 if "norm" in name else 0.0, 0.3) for name, parameter in module.named_parameters()]
    tower.save_pretrained(folder / "tower")
    images = CLIPImageProcessor if clip else SiglipImageProcessor
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}} if clip else {
        "size": {"height": 16, "width": 16}}  # fmt: skip
    images(**size).save_pretrained(folder / "tower")
    weights = dict(text.state_dict())
    weights |= {"model.mm_projector." + name: tensor for name, tensor in connector.state_dict().items()}
    if inside:  # Bunny's tower comes along, without its last layer
        weights |= {
            "model.vision_tower.vision_tower.vision_model." + name.removeprefix("vision_model."): tensor
            for name, tensor in tower.state_dict().items()
            if "layers.2." not in name and "head" not in name
        }
    saved = folder / "model"
    saved.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, saved / "model.safetensors")
    config = text.config.to_dict() | {
        "model_type": "llava" if clip else "bunny-qwen2",
        "architectures": ["LlavaLlamaForCausalLM" if clip else "BunnyQwen2ForCausalLM"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": str(folder / "tower"),
        "mm_vision_select_layer": -2,
        "mm_hidden_size": 16,
    }
    (saved / "config.json").write_text(json.dumps(config))
    processor.tokenizer.save_pretrained(saved)

    def reference(ids, image):
        with torch.no_grad():
            features = tower(image[None], output_hidden_states=True).hidden_states[-2][0]
            features = connector(features[1:] if clip else features)
            parts = [features if i == IMAGE else text.get_input_embeddings()(torch.tensor([i])) for i in ids]
            return text(inputs_embeds=torch.cat(parts)[None]).logits[0]

    return saved, reference


@pytest.mark.parametrize("kind, inside", [("llava", False), ("bunny", True), ("bunny", False)])
def test_the_original_layout_keeps_its_logits(tmp_path, kind, inside):
    source, reference = original_checkpoint(tmp_path, kind, inside)
    main([str(source), str(tmp_path / "vift")])
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "vift", trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "vift")
    assert model.config.image_token_id == processor.tokenizer.convert_tokens_to_ids("<image>") == IMAGE
    prompt, image = [3, 4, IMAGE, 5, 6, 7], torch.randn(3, 16, 16)
    expanded = [token for i in prompt for token in ([i] * 4 if i == IMAGE else [i])]
    with torch.no_grad():
        ours = model(torch.tensor([expanded]), pixel_values=image[None]).logits[0, :, :60]
    torch.testing.assert_close(ours, reference(prompt, image), rtol=1e-5, atol=1e-5)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what colour"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(text=text, images=[Image.new("RGB", (20, 20), "red")], return_tensors="pt")
    assert int((inputs["input_ids"] == IMAGE).sum()) == 4
    out = model.generate(**inputs, max_new_tokens=4, do_sample=False, beta=0.3)
    assert IMAGE not in out[0, inputs["input_ids"].shape[1] :].tolist()


def test_bad_sources_are_one_line_and_exit_status_2(tmp_path, capsys):
    def refused(message, *args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(arg) for arg in args])
        err = capsys.readouterr().err
        assert stopped.value.code == 2 and message in err and err.count("\n") == 1, err

    save_checkpoint(tmp_path / "vift")
    out = tmp_path / "out"
    refused("is a 'vift', neither a LLaVA layout nor LLaVA-1.5's own", tmp_path / "vift", out)
    refused("exists and is not an empty folder", tmp_path / "vift", tmp_path / "vift", "--to", "llava")
    (tmp_path / "empty").mkdir()
    refused("holds no config.json", tmp_path / "empty", out)
    source, _ = original_checkpoint(tmp_path, "bunny", True)
    refused("is a 'bunny-qwen2', not a VIFT", source, out, "--to", "llava")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"mm_projector_type": "ldpnet"}))
    refused("mm_projector_type='ldpnet'", source, out)
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    refused("`num_hidden_layers` (4) must be equal", source, out)
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4, "layer_types": None}))
    refused("12 missing keys, such as model.language_model.layers.3.", source, out)
    (source / "config.json").write_text(json.dumps({**config, "mm_vision_tower": None}))
    refused("names no mm_vision_tower: give --vision-tower", source, out)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        whole = (source / name).read_text() if (source / name).exists() else "{}"
        (source / name).write_text("[1, 2]")
        refused(f"{source}/{name} holds a list", source, out)
        (source / name).write_text('{"model_type": ')
        refused(f"{source}/{name} does not load", source, out)
        (source / name).write_text(whole)
    (source / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-1])
    refused(f"{source}/model.safetensors does not load", source, out)
    (source / "config.json").write_text(json.dumps({"model_type": "llava", "mm_vision_tower": "x"}))
    (source / "model.safetensors").unlink()
    refused("mm_projector_type=None", source, out)
    save_checkpoint(tmp_path / "llava")
    config = json.loads((tmp_path / "llava" / "config.json").read_text()) | {"model_type": "llava"}
    llama = {"model_type": "llama", "hidden_size": "x"}
    for wrong in ({"vision_config": None}, {"text_config": [1]}, {"vision_config": {"model_type": "none"}},
                  {"vision_feature_layer": "x"}, {"text_config": llama}):  # fmt: skip
        (tmp_path / "llava" / "config.json").write_text(json.dumps(config | wrong))
        refused(f"{tmp_path}/llava", tmp_path / "llava", out)
    assert not out.exists()
