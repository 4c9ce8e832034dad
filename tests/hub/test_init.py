"""`vift init` joins a tower and a language model to the checkpoint that training starts from."""

import pytest
import torch
import transformers
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from modeling_vift import VIFTConfig, VIFTForConditionalGeneration
from tests.modeling.checkpoint import chat, tiny_processor
from vift_hub.commands import init as main
from vift_hub.init import build

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION = SMALL | {"image_size": 16, "patch_size": 8}


def save_parts(folder, tower="siglip", vocab_size=60):
    """A tower and a language model as their publishers would have them (no `<image>` in the vocabulary)."""
    torch.manual_seed(0)
    if tower == "siglip":
        text = SMALL | {"vocab_size": 50}
        SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)).save_pretrained(folder / "tower")
        SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder / "tower")
    else:
        CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(folder / "tower")
        CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(
            folder / "tower"
        )
    config = Qwen2Config(**SMALL | {"hidden_size": 32}, num_key_value_heads=2, vocab_size=vocab_size)
    Qwen2ForCausalLM(config).save_pretrained(folder / "llm")
    tokenizer = tiny_processor().tokenizer
    vocabulary = {w: i for w, i in tokenizer.get_vocab().items() if w != "<image>" and i < 60}
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="<|endoftext|>", eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    ).save_pretrained(folder / "llm")  # fmt: skip


@pytest.mark.parametrize("tower, vocab_size", [("siglip", 60), ("siglip", 80), ("clip", 60)])
def test_the_parts_keep_their_weights_and_the_whole_answers(tower, vocab_size, tmp_path, capsys):
    save_parts(tmp_path, tower, vocab_size)
    arguments = ["--vision-tower", str(tmp_path / "tower"), "--language-model", str(tmp_path / "llm")]
    main([*arguments, "--output", str(tmp_path / "start"), "--dtype", "float32"])
    printed = capsys.readouterr().out
    assert "stage 1:" in printed and "stage 2:" in printed and "GiB" in printed
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "start", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(tmp_path / "start", trust_remote_code=True)
    text = Qwen2ForCausalLM.from_pretrained(tmp_path / "llm")
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        expected = text(ids).logits
        torch.testing.assert_close(model(input_ids=ids).logits[..., : expected.shape[-1]], expected)
    parts = SiglipModel if tower == "siglip" else CLIPVisionModel
    whole = parts.from_pretrained(tmp_path / "tower").state_dict()
    ours = model.model.vision_tower.state_dict()
    for name, tensor in ours.items():
        match = [t for n, t in whole.items() if n.removeprefix("vision_model.") == name.removeprefix("vision_model.")]
        assert len(match) == 1 and torch.equal(match[0], tensor), name
    prompt = processor.apply_chat_template(chat(None, "what colour"), add_generation_prompt=True)
    inputs = processor(text=prompt, images=[Image.new("RGB", (30, 20))], return_tensors="pt")
    fused = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert fused.shape[1] == inputs["input_ids"].shape[1] + 3


def test_bad_parts_are_one_line_and_status_2(tmp_path, capsys):
    save_parts(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    good = {"--vision-tower": tmp_path / "tower", "--language-model": tmp_path / "llm", "--output": tmp_path / "out"}
    for change, message in [
        ({"--output": tmp_path / "full"}, "exists and is not an empty folder"),
        ({"--vision-tower": tmp_path / "nowhere"}, "nowhere"),
        ({"--vision-tower": tmp_path / "llm"}, "which reads no pictures"),
    ]:
        arguments = [str(part) for pair in (good | change).items() for part in pair]
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(("side", "pool"), [(7, 2), (7, 3), (6, 3), (2, 5)])
def test_every_patch_counts_where_squares_do_not_divide_the_grid(side, pool):
    """The last row and column of a 7 x 7 map belong to squares of their own, not to nothing."""
    text = {"model_type": "qwen2", **SMALL, "num_key_value_heads": 2, "vocab_size": 60}
    config = VIFTConfig(
        vision_config={"model_type": "siglip_vision_model", **VISION}, text_config=text, vision_pool=pool
    )
    connector, read = VIFTForConditionalGeneration(config).model.multi_modal_projector, []
    connector.linear_1.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    features = torch.randn(1, 16, side, side)
    connector(features)
    starts = range(0, side, pool)
    squares = [features[0, :, y : y + pool, x : x + pool].mean(dim=(1, 2)) for y in starts for x in starts]
    torch.testing.assert_close(read[0][0], torch.stack(squares))


@pytest.mark.parametrize(("name", "fields"), [
    ("ConvNext", {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4, "image_size": 64}),
    ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4}),  # has no image_size
    ("MobileNetV2", {"depth_multiplier": 0.25, "image_size": 64}),
])  # fmt: skip
def test_feature_maps_of_other_backbones_become_tokens(name, fields, tmp_path):
    save_parts(tmp_path)
    tower = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**fields)).eval()
    tower.save_pretrained(tmp_path / "map")
    SiglipImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "map")
    model, processor = build(str(tmp_path / "map"), str(tmp_path / "llm"), torch.float32)
    model.save_pretrained(tmp_path / "start")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "start", trust_remote_code=True)
    pictures = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    inputs = processor(text="<image> a <image>", images=pictures, return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 2 * 2 * 2
    read = []
    model.model.multi_modal_projector.linear_1.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    with torch.no_grad():
        maps = tower(inputs["pixel_values"]).last_hidden_state
        model.generate(**inputs, max_new_tokens=1)
    torch.testing.assert_close(read[0], maps.flatten(2).transpose(1, 2))
