"""What a sweep saves when it asks one batch of prompts under many fusion settings.

- Features of the pictures and text streams h(q) do not depend on the settings: computed once (`Shared`).
- Neighbouring settings mostly give the same answer. `answer` offers what was said before as a draft and checks it in
  one pass over prompt and draft: greedy decoding says the draft if and only if every token of it is the most likely
  one after those before. A draft that fails at token j still tells the right tokens up to j; another known answer that
  begins so is tried next, and what no known answer fits is generated as usual. The answers are those of `generate()`
  (in exact arithmetic: like a change of batch size, a pass over many tokens rounds differently than token by token).

Shapes: B prompts, S tokens of the longest, K tokens of the longest draft, N text tokens of the prompts that hold a
picture, D hidden size.
"""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modeling_vift import TextStream

from ..engine import Answer, Engine, Request

ROUNDS = 3  # drafts a row is offered before it is generated
PLAIN = {"do_sample", "num_beams"}  # generation settings under which the most likely next token is the answer's


@dataclass
class Shared:
    """
    A batch and what is computed once for it.

    Attributes:
        inputs (`dict`): input_ids and attention_mask, (B, S), left-padded.
        features (`list[list[torch.Tensor]]`): for each prompt, its pictures' features, each (tokens, D).
        stream (`TextStream`, *optional*): h(q) at every layer that any setting fuses.
    """

    inputs: dict
    features: list
    stream: TextStream | None

    @classmethod
    @torch.inference_mode()
    def of(cls, engine: Engine, inputs, layers) -> "Shared":
        """
        Args:
            inputs: of `Engine.inputs`.
            layers: every layer index that any of the settings fuses; may be empty.
        """
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if "pixel_values" not in inputs:
            return cls({"input_ids": ids, "attention_mask": mask}, [[] for _ in ids], None)
        features = engine.model.model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True)
        features = list(features.pooler_output)
        placeholders = (ids == engine.model.config.image_token_id).sum(dim=1)
        counts = (placeholders // len(features[0])).tolist()
        per_row, start = [], 0
        for count in counts:
            per_row.append(features[start : start + count])
            start += count
        stream = engine.model.text_run(ids, mask, sorted(layers)) if layers else None
        return cls({"input_ids": ids, "attention_mask": mask}, per_row, stream)

    def select(self, rows: list[int]) -> "Shared":
        """The same for some of the prompts."""
        index = torch.tensor(rows, device=self.inputs["input_ids"].device)
        stream = self.stream
        if stream is not None:
            position = stream.rows.new_full((len(self.features),), -1)
            position[index] = torch.arange(len(rows), device=index.device)
            kept = position[stream.rows] >= 0
            stream = TextStream(
                {layer: states[kept] for layer, states in stream.states.items()},
                position[stream.rows[kept]],
                stream.columns[kept],
            )
            stream = stream if len(stream.rows) else None
        inputs = {name: tensor[index] for name, tensor in self.inputs.items()}
        return Shared(inputs, [self.features[row] for row in rows], stream)

    def images(self) -> dict:
        """The keyword that hands the features on."""
        if not (features := [one for row in self.features for one in row]):
            return {}
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=features)}}


@torch.inference_mode()
def answer(engine: Engine, shared: Shared, request: Request, known: list[list[Answer]]) -> list[Answer]:
    """
    Answers of all prompts under `request`.

    Args:
        known: for each prompt, answers given before, the likeliest first; they change the time this takes, and nothing
            else.
    """
    found: list = [None] * len(known)
    # a setting that reads the unfused run with the picture, or does not decode greedily, is not checked by drafts
    settings = engine.settings(request)
    plain = set(request.generation) <= PLAIN and request.generation.get("num_beams", 1) == 1
    if plain and not request.generation.get("do_sample") and not (settings and settings.needs_image_run):
        drafts = [[draft_tokens(engine, one) for one in answers] for answers in known]
        prefixes: list[list[int]] = [[] for _ in known]
        for _ in range(ROUNDS):
            offered = {}
            for row, options in enumerate(drafts):
                fits = (d for d in options if d[: len(prefixes[row])] == prefixes[row])
                if found[row] is None and (draft := next(fits, None)) is not None:
                    offered[row] = draft
            if not offered:
                break
            for row, one in check(engine, shared.select(list(offered)), request, settings, offered):
                if isinstance(one, Answer):
                    found[row] = one
                else:
                    prefixes[row] = one
    left = [row for row, one in enumerate(found) if one is None]
    if left:
        part = shared.select(left)
        extra = part.images()
        if settings is not None and part.stream is not None and not settings.answer:
            extra["text_stream"] = part.stream
        for row, one in zip(left, engine.generate(part.inputs, request, **extra)):
            found[row] = one
    return found


def draft_tokens(engine: Engine, said: Answer) -> list[int]:
    tokens = engine.tokenizer(said.text, add_special_tokens=False)["input_ids"]
    return tokens if said.truncated else [*tokens, engine.tokenizer.eos_token_id]


def check(engine: Engine, shared: Shared, request: Request, settings, offered: dict[int, list[int]]):
    """(row, `Answer`) where the draft tells all of greedy decoding, else (row, the tokens it does tell)."""
    ids, mask = shared.inputs["input_ids"], shared.inputs["attention_mask"]
    limits = engine.limits(shared.inputs, request)
    drafts = [draft[:limit] for draft, limit in zip(offered.values(), limits)]
    width = max(map(len, drafts))
    tail = ids.new_tensor([draft + [engine.tokenizer.pad_token_id] * (width - len(draft)) for draft in drafts])
    seen = mask.new_tensor([[1] * len(draft) + [0] * (width - len(draft)) for draft in drafts])
    whole = torch.cat([mask, seen], dim=1)
    plan = None
    if settings is not None and settings.answer:  # the draft is fused too, so its text stream is not the prompt's
        plan = engine.model._plan_fusion(settings, torch.cat([ids, tail], dim=1), whole)
    elif settings is not None and shared.stream is not None:
        plan = engine.model._plan_fusion(settings, ids, mask, shared.stream)
    logits = engine.model(
        input_ids=torch.cat([ids, tail], dim=1),
        attention_mask=whole,
        position_ids=(whole.cumsum(dim=1) - 1).clamp(min=0),
        logits_to_keep=width + 1,
        use_cache=False,
        fusion=None if plan is None else plan.edit(len(ids), whole.shape[1], 0),
        **shared.images(),
    ).logits
    said = logits.argmax(dim=-1).tolist()
    used = mask.sum(dim=1).tolist()
    for row, draft, right, tokens, limit in zip(offered, drafts, said, used, limits):
        wrong = next((j for j, token in enumerate(draft) if token != right[j]), None)
        if wrong is None and len(draft) < limit and (not draft or draft[-1] not in engine.ends):
            wrong = len(draft)  # the draft is right and goes on
        if wrong is None:
            yield row, engine.answer(draft, tokens, limit, request)
        else:
            # its own end may be the first other token
            prefix = [*draft[:wrong], right[wrong]]
            ended = prefix[-1] in engine.ends or len(prefix) == limit
            yield row, engine.answer(prefix, tokens, limit, request) if ended else prefix
