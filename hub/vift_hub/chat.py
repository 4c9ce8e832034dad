"""A tokenizer's own chat template, made fit for pictures and for training.

Around the template, which sees texts only: parts of a content become one text, in which `<image>` stands for a
picture; and what an assistant says, up to and with the token that ends it, is marked (`{% generation %}`), which a
loss on answers alone needs. An answer goes through the template as one placeholder that is replaced afterwards.
"""

import json
import re
from pathlib import Path

OWN = Path(__file__).with_name("chat_template.jinja")  # ChatML, for tokenizers without a template
SAID = "\ue000"  # of Unicode's private use: no text holds it
AROUND = """{%- set turns = namespace(all=[], said=[]) -%}
{%- for message in messages -%}
    {%- set text = namespace(all='') -%}
    {%- if message['content'] is string -%}
        {%- set text.all = message['content'] -%}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'image' -%}
                {%- set text.all = text.all + '<image>' -%}
            {%- elif part['type'] == 'text' -%}
                {%- set text.all = text.all + part['text'] -%}
            {%- else -%}
                {{- raise_exception("content part type '" + part['type'] + "' is unknown: use 'image' or 'text'") -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {%- if message['role'] == 'assistant' -%}
        {%- set turns.said = turns.said + [text.all] -%}
        {%- set text.all = SAID -%}
    {%- endif -%}
    {%- set turns.all = turns.all + [{'role': message['role'], 'content': text.all}] -%}
{%- endfor -%}
{%- set messages = turns.all -%}
{% set rendered %}{{ '' }}TEMPLATE{{ '' }}{% endset %}
{%- set pieces = rendered.split(SAID) -%}
{%- set before = namespace(text=pieces[0]) -%}
{%- for said in turns.said -%}
    {%- set begun = before.text.endswith(BEGIN) -%}
    {{- before.text[:before.text|length - (BEGIN|length if begun else 0)] -}}
    {%- generation -%}
        {{- (BEGIN if begun else '') + said + END -}}
    {%- endgeneration -%}
    {%- set before.text = pieces[loop.index][END|length:] -%}
{%- endfor -%}
{{- before.text -}}
"""


def template_for(tokenizer, argument: str) -> tuple[str, str]:
    """
    (chat template, token that ends an answer) of a tokenizer.

    Raises:
        ValueError: no template and no ChatML tokens, an answer that no special token ends, or a template in which
            the prompt is no prefix of prompt and answer; `argument` is what the user calls the language model.
    """
    own = tokenizer.chat_template
    if own is None:
        missing = [token for token in ("<|im_start|>", "<|im_end|>") if token not in tokenizer.get_vocab()]
        if missing:
            raise ValueError(
                f"{argument}: its tokenizer has no chat template, and lacks {', '.join(missing)} (ChatML)"
            )
        return OWN.read_text(encoding="utf-8"), "<|im_end|>"
    own = own if isinstance(own, str) else own["default"]

    def rendered(template, *contents, add_generation_prompt=False) -> str:
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
        options = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
        return tokenizer.apply_chat_template(turns, chat_template=template, **options)

    try:
        prompt, whole = rendered(own, "a", add_generation_prompt=True), rendered(own, "a", SAID)
    except Exception as error:  # templates raise what they like
        raise ValueError(f"{argument}: its chat template does not render ({type(error).__name__}: {error})") from error
    special = sorted({*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())})
    after = whole.partition(SAID)[2]
    ended = re.match(rf"(.*?)({'|'.join(map(re.escape, special))})", after, re.DOTALL) if special else None
    if not whole.startswith(prompt) or ended is None:
        reason = "does not end an answer with a special token" if whole.startswith(prompt) else "changes the prompt"
        raise ValueError(f"{argument}: its chat template {reason}, so that answers cannot be learnt or ended")
    begin, end = whole[len(prompt) :].partition(SAID)[0], ended[0]
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", own).removesuffix("\n")
    names = {"SAID": json.dumps(SAID), "BEGIN": json.dumps(begin), "END": json.dumps(end), "TEMPLATE": plain}
    template = re.sub("|".join(names), lambda name: names[name[0]], AROUND)  # once: texts may hold these words
    check(tokenizer, own, template, rendered, begin, end, argument)
    return template, ended[2]


def check(tokenizer, own: str, template: str, rendered, begin: str, end: str, argument: str) -> None:
    """The new template gives the old one's text; what it marks is what an assistant says."""
    turns = ["What is it?", "A cat.", "And now?", "Two dogs."]
    marked = tokenizer.apply_chat_template(
        [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)],
        chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
    )  # fmt: skip
    answers = tokenizer.decode([i for i, m in zip(marked["input_ids"], marked["assistant_masks"]) if m])
    same = rendered(template, *turns) == rendered(own, *turns)
    if not same or "".join(answers.split()) not in {"".join(f"{a}A cat.{end}{b}Two dogs.{end}".split())
                                                     for a in ("", begin) for b in ("", begin)}:  # fmt: skip
        raise ValueError(f"{argument}: its chat template cannot be marked for training: {answers!r} would be learnt")
