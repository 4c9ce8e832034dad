"""A tiny VIFT checkpoint with random weights, complete with code and processor, for the room."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    import torch

    import modeling_vift
    import vift_hub
    from modeling_vift import VIFTConfig, VIFTForConditionalGeneration
    from vift_microworld import build_processor

    processor = build_processor(Path(vift_hub.__file__).with_name("chat_template.jinja"))
    tokenizer = processor.tokenizer
    torch.manual_seed(0)
    model = VIFTForConditionalGeneration(
        VIFTConfig(
            vision_config={
                "model_type": "siglip_vision_model",
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 48,
                "patch_size": 16,
                "vision_use_head": False,
            },
            text_config={
                "model_type": "qwen2",
                "vocab_size": len(tokenizer),
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 4,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "max_position_embeddings": 512,
                "bos_token_id": None,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            image_token_index=tokenizer.convert_tokens_to_ids(processor.image_token),
            image_seq_length=9,
            fusion_dose=1.6,
        )
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for file in Path(modeling_vift.__file__).parent.glob("*_vift.py"):
        shutil.copy(file, folder)
    return folder
