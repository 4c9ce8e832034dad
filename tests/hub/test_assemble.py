"""A published connector and LoRA with their base parts: the same model that was trained."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from tests.hub.test_init import save_parts
from vift_hub.assemble import LORA, PARTS, WEIGHTS, assemble, pack
from vift_hub.commands import init as main
from vift_hub.init import build


def trained(folder):
    """(tuned model, its options): a LoRA and a connector with other weights than the start's, saved as a run does."""
    save_parts(folder)
    base = {"vision_tower": str(folder / "tower"), "language_model": str(folder / "llm")}
    model = build(**base, dtype=torch.bfloat16)[0].float()
    targets = r".*language_model\.layers\..*\.(q_proj|up_proj)"
    tuned = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, modules_to_save=["multi_modal_projector"])
    )
    torch.manual_seed(3)
    for parameter in tuned.parameters():
        if parameter.requires_grad:  # bfloat16 is what is published
            parameter.data.normal_(0.0, 0.3).copy_(parameter.data.bfloat16())
    tuned.save_pretrained(folder / "run")
    return tuned.eval(), base


def test_the_whole_is_the_model_that_was_trained(tmp_path, capsys):
    tuned, base = trained(tmp_path)
    pack(tmp_path / "run", tmp_path / "published", base, {"fusion_beta": 0.07, "fusion_layers": 0.5})
    assert str(tmp_path / "run") not in (tmp_path / "published" / LORA).read_text()
    main(["--trained", str(tmp_path / "published"), "--output", str(tmp_path / "whole"), "--dtype", "float32"])
    assert "vift demo --model" in capsys.readouterr().out
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole", trust_remote_code=True)
    assert (whole.config.fusion_beta, whole.config.fusion_layers) == (0.07, 0.5)
    image = whole.config.image_token_id
    inputs = {"input_ids": torch.tensor([[1, *[image] * 4, 5, 6]]), "pixel_values": torch.randn(1, 3, 16, 16)}
    start = build(**base, dtype=torch.bfloat16)[0].float()
    with torch.no_grad():
        expected, found = tuned(**inputs).logits, whole(**inputs, fusion=False).logits
        unlike = start(**inputs, fusion=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (unlike - expected).abs().max() > 0.01


def test_what_does_not_fit_is_refused_by_name(tmp_path, capsys):
    _, base = trained(tmp_path)
    place = tmp_path / "published"
    pack(tmp_path / "run", place, base, {})

    def refused(words):
        with pytest.raises(SystemExit):
            main(["--trained", str(place), "--output", str(tmp_path / "whole")])
        told = capsys.readouterr().err
        assert words in told and told.count("\n") == 1, told
        assert not (tmp_path / "whole").exists()

    weights = load_file(place / WEIGHTS)
    save_file({n: t for n, t in weights.items() if "linear_2" not in n}, place / WEIGHTS)
    refused("of the connector")
    save_file({n: t[:1] if "lora_A" in n else t for n, t in weights.items()}, place / WEIGHTS)
    refused("and its B of rank 4")
    save_file({n: t[:, 1:].contiguous() if "lora_A" in n else t for n, t in weights.items()}, place / WEIGHTS)
    refused("no weight of that shape")
    pack(tmp_path / "run", place, base, {"fusion_bta": 0.1})
    refused("fusion has 'fusion_bta'; known are fusion_alpha, fusion_answer, fusion_beta")
    pack(tmp_path / "run", place, base | {"poll": 2}, {})
    refused("base has 'poll'; known are")
    pack(tmp_path / "run", place, base, {"fusion_beta": 99})
    refused("beta=99")
    (place / PARTS).write_text(json.dumps({"base": base}))
    refused("base and fusion")
    (place / WEIGHTS).unlink()
    refused(f"has no {WEIGHTS}")
    with pytest.raises(SystemExit):
        main(["--trained", str(place), "--pool", "2", "--output", str(tmp_path / "whole")])
    assert "--pool and --trained" in capsys.readouterr().err


def test_assemble_leaves_a_model_that_only_answers(tmp_path):
    _, base = trained(tmp_path)
    pack(tmp_path / "run", tmp_path / "published", base, {})
    model, processor = assemble(tmp_path / "published")
    assert not model.training and model.dtype == torch.bfloat16 and not hasattr(model, "peft_config")
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert processor.image_token == "<image>"
