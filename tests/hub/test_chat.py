"""Any tokenizer's chat template: its text stays, what an assistant says is marked, pictures have their place."""

import pytest

from tests.hub.test_parts import CHATML, INSTRUCT, THINKING, TRIMMED, tokenizer
from vift_hub.chat import template_for

MARKED = CHATML.replace("{{ message['content'] }}", "{% generation %}{{ message['content'] }}{% endgeneration %}")


@pytest.mark.parametrize("template", [CHATML, TRIMMED, THINKING, INSTRUCT, MARKED])
def test_any_template_is_marked_and_renders_as_before(template):
    made = tokenizer(template)
    marked, end = template_for(made, "language_model=x")
    assert end == "<|im_end|>"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    options = {"tokenize": False, "add_generation_prompt": True}
    plain = template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    for some in (turns, turns[:1], [{"role": "system", "content": "s"}, *turns][: 4 if template != INSTRUCT else 0]):
        if some:
            old = made.apply_chat_template(some, chat_template=plain, **options)
            assert made.apply_chat_template(some, chat_template=marked, **options) == old
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]
    assert "<image>a" in made.apply_chat_template(parts, chat_template=marked, **options)
    whole = made.apply_chat_template(
        [*turns, {"role": "assistant", "content": "d e"}], chat_template=marked, tokenize=True, return_dict=True,
        return_assistant_tokens_mask=True,
    )  # fmt: skip
    said = made.decode([i for i, mask in zip(whole["input_ids"], whole["assistant_masks"]) if mask])
    said = said.replace("<think>\n\n</think>\n\n", "").replace(" <|im_end|>", "<|im_end|>").replace("> d", ">d")
    assert said.strip() == "b<|im_end|>d e<|im_end|>"


def test_a_templates_own_words_are_not_ours():
    """The names that the template around it uses for its texts."""
    made = tokenizer(CHATML.replace("Be brief.", "SAID BEGIN END TEMPLATE"))
    marked, _ = template_for(made, "language_model=x")
    turns = [{"role": "user", "content": "a"}]
    assert "SAID BEGIN END TEMPLATE" in made.apply_chat_template(turns, chat_template=marked, tokenize=False)
