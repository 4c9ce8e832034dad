"""What `generate()` promises of any model: the part of `GenerationTesterMixin`, which the source
distribution of transformers lacks."""

import tempfile

import torch
from transformers import set_seed

NEW = 4  # tokens each test generates


class GenerationCases:
    """Needs `model_tester` and `all_generative_model_classes`. With VIFT, prefills are fused."""

    def models(self):
        for model_class in self.all_generative_model_classes:
            set_seed(0)
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            config.text_config.initializer_range = 0.3  # far apart: rounding changes no token
            yield model_class(config).eval(), {name: value[:2] for name, value in inputs.items()}

    def generate(self, model, inputs, new=NEW, **options):
        defaults = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new}
        defaults |= {"suppress_tokens": [self.model_tester.image_token_id], "output_logits": True}
        return model.generate(**inputs, **defaults | options, return_dict_in_generate=True)

    def assert_same_answer(self, found, expected):
        """The same tokens, from the same logits."""
        self.assertEqual(found.sequences[:, -NEW:].tolist(), expected.sequences[:, -NEW:].tolist())
        logits = torch.stack(expected.logits)[-len(found.logits) :]
        torch.testing.assert_close(torch.stack(found.logits), logits, atol=1e-4, rtol=1e-4)

    def assert_same_answer_with(self, options, rows=2):
        """Greedy decoding with these options answers as it does without."""
        for model, inputs in self.models():
            inputs = {name: value[:rows] for name, value in inputs.items()}
            expected = self.generate(model, inputs)
            found = self.generate(model, inputs, **options(model) if callable(options) else options)
            self.assert_same_answer(found, expected)

    def test_promise_number_of_sequences_and_tokens(self):
        sample, beams = {"do_sample": True, "top_k": 10}, {"num_beams": 2}
        for options, number in (
            ({}, 2),
            (sample, 2),
            (sample | {"num_return_sequences": 3}, 6),
            (beams, 2),
            (beams | {"num_return_sequences": 2}, 4),
            (beams | sample, 2),
        ):
            for model, inputs in self.models():
                found = self.generate(model, inputs, **options).sequences
                self.assertEqual(found.shape, (number, inputs["input_ids"].shape[1] + NEW))

    def test_promise_dict_outputs(self):
        for model, inputs in self.models():
            length = inputs["input_ids"].shape[1]
            names = ("scores", "logits", "hidden_states", "attentions")
            model.set_attn_implementation("eager")
            found = self.generate(model, inputs, **{f"output_{name}": True for name in names})
            for name in names:
                self.assertEqual(len(found[name]), NEW)
            for step in range(NEW):
                now, seen = (1, length + step) if step else (length, length)
                self.assertEqual(found.scores[step].shape, (2, self.model_tester.vocab_size))
                self.assertEqual(len(found.hidden_states[step]), 3)
                self.assertEqual(found.hidden_states[step][-1].shape, (2, now, 32))
                self.assertEqual(found.attentions[step][-1].shape, (2, 4, now, seen))
            self.assertEqual(found.past_key_values.get_seq_length(), length + NEW - 1)

    def test_promise_no_cache(self):
        self.assert_same_answer_with({"use_cache": False})

    def test_promise_static_cache(self):
        self.assert_same_answer_with({"cache_implementation": "static", "disable_compile": True})

    def test_promise_chunked_prefill(self):
        self.assert_same_answer_with({"prefill_chunk_size": 5})

    def test_promise_prompt_lookup(self):
        self.assert_same_answer_with({"prompt_lookup_num_tokens": 2}, rows=1)

    def test_promise_assistant_model(self):
        self.assert_same_answer_with(lambda model: {"assistant_model": model}, rows=1)

    def test_promise_twice_the_same(self):
        self.assert_same_answer_with({})

    def test_promise_reloaded_model(self):
        for model, inputs in self.models():
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                again = type(model).from_pretrained(folder)
            self.assert_same_answer(self.generate(again, inputs), self.generate(model, inputs))

    def test_promise_attention_implementations(self):
        for model, inputs in self.models():
            expected = self.generate(model, inputs)
            for implementation in ("eager", "sdpa"):
                model.set_attn_implementation(implementation)
                self.assert_same_answer(self.generate(model, inputs), expected)

    def test_promise_left_padding(self):
        for model, inputs in self.models():
            expected = self.generate(model, inputs)
            pad = torch.full((2, 3), self.model_tester.text_config["pad_token_id"])
            padded = dict(inputs, input_ids=torch.cat([pad, inputs["input_ids"]], dim=1))
            padded["attention_mask"] = torch.cat([pad * 0, inputs["attention_mask"]], dim=1)
            self.assert_same_answer(self.generate(model, padded), expected)

    def test_promise_rows_are_independent(self):
        for model, inputs in self.models():
            expected = self.generate(model, inputs)
            for row in range(2):
                alone = self.generate(model, {name: value[[row]] for name, value in inputs.items()})
                self.assertEqual(alone.sequences[0].tolist(), expected.sequences[row].tolist())

    def test_promise_resumed_from_cache(self):
        """An answer cut short and continued on its cache is the answer in one go."""
        for model, inputs in self.models():
            expected = self.generate(model, inputs)
            first = self.generate(model, inputs, new=2)
            rest = {
                "input_ids": first.sequences,
                "attention_mask": torch.ones_like(first.sequences),
                "past_key_values": first.past_key_values,
            }
            self.assert_same_answer(self.generate(model, rest, new=2), expected)

    def test_promise_inputs_embeds_and_ids(self):
        """Embeddings in which the image has its place already."""
        for model, inputs in self.models():
            expected = self.generate(model, inputs)
            pixel_values = inputs.pop("pixel_values")
            with torch.no_grad():
                image = torch.cat(list(model.get_image_features(pixel_values).pooler_output))
                embeds = model.get_input_embeddings()(inputs["input_ids"])
            embeds[inputs["input_ids"] == self.model_tester.image_token_id] = image
            self.assert_same_answer(self.generate(model, inputs, inputs_embeds=embeds), expected)

    def test_promise_inputs_embeds(self):
        for model, inputs in self.models():
            expected = self.generate(model, inputs)
            embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
            self.assert_same_answer(self.generate(model, inputs, inputs_embeds=embeds), expected)
