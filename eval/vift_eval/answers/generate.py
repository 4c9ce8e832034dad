"""Greedy answers to questions about pictures: the one prompt and the one batch that every condition is made of.

A row is one of `vift_microworld.visual_questions`. Answers are `engine.Answer`s, with the tokens that they took.
"""

from dataclasses import replace

import torch

from vift_microworld.data import user_turn

from ..engine import Answer, Engine, Request


def prompts_of(engine: Engine, rows, texts: list[str] | None = None, image: bool = True) -> list[tuple[str, list]]:
    """(rendered chat of one user turn, its pictures) of each row; `texts` in the place of the rows' questions."""
    texts = [row["question"] for row in rows] if texts is None else texts
    turns = [[user_turn(text, image)] for text in texts]
    rendered = engine.processor.apply_chat_template(turns, add_generation_prompt=True)
    return [(text, list(row["images"]) if image else []) for text, row in zip(rendered, rows)]


@torch.inference_mode()
def generate(engine: Engine, prompts, per_batch=None, batch_size=128, max_new_tokens=12, **kwargs) -> list[Answer]:
    """
    Greedy answers in the order of `prompts`; batches hold prompts of like length.

    Args:
        prompts: (text, pictures) each, see `prompts_of`.
        per_batch (*optional*): function of a batch's indices and inputs that returns more keywords of `generate()`.
        kwargs: keywords of `generate()`; fusion is as the config says, where they say nothing.
    """
    request = Request(max_new_tokens, {"do_sample": False}, kwargs)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i][0].split()))
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        inputs = engine.inputs([prompts[i] for i in batch])
        # no stream is kept for the next batch: an answer costs here what it costs alone
        extra = {"text_stream": None} | (per_batch(batch, inputs) if per_batch else {})
        answers |= zip(batch, engine.generate(inputs, request, **extra))
    return [answers[i] for i in range(len(prompts))]


def decoded(answer: Answer) -> int:
    """Tokens that were decoded for an answer, the end of the turn included."""
    return answer.output_tokens + (not answer.truncated)


def after(before: list[Answer], answers: list[Answer]) -> list[Answer]:
    """`answers` with the tokens of what had to be decoded before them."""
    return [replace(b, output_tokens=b.output_tokens + decoded(a)) for a, b in zip(before, answers)]
