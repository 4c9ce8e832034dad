"""transformers' tests for every model, on VIFT and on stock Llava with equal tiny parts.

Started by run_mixins.py. The source distribution of transformers carries `ModelTesterMixin`
(saving, loading, resizing, training, attention implementations, outputs, ...) and `ConfigTester`.
It leaves out `GenerationTesterMixin` and `ExportTesterMixin`, which the first imports: empty
classes stand in for them unless a checkout was named, and generation_cases.py has what `generate()`
promises. `PipelineTesterMixin` is of no use here: it loads models that transformers keeps on the
Hub.
"""

import importlib.util
import os
import re
import sys
import types
import unittest
from pathlib import Path

import torch
from transformers import AutoModel, LlavaConfig, LlavaForConditionalGeneration, LlavaModel
from transformers.models.auto import modeling_auto

ROOT = Path(os.environ["VIFT_TRANSFORMERS_ROOT"])


def transformers_tests() -> None:
    """Makes `tests` the package of transformers, with stand-ins for what is not there."""
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here), str(here.parents[1])]  # generation_cases, modeling_vift
    package = types.ModuleType("tests")
    package.__path__ = [str(ROOT / "tests")]
    sys.modules["tests"] = package

    def stand_in(name: str, **contents) -> None:
        if importlib.util.find_spec(name.rsplit(".", 1)[0]) is None:
            parent = types.ModuleType(name.rsplit(".", 1)[0])
            parent.__path__ = []
            sys.modules[parent.__name__] = parent
        if importlib.util.find_spec(name) is None:
            module = types.ModuleType(name)
            vars(module).update(contents)
            sys.modules[name] = module

    stand_in("tests.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    stand_in("tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    # Arguments that every config takes, each with a value that is not its default.
    common = {
        "return_dict": False,
        "output_hidden_states": True,
        "output_attentions": True,
        "dtype": "float16",
        "problem_type": "regression",
    }
    stand_in("tests.utils.test_configuration_utils", config_common_kwargs=common)


transformers_tests()

from generation_cases import GenerationCases  # noqa: E402
from tests.generation.test_utils import GenerationTesterMixin  # noqa: E402
from tests.test_configuration_common import ConfigTester  # noqa: E402
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor  # noqa: E402

from modeling_vift import VIFTConfig, VIFTForConditionalGeneration, VIFTModel  # noqa: E402

# The mixins know from these tables which class is a base model and which one takes labels.
AutoModel.register(VIFTConfig, VIFTModel)
modeling_auto.MODEL_MAPPING_NAMES["vift"] = "VIFTModel"
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["vift"] = "VIFTForConditionalGeneration"


class Tester:
    """A tiny SigLIP tower, a tiny Qwen2 decoder, and a batch of rows with an image and a text."""

    def __init__(self, config_class):
        self.config_class = config_class
        self.extra_arguments = {}
        self.is_training = True
        self.batch_size = 7  # the most a mixin asks for; less it would fill up with random ids
        self.num_hidden_layers = 2
        self.num_attention_heads = 4
        self.hidden_size = 32
        self.vocab_size = 99
        self.image_token_id = 4
        self.num_image_tokens = 16
        self.seq_length = 7 + self.num_image_tokens
        self.encoder_seq_length = self.seq_length
        self.vision_config = {
            "model_type": "siglip_vision_model",
            "image_size": 8,
            "patch_size": 2,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 37,
            "vision_use_head": False,
        }
        self.text_config = {
            "model_type": "qwen2",
            "vocab_size": 99,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 37,
            "max_position_embeddings": 512,
            "pad_token_id": 1,
            "bos_token_id": 2,
            "eos_token_id": 3,
        }

    def config_arguments(self) -> dict:
        return {
            "vision_config": dict(self.vision_config),
            "text_config": dict(self.text_config),
            "image_token_id": self.image_token_id,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            **self.extra_arguments,
        }

    def get_config(self):
        return self.config_class(**self.config_arguments())

    def prepare_config_and_inputs_for_common(self):
        first_word = self.image_token_id + 1
        shape = [self.batch_size, self.seq_length]
        input_ids = ids_tensor(shape, self.vocab_size - first_word) + first_word
        input_ids[:, : self.num_image_tokens] = self.image_token_id
        inputs = {
            "pixel_values": floats_tensor([self.batch_size, 3, 8, 8]),
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
        }
        return self.get_config(), inputs


class Cases(GenerationCases, ModelTesterMixin, GenerationTesterMixin):
    _is_composite = True
    # test_eager_matches_sdpa_inference passes input_ids and what is named here. Without images,
    # stock Llava takes the placeholders for words, and VIFT refuses the prompt.
    additional_model_inputs = ("pixel_values",)
    test_can_init_all_missing_weights_before_2023 = True  # our files carry no date: do not skip
    config_class = None

    def setUp(self):
        self.model_tester = Tester(self.config_class)
        arguments = self.model_tester.config_arguments()
        common = ["image_token_id", "vision_feature_layer", "vision_feature_select_strategy"]
        self.config_tester = ConfigTester(
            self,
            config_class=self.config_class,
            has_text_modality=False,
            common_properties=common,
            vision_feature_layer=arguments["vision_feature_layer"],
            vision_feature_select_strategy=arguments["vision_feature_select_strategy"],
        )

    def test_config(self):
        self.config_tester.run_common_tests()


class StockLlavaMixinTest(Cases, unittest.TestCase):
    config_class = LlavaConfig
    all_model_classes = (LlavaModel, LlavaForConditionalGeneration)


class VIFTMixinTest(Cases, unittest.TestCase):
    config_class = VIFTConfig
    all_model_classes = (VIFTModel, VIFTForConditionalGeneration)
    # Fusion is on, as by default, except in tests that ask for what fusion refuses.
    unfused = {
        "test_promise_inputs_embeds": "inputs_embeds without input_ids",
        "test_generate_from_inputs_embeds": "inputs_embeds, with input_ids and without",
        "test_generate_from_inputs_embeds_with_static_cache": "inputs_embeds without input_ids",
    }

    def setUp(self):
        super().setUp()
        name = re.sub(r"_\d+(_\w+)?$", "", self._testMethodName)  # without the parameters
        self.model_tester.extra_arguments = {"fusion_enabled": name not in self.unfused}
