"""One question set, many ways to ask it: a condition is a function, and `CONDITIONS` has them all by name.

A condition takes an `Engine`, rows of `vift_microworld.visual_questions` and keywords (`batch_size`, `max_new_tokens`,
its own, and those of `generate()` that set the fusion) and returns one `Answer` a row. The first line of its docstring
is what pages say of it. `evaluate` asks under a condition and returns the words.
"""

import random

from transformers import LogitsProcessorList

from vift_microworld import language

from ..engine import Answer, Engine
from .baselines import LogitMixing, merge_language_model, random_like, static_stream
from .generate import after, generate, prompts_of

# alpha, no fusion of the answer's tokens, and about the paper's beta x fused layers (0.1 to 0.15 times 14)
PAPER = {"alpha": 1.0, "fusion_answer": False, "dose": 2.0}


def unfused(engine, rows, **kwargs):
    """the picture and the question, plain generate()"""
    return generate(engine, prompts_of(engine, rows), fusion=False, **kwargs)


def fused(engine, rows, fusion=True, **kwargs):
    """the same, fused as the checkpoint's config says"""
    return generate(engine, prompts_of(engine, rows), fusion=fusion, **kwargs)


def blind(engine, rows, **kwargs):
    """the question alone"""
    return generate(engine, prompts_of(engine, rows, image=False), fusion=False, **kwargs)


def oracle_text(engine, rows, **kwargs):
    """the scene in words and the question, no picture"""
    texts = [f"{row['scene_text']} {row['question']}" for row in rows]
    return generate(engine, prompts_of(engine, rows, texts, image=False), fusion=False, **kwargs)


def caption_first(engine, rows, max_new_tokens=12, query=None, joined=None, caption_tokens=48, **kwargs):
    """the model's own caption, then text only: caption and question"""
    query = prompts_of(engine, rows, [query or language.DETAILED_QUERIES[0]] * len(rows))
    captions = generate(engine, query, fusion=False, max_new_tokens=caption_tokens, **kwargs)
    joined = joined or read_back
    texts = [joined(caption.text, row["question"]) for caption, row in zip(captions, rows)]
    prompts = prompts_of(engine, rows, texts, image=False)
    return after(captions, generate(engine, prompts, fusion=False, max_new_tokens=max_new_tokens, **kwargs))


def read_back(caption: str, question: str) -> str:
    """A caption of one's own as the scene in words (without "the picture shows 3 digits :"), and the question."""
    return f"{caption.split(':', 1)[-1].strip()} {question}"


def lowest_half(engine, rows, **kwargs):
    """the same in the lowest half of the layers"""
    half = max(1, engine.model.config.get_text_config().num_hidden_layers // 2)
    return fused(engine, rows, **PAPER | {"fusion_layers": f"0:{half}"} | kwargs)


def random_vectors(engine, rows, **kwargs):
    """fused with random vectors of the text stream's norms"""

    def stream(batch, inputs):
        return random_like(_text_run(engine, inputs, kwargs), seed=batch[0])

    return _with_stream(engine, rows, stream, **kwargs)


def other_question(engine, rows, **kwargs):
    """fused with the text stream of another question of the same length"""
    prompts = prompts_of(engine, rows)
    lengths = [len(ids) for ids in engine.tokenizer([text for text, _ in prompts])["input_ids"]]
    partners = _partners(rows, lengths)

    def stream(batch, inputs):
        others = [(prompts[partners[i]][0], prompts[i][1]) for i in batch]
        return _text_run(engine, engine.inputs(others), kwargs)

    return _with_stream(engine, rows, stream, **kwargs)


def wrong_image(engine, rows, **kwargs):
    """fused, with the picture of another question"""
    shift = len(rows) // 2 + 1
    pictures = [row["images"] for row in rows[shift:] + rows[:shift]]
    return fused(engine, [row | {"images": images} for row, images in zip(rows, pictures)], **kwargs)


def forced_first_token(engine, rows, **kwargs):
    """the first token of the blind answer forced, then plain with the picture"""
    first = blind(engine, rows, **kwargs | {"max_new_tokens": 1})
    prompts = [(text + word.text, images) for (text, images), word in zip(prompts_of(engine, rows), first)]
    answers = after(first, generate(engine, prompts, fusion=False, **kwargs))
    for word, answer in zip(first, answers):
        answer.text = f"{word.text} {answer.text}".strip()
    return answers


def logit_mix(engine, rows, weight=0.5, **kwargs):
    """log-probabilities with and without the picture averaged, token by token"""

    def mixing(batch, inputs):
        mixer = LogitMixing(engine.model, inputs["input_ids"], inputs["attention_mask"], weight)
        return {"logits_processor": LogitsProcessorList([mixer])}

    return unfused(engine, rows, per_batch=mixing, **kwargs)


def logit_contrast(engine, rows, weight=-0.5, **kwargs):
    """log-probabilities without the picture subtracted, token by token"""
    return logit_mix(engine, rows, weight=weight, **kwargs)


def merged_weights(engine, rows, language_model=None, weight=0.5, **kwargs):
    """the text LLM of before merged back into the weights, unfused"""
    if language_model is None:
        raise ValueError("merged weights need language_model, the text LLM of before")
    merged = merge_language_model(engine.model, language_model, weight)
    return unfused(Engine(merged, engine.processor), rows, **kwargs)


def merged_layers(engine, rows, weights=None, **kwargs):
    """the same with a weight of its own for each layer"""
    if weights is None:
        raise ValueError("merged_layers needs weights, one a layer and one for all else")
    return merged_weights(engine, rows, weight=weights, **kwargs)


def static_vector(engine, rows, vectors=None, **kwargs):
    """fused with the mean text stream of other questions, one for all: the mode without the content"""
    if vectors is None:
        raise ValueError("static_vector needs vectors, see baselines.static_vectors()")
    return _with_stream(engine, rows, lambda batch, inputs: static_stream(engine.model, inputs, vectors), **kwargs)


def otherwise(meaning: str, **settings):
    """The condition of fusing with `settings` of `generate()` in the place of the checkpoint's."""

    def condition(engine, rows, **kwargs):
        return fused(engine, rows, **settings | kwargs)

    condition.__doc__ = meaning
    return condition


CONDITIONS = {
    "unfused": unfused,
    "fused": fused,
    "blind": blind,
    "oracle_text": oracle_text,
    "caption_first": caption_first,
    "top_half": otherwise(
        "fused as in the paper: alpha 1, dose 2 (beta x fused layers), the top half of the layers",
        **PAPER, fusion_layers=0.5,
    ),
    "all_layers": otherwise("the same in all layers", **PAPER, fusion_layers=1.0),
    "lowest_half": lowest_half,
    "random_vectors": random_vectors,
    "other_question": other_question,
    "wrong_image": wrong_image,
    "forced_first_token": forced_first_token,
    "logit_mix": logit_mix,
    "logit_contrast": logit_contrast,
    "merged_weights": merged_weights,
    "merged_layers": merged_layers,
    "static_vector": static_vector,
    "prompt_only": otherwise(
        "fused in the prompt only, as the paper does: not the answer's own tokens", fusion_answer=False
    ),
    "alpha_one": otherwise("fused at the checkpoint's layers and β, α = 1", alpha=1.0),
    "span_after_image": otherwise("fused, only the tokens after the picture", fusion_span="after_image"),
    "span_reference": otherwise("fused, the span of the authors' released code", fusion_span="reference"),
    "rule_independent": otherwise(
        "fused in the prompt, nothing compounds over the layers (the literal reading)",
        fusion_rule="independent", fusion_answer=False,
    ),
    "norm_kept": otherwise("fused, each state rescaled to its norm", fusion_norm=True),
    # asked in many bands of layers
    "band": otherwise("fused as in the paper, in a band of layers at a dose", **PAPER),
    "replaced": otherwise("the text tokens' states replaced by the text run's at one layer", alpha=0.0, dose=1.0),
}  # fmt: skip


def meaning(name: str) -> str:
    """What pages say of a condition."""
    return CONDITIONS[name].__doc__.strip().split("\n")[0]


def ask(model, processor, questions, condition: str, **kwargs) -> list[Answer]:
    """
    Args:
        model, processor: a loaded VIFT checkpoint.
        questions: rows of `vift_microworld.visual_questions` (a Dataset or a list of dicts).
        condition: one of `CONDITIONS`.
        kwargs: `batch_size`, `max_new_tokens`, the condition's own keywords, and fusion arguments of `generate()`.

    Returns:
        One `Answer` a question: its text, and the tokens that were decoded for it (a caption's included).

    Raises:
        ValueError: an unknown condition, what it needs is missing, or a bad fusion argument.
    """
    if condition not in CONDITIONS:
        raise ValueError(f"condition={condition!r} must be one of {', '.join(CONDITIONS)}")
    return CONDITIONS[condition](Engine(model, processor), [questions[i] for i in range(len(questions))], **kwargs)


def evaluate(model, processor, questions, condition: str = "fused", **kwargs) -> list[str]:
    """The texts of `ask`, one per question."""
    return [answer.text for answer in ask(model, processor, questions, condition, **kwargs)]


def _with_stream(engine, rows, stream, **kwargs):
    """Fused in the prompt with `stream(batch, inputs)` in the place of the prompts' own text run.

    Another stream is there for the prompt alone: none goes on with the answer.
    """
    kwargs = {"fusion_answer": False} | kwargs
    return fused(engine, rows, per_batch=lambda batch, inputs: {"text_stream": stream(batch, inputs)}, **kwargs)


def _text_run(engine, inputs, kwargs):
    return engine.model.text_run(inputs["input_ids"], inputs["attention_mask"], kwargs.get("fusion_layers"))


def _partners(rows, lengths: list[int], seed: int = 0) -> list[int]:
    """For each question, another of the same token length, of another family where there is one."""
    rng = random.Random(seed)
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    partners = []
    for index, length in enumerate(lengths):
        others = [i for i in by_length[length] if rows[i]["question"] != rows[index]["question"]]
        foreign = [i for i in others if rows[i]["family"] != rows[index]["family"]]
        partners.append(rng.choice(foreign or others or [index]))
    return partners
