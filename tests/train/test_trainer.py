"""`VIFTTrainer`: each stage trains what it says, text steps leave the image side alone."""

import pytest
import torch
from datasets import concatenate_datasets

from modeling_vift import VIFTConfig, VIFTForConditionalGeneration
from vift_hub.join import CHAT_TEMPLATE
from vift_microworld import build_processor, detailed_captions, text_instructions
from vift_train.trainer import VIFTTrainer, VIFTTrainingConfig, module_of


@pytest.fixture(scope="module")
def processor():
    return build_processor(CHAT_TEMPLATE)


def tiny_model(processor):
    torch.manual_seed(0)
    return VIFTForConditionalGeneration(
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
                "vocab_size": len(processor.tokenizer),
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "bos_token_id": None,
                "eos_token_id": processor.tokenizer.eos_token_id,
                "pad_token_id": processor.tokenizer.pad_token_id,
            },
            image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=9,
        )
    )


def trainer_for(model, processor, dataset, tmp_path, **settings):
    settings = {"stage": 2, "max_steps": 3, "per_device_train_batch_size": 4} | settings
    args = VIFTTrainingConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        learning_rate=1e-2,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    return VIFTTrainer(model, args, dataset, processing_class=processor)


def changed_modules(model, before):
    return {
        module_of(name) for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])
    }


@pytest.mark.parametrize(
    "settings, dataset, expected",
    [
        ({"stage": 1}, "captions", {"connector"}),
        ({"stage": 2}, "captions", {"connector", "language_model"}),
        ({"stage": 2, "train_vision_tower": True}, "captions", {"vision_tower", "connector", "language_model"}),
        ({"stage": 2, "train_connector": False}, "captions", {"language_model"}),
        ({"stage": 2, "train_vision_tower": True}, "text", {"language_model"}),
    ],
)
def test_a_stage_changes_exactly_what_it_trains(settings, dataset, expected, processor, tmp_path):
    rows = detailed_captions(12) if dataset == "captions" else text_instructions(12)
    model = tiny_model(processor)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer_for(model, processor, rows, tmp_path, **settings).train()
    assert changed_modules(model, before) == expected


def test_the_loss_is_on_the_assistants_tokens(processor, tmp_path):
    rows = detailed_captions(4)
    trainer = trainer_for(tiny_model(processor), processor, rows, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    for ids, labels in zip(batch["input_ids"], batch["labels"]):
        said = processor.tokenizer.decode(ids[labels != -100])
        assert said.startswith("the picture shows") and said.endswith("<|im_end|>")
        assert "<image>" not in said


def test_every_step_is_pure_and_text_steps_carry_no_pixels(processor, tmp_path):
    rows = concatenate_datasets([detailed_captions(10), text_instructions(6)])
    trainer = trainer_for(tiny_model(processor), processor, rows, tmp_path)
    image_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    kinds = set()
    for batch in trainer.get_train_dataloader():
        with_image = (batch["input_ids"] == image_id).any(dim=1)
        assert with_image.all() or not with_image.any()
        assert bool(with_image[0]) == ("pixel_values" in batch)
        kinds.add(bool(with_image[0]))
    assert kinds == {True, False}


def test_learning_rates_per_module(processor, tmp_path):
    trainer = trainer_for(tiny_model(processor), processor, detailed_captions(4), tmp_path, connector_lr=5e-4)
    groups = trainer.create_optimizer().param_groups
    assert groups[0]["lr"] == 1e-2 and {g["lr"] for g in groups} == {1e-2, 5e-4}


def test_bad_settings_are_refused(processor, tmp_path):
    with pytest.raises(ValueError, match="stage=3"):
        trainer_for(tiny_model(processor), processor, detailed_captions(4), tmp_path, stage=3)
    with pytest.raises(ValueError, match="all off"):
        trainer_for(tiny_model(processor), processor, detailed_captions(4), tmp_path, stage=1, train_connector=False)
    with pytest.raises(ValueError, match="lacks the columns modality"):
        rows = detailed_captions(4).remove_columns("modality")
        trainer_for(tiny_model(processor), processor, rows, tmp_path)
