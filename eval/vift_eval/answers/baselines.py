"""Training-free rivals of ability fusion, and what each way of asking costs.

    logit_mix, logit_contrast   log p = (1 - w) log p(. | v, q) + w log p(. | q), token by token, w > 0 and w < 0
    merged_weights              language model = (1 - w) * the tuned one + w * the text LLM it was before; unfused
    static_vector               fused with one mean text stream for all questions (by layer and place from the end)

`WAYS` are these and the modes of `micro.py` (caption first, blind, random vectors, another question's stream, wrong
image, forced first token, gold); `ask` answers questions in any of them, `cost` times them side by side.
Shapes: B rows, S tokens, N text tokens of all rows, P places from the end, D hidden size, V vocabulary.
"""

import copy
import time

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from modeling_vift.fusion_vift import TextStream, position_in_row, text_positions

from .conditions import MODES, _generate, _plain, _prompts, evaluate

RIVALS = {
    "logit_mix": "log-probabilities with and without the picture averaged, token by token",
    "logit_contrast": "log-probabilities without the picture subtracted, token by token",
    "merged_weights": "the text LLM of before merged back into the weights, unfused",
    "static_vector": "fused with the mean text stream of other questions, one for all: the mode without the content",
}
WAYS = MODES | RIVALS
# what each rival takes besides the questions, when the caller chose nothing
DEFAULTS = {"logit_mix": {"weight": 0.5}, "logit_contrast": {"weight": -0.5}, "merged_weights": {"weight": 0.5}}


class LogitMixing(LogitsProcessor):
    """
    Mixes each step's scores with those of the same text without its image, read again at every step.

    Args:
        model: a VIFT model.
        input_ids, attention_mask (B, S): the prompts with image placeholders.
        weight: of the text run; 0 leaves the unfused answer, below 0 the text run is subtracted.
    """

    def __init__(self, model, input_ids, attention_mask, weight: float):
        self.model, self.weight, self.prompt_length = model, weight, input_ids.shape[1]
        rows, columns = text_positions(input_ids, attention_mask, [model.config.image_token_id])
        counts = torch.bincount(rows, minlength=len(input_ids))
        length = int(counts.max())
        places = length - counts[rows] + position_in_row(rows)  # left-padded
        self.ids = input_ids.new_zeros(len(input_ids), length)
        self.ids[rows, places] = input_ids[rows, columns]
        self.mask = torch.zeros_like(self.ids)
        self.mask[rows, places] = 1

    def __call__(self, input_ids, scores):
        answered = input_ids[:, self.prompt_length :]
        ids = torch.cat([self.ids, answered], dim=1)
        mask = torch.cat([self.mask, torch.ones_like(answered)], dim=1)
        blind = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=1,
        ).logits[:, -1]  # (B, V)
        seen = scores.float().log_softmax(dim=-1)
        return (1 - self.weight) * seen + self.weight * blind.float().log_softmax(dim=-1)


def merge_language_model(model, language_model, weight: float):
    """
    A copy of `model` with language model (1 - weight) * its own + weight * `language_model`.

    Args:
        model: a VIFT model.
        language_model: the causal LM that it was before training (same architecture).
        weight: in [0, 1].

    Raises:
        ValueError: a weight outside [0, 1], or weights that do not fit, by name and shape.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight} must be in [0, 1]")
    merged = copy.deepcopy(model)
    own = dict(merged.model.language_model.named_parameters())
    other = dict(language_model.model.named_parameters())
    if not merged.config.get_text_config().tie_word_embeddings:
        own["lm_head"], other["lm_head"] = merged.lm_head.weight, language_model.lm_head.weight
    for name, parameter in own.items():
        if name not in other or other[name].shape != parameter.shape:
            found = tuple(other[name].shape) if name in other else "nothing"
            raise ValueError(f"language_model has {found} for {name}, the model {tuple(parameter.shape)}")
        # a + w (b - a): merging a model with itself changes no bit
        parameter.data.lerp_(other[name].data.to(parameter), weight)
    return merged


@torch.inference_mode()
def static_vectors(model, processor, questions, fusion_layers=None) -> dict[int, torch.Tensor]:
    """Layer -> (P, D): the mean text stream over `questions` (unlabelled), place 0 = the prompt's last token."""
    prompts = _prompts(processor, questions, list(questions["question"]), image=True)
    pictures = [row[0] for row in questions["images"]]
    inputs = processor(text=prompts, images=pictures, padding=True, padding_side="left", return_tensors="pt")
    inputs = inputs.to(model.device)
    stream = model.text_stream(inputs["input_ids"], inputs["attention_mask"], fusion_layers)
    places = _places_from_end(stream.rows)
    counts = torch.bincount(places)[:, None]
    return {
        layer: torch.zeros(len(counts), states.shape[-1]).index_add_(0, places, states.float()) / counts
        for layer, states in stream.states.items()
    }


def _places_from_end(rows: torch.Tensor) -> torch.Tensor:
    return torch.bincount(rows)[rows] - 1 - position_in_row(rows)


def static_stream(model, inputs, vectors: dict[int, torch.Tensor]) -> TextStream:
    """`vectors` in the place of the prompts' own text stream: no text run at all."""
    rows, columns = text_positions(inputs["input_ids"], inputs["attention_mask"], [model.config.image_token_id])
    longest = len(next(iter(vectors.values())))
    places = _places_from_end(rows).clamp(max=longest - 1)  # a longer prompt repeats the first vector
    return TextStream({layer: vector[places] for layer, vector in vectors.items()}, rows, columns)


def ask(model, processor, questions, way: str, *, language_model=None, vectors=None, weight=None, **kwargs):
    """
    Args:
        model, processor, questions, kwargs: as in `micro.evaluate`.
        way: one of `WAYS`.
        language_model: the text LLM of before, for `merged_weights`.
        vectors: of `static_vectors`, for `static_vector`.
        weight: of the rivals that mix, see `DEFAULTS`.

    Returns:
        One answer a question.

    Raises:
        ValueError: an unknown way, or what it needs is missing.
    """
    if way in MODES:
        return evaluate(model, processor, questions, way, **kwargs)
    if way not in RIVALS:
        raise ValueError(f"way must be one of {', '.join(WAYS)}, got {way!r}")
    if way == "merged_weights" and language_model is None:
        raise ValueError("way='merged_weights' needs language_model, the text LLM of before")
    if way == "static_vector" and vectors is None:
        raise ValueError("way='static_vector' needs vectors, see static_vectors()")
    weight = DEFAULTS[way]["weight"] if weight is None and way in DEFAULTS else weight
    if way == "merged_weights":
        merged = merge_language_model(model, language_model, weight)
        return evaluate(merged, processor, questions, "unfused", **kwargs)
    rows = [questions[i] for i in range(len(questions))]
    prompts = _prompts(processor, rows, [row["question"] for row in rows], image=True)
    pictures = [row["images"][0] for row in rows]
    if way == "static_vector":
        kwargs = {"fusion": True, "fusion_answer": False} | kwargs
        kwargs["per_batch"] = lambda batch, inputs: {"text_stream": static_stream(model, inputs, vectors)}
        return _generate(model, processor, prompts, pictures, **kwargs)

    def mixing(batch, inputs):
        mixer = LogitMixing(model, inputs["input_ids"], inputs["attention_mask"], weight)
        return {"logits_processor": LogitsProcessorList([mixer])}

    return _generate(model, processor, prompts, pictures, fusion=False, per_batch=mixing, **_plain(kwargs))


def cost(model, processor, questions, ways: dict[str, dict], max_new_tokens: int = 48) -> dict[str, dict]:
    """
    Time to the whole answer, one question at a time, the ways taking turns; call it in a one-thread process.

    Args:
        ways: way -> keywords of `ask` (merge weights beforehand: that is paid once, and not per answer).

    Returns:
        way -> {"cpu_ms", "tokens"}: mean CPU milliseconds and decoded tokens an answer (a caption's included).
    """
    spent = {way: [] for way in ways}
    decoded = dict.fromkeys(ways, 0)
    generate = model.generate
    for index in range(len(questions)):
        one = questions.select([index])
        for way, kwargs in ways.items():

            def counting(*args, way=way, **given):
                output = generate(*args, **given)
                decoded[way] += output.shape[1] - given["input_ids"].shape[1]
                return output

            model.generate = counting
            try:
                start = time.process_time()
                ask(model, processor, one, way, max_new_tokens=max_new_tokens, **kwargs)
                spent[way].append(time.process_time() - start)
            finally:
                del model.generate
    return {
        way: {
            "cpu_ms": round(1000 * sum(seconds) / len(seconds), 2),
            "tokens": round(decoded[way] / len(questions), 2),
        }
        for way, seconds in spent.items()
    }
