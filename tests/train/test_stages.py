"""What a run trains, and what it refuses before its first step."""

import copy
import re

import pytest
import torch

from tests.train.tiny_run import FEATURES, Dataset, dataset, row, trainer
from vift_train.config import parse_band
from vift_train.trainer import is_trained, module_of


def changed(run, before):
    return {name for name, p in run.model.named_parameters() if not torch.equal(p.detach(), before[name])}


def train_and_compare(run):
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.train()
    return changed(run, before)


def test_a_band_trains_exactly_its_layers(tmp_path):
    run = trainer(tmp_path / "start", tmp_path / "out", max_steps=2, train_layers="1:3", save_strategy="no")
    names = train_and_compare(run)
    language = {name for name in names if module_of(name) == "language_model"}
    assert {int(re.search(r"layers\.(\d+)\.", name)[1]) for name in language} == {1, 2}
    assert language == {n for n, _ in run.model.named_parameters() if re.search(r"language_model.*layers\.[12]\.", n)}
    assert {module_of(name) for name in names} == {"connector", "language_model"}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_band_with_a_frozen_connector_sends_no_gradient_below_it(checkpointing, tmp_path):
    run = trainer(
        tmp_path / "start", tmp_path / "out", max_steps=1, train_layers="2:4", train_connector=False,
        activation_checkpointing=checkpointing, save_strategy="no",
    )  # fmt: skip
    reached = []
    for index, layer in enumerate(run.model.model.language_model.layers):
        layer.register_full_backward_hook(lambda *_, index=index: reached.append(index))
    run.train()
    assert set(reached) == {2, 3}


def test_a_text_step_leaves_the_image_side_bit_equal(tmp_path):
    run = trainer(
        tmp_path / "start", tmp_path / "out", dataset(0, 8), max_steps=2, train_vision_tower=True, save_strategy="no"
    )
    assert {module_of(name) for name in train_and_compare(run)} == {"language_model"}


def test_lora_on_the_language_model_only(tmp_path):
    from peft import LoraConfig

    run = trainer(
        tmp_path / "start", tmp_path / "out", max_steps=3, train_layers="1:3", save_strategy="no",
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    )  # fmt: skip
    names = train_and_compare(run)
    assert {int(re.search(r"layers\.(\d+)\.", n)[1]) for n in names if "lora" in n} == {1, 2}
    assert not any("vision_tower" in name for name in names)
    assert {module_of(name) for name in names} == {"connector", "language_model"}


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"stage": 3}, "stage=3 must be one of 1, 2"),
        ({"stage": 1, "train_connector": False}, "all off"),
        ({"train_layers": "2:9"}, "train_layers='2:9' must be a band .* inside 0:4"),
        ({"train_layers": "3:1"}, "train_layers='3:1'"),
        ({"train_layers": "1:2", "train_language_model": False}, "contradicts train_language_model=False"),
        ({"train_connector": False, "connector_lr": 1e-3}, "connector_lr=0.001 is set, but connector is not trained"),
        ({"vision_tower_lr": 1e-3}, "vision_tower_lr=0.001 is set, but vision_tower is not trained"),
        ({"modality_order": "sorted"}, "modality_order='sorted' must be one of even, random"),
        ({"chunk_steps": 0}, "chunk_steps=0 must be at least 1"),
        ({"text_weight": -1.0}, "text_weight=-1.0"),
        ({"assistant_only_loss": False}, "assistant_only_loss=False would train on image tokens"),
        ({"max_length": 8}, "image"),
    ],
)
def test_contradictions_are_refused_at_start(kwargs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path / "start", tmp_path / "out", **kwargs)


def bad(change):
    one = copy.deepcopy(row(0, "image"))
    change(one)
    return Dataset.from_list([one, row(1, "text")], features=FEATURES)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: r.update(images=[]), "row 'image-0': modality='image' but 0 images"),
        (lambda r: r.update(modality="text"), "row 'image-0': modality='text' but 1 images"),
        (lambda r: r.update(images=r["images"] * 2), "row 'image-0': 1 image placeholders but 2 images"),
        (lambda r: r["messages"].pop(), "row 'image-0': no token to learn from"),
    ],
)
def test_a_bad_row_is_refused_by_its_id(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path / "start", tmp_path / "out", bad(change))


def test_text_rows_are_refused_where_they_would_train_nothing(tmp_path):
    with pytest.raises(ValueError, match="row 'text-.' is a text row, but the language model is not trained"):
        trainer(tmp_path / "start", tmp_path / "out", stage=1)


def test_missing_columns_are_named(tmp_path):
    with pytest.raises(ValueError, match="lacks the columns modality"):
        trainer(tmp_path / "start", tmp_path / "out", dataset(2, 2).remove_columns("modality"))


@pytest.mark.parametrize("images, texts", [(7, 0), (0, 5), (1, 0), (0, 1), (1, 1)])
def test_one_kind_of_rows_or_one_row_works(images, texts, tmp_path):
    run = trainer(tmp_path / "start", tmp_path / "out", dataset(images, texts), num_train_epochs=1, save_strategy="no")
    run.train()
    assert run.state.global_step == -(-images // 4) + -(-texts // 4)


def test_the_band_and_the_stage_decide_together():
    assert parse_band("8:20", 28) == range(8, 20)
    assert parse_band(":4", 28) == range(4) and parse_band("24:", 28) == range(24, 28)

    class Args:
        train_vision_tower, train_connector, train_language_model = False, True, True

    assert is_trained("model.language_model.layers.8.mlp.up_proj.weight", Args, range(8, 20))
    assert not is_trained("model.language_model.layers.20.mlp.up_proj.weight", Args, range(8, 20))
    assert not is_trained("model.language_model.embed_tokens.weight", Args, range(8, 20))
    assert not is_trained("lm_head.weight", Args, range(8, 20)) and is_trained("lm_head.weight", Args, None)
