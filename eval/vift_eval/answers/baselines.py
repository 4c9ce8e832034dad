"""What conditions without ability fusion of their own question are made of.

    logit mixing     log p = (1 - w) log p(. | v, q) + w log p(. | q), token by token; w < 0 subtracts the text run
    merged weights   language model = (1 - w) * the tuned one + w * the text LLM it was before: task arithmetic with
                     the coefficient 1 - w, one for all layers or one a layer
    static vectors   one mean text stream for all questions, by layer and place from the end

`conditions` asks with them. Shapes: B rows, S tokens, N text tokens of all rows, P places from the end, D hidden size,
V vocabulary.
"""

import copy
from numbers import Real

import torch
from transformers import LogitsProcessor

from modeling_vift import TextStream, position_in_row, text_positions

from ..engine import Engine
from .generate import prompts_of


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


def merge_language_model(model, language_model, weight):
    """
    A copy of `model` with language model (1 - weight) * its own + weight * `language_model`.

    With `language_model` what it was before training, 1 - weight is the coefficient of task arithmetic (arXiv
    2212.04089); one a layer, as in AdaMerging (arXiv 2310.02575).

    Args:
        model: a VIFT model.
        language_model: the causal LM that it was before training (same architecture).
        weight: in [-1, 1]; below 0 the tuning is taken further. Or a sequence of L + 1 such numbers: of each decoder
            layer, and last of all else (embeddings, norm, head).

    Raises:
        ValueError: a weight out of range, not one a layer, or parameters that do not fit, by name and shape.
    """
    num_layers = model.config.get_text_config().num_hidden_layers
    weights = [weight] * (num_layers + 1) if isinstance(weight, Real) else list(weight)
    if len(weights) != num_layers + 1:
        raise ValueError(f"weight has {len(weights)} numbers, {num_layers} layers and all else need {num_layers + 1}")
    if wrong := [one for one in weights if not -1 <= one <= 1]:
        raise ValueError(f"weight={wrong[0]} must be in [-1, 1]")
    merged = copy.deepcopy(model)
    own = dict(merged.model.language_model.named_parameters())
    other = dict(language_model.model.named_parameters())
    if not merged.config.get_text_config().tie_word_embeddings:
        own["lm_head"], other["lm_head"] = merged.lm_head.weight, language_model.lm_head.weight
    for name, parameter in own.items():
        if name not in other or other[name].shape != parameter.shape:
            there = tuple(other[name].shape) if name in other else "nothing"
            raise ValueError(f"language_model has {there} for {name}, the model {tuple(parameter.shape)}")
        room, _, rest = name.partition(".")
        layer = int(rest.partition(".")[0]) if room == "layers" else -1
        # a + w (b - a): merging a model with itself changes no bit
        parameter.data.lerp_(other[name].data.to(parameter), weights[layer])
    return merged


@torch.inference_mode()
def static_vectors(model, processor, questions, fusion_layers=None) -> dict[int, torch.Tensor]:
    """Layer -> (P, D): the mean text stream over `questions` (unlabelled), place 0 = the prompt's last token."""
    engine = Engine(model, processor)
    inputs = engine.inputs(prompts_of(engine, questions))
    stream = model.text_run(inputs["input_ids"], inputs["attention_mask"], fusion_layers)
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


def random_like(stream: TextStream, seed: int) -> TextStream:
    """`stream` with every vector replaced by a random one of the same norm, in place."""
    generator = torch.Generator().manual_seed(seed)
    for layer, states in stream.states.items():
        noise = torch.randn(states.shape, generator=generator)
        scale = states.float().norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
        stream.states[layer] = (noise * scale).to(states)
    return stream
