"""Batched generation and scoring of prompts with pictures: what the lmms-eval model and the sweep share.

A *prompt* here is (text, pictures): the rendered chat with one image placeholder per picture. `Engine.generate`
answers a batch of them under one `Request` of generation settings, `Engine.score` gives the negative log-likelihood of
a continuation, fused like `generate()`: the prompt is fused, the continuation is read after it. Nothing depends on how
prompts are batched: rows are left-padded to answer, right-padded to score.

Shapes: B prompts, S tokens of the longest.
"""

from dataclasses import dataclass, field

import torch

from modeling_vift import OVERRIDES, FusionSettings, TextStreamCache, resolve_fusion
from vift_layers.capture import encode

from .images import open_image, to_rgb

FUSION_KEYS = ("fusion", *OVERRIDES)
SAMPLING_KEYS = ("temperature", "top_p", "top_k")
GENERATION_KEYS = ("num_beams", "repetition_penalty", "no_repeat_ngram_size", "length_penalty", "min_new_tokens")
# What tasks write for other models or for the harness itself; nothing here depends on it.
IGNORED_KEYS = ("image_aspect_ratio", "max_agentic_steps", "num_return_sequences", "n", "use_cache")
INJECTED_UNTIL = ["\n\n"]  # lmms-eval's filling for tasks that name no end; it would cut a chain of thought


@dataclass
class Request:
    """One set of generation settings, from a task's `generation_kwargs`.

    Attributes:
        max_new_tokens (`int`): most tokens of an answer.
        generation (`dict`): keywords of `generate()`.
        fusion (`dict`): fusion keywords of `generate()`; empty: as the model's config says.
        until (`list[str]`): the answer ends before the first of these.
        unknown (`list[str]`): keys that nothing here knows, and that were dropped.
    """

    max_new_tokens: int
    generation: dict = field(default_factory=dict)
    fusion: dict = field(default_factory=dict)
    until: list = field(default_factory=list)
    unknown: list = field(default_factory=list)

    @classmethod
    def from_kwargs(cls, kwargs: dict, max_new_tokens: int) -> "Request":
        """
        Args:
            kwargs: `generation_kwargs` of a task; left as it is.
            max_new_tokens: used when `kwargs` has none.

        Raises:
            ValueError: `until` that is no string or list of strings, `max_new_tokens` below 1, sampling at
                temperature 0.
        """
        given = {name: value for name, value in kwargs.items() if value is not None}
        until = given.pop("until", [])
        until = [until] if isinstance(until, str) else list(until)
        if not all(isinstance(end, str) for end in until):
            raise ValueError(f"until={until!r} must be a string or a list of strings")
        most = int(given.pop("max_new_tokens", given.pop("max_gen_toks", max_new_tokens)))
        if most < 1:
            raise ValueError(f"max_new_tokens={most} must be at least 1")
        sampled = given.pop("do_sample", None)
        if sampled and "temperature" in given and float(given["temperature"]) == 0:
            raise ValueError("do_sample=True with temperature=0 contradict each other: drop one of them")
        sampled = float(given.get("temperature", 0)) > 0 if sampled is None else bool(sampled)
        generation = {name: given[name] for name in GENERATION_KEYS if name in given} | {"do_sample": sampled}
        if sampled:
            generation |= {name: given[name] for name in SAMPLING_KEYS if name in given}
        known = {*FUSION_KEYS, *SAMPLING_KEYS, *GENERATION_KEYS, *IGNORED_KEYS}
        return cls(
            max_new_tokens=most,
            generation=generation,
            fusion={name: given[name] for name in FUSION_KEYS if name in given},
            until=[end for end in until if end] if until != INJECTED_UNTIL else [],
            unknown=sorted(set(given) - known - {"max_gen_toks"}),
        )

    def cut(self, text: str) -> str:
        for end in self.until:
            text = text.split(end, 1)[0]
        return text.strip()


@dataclass
class Answer:
    """An answer with its token counts; `truncated` when it ended at the limit, not by itself."""

    text: str
    input_tokens: int
    output_tokens: int
    truncated: bool


class Engine:
    """
    Args:
        model, processor: a loaded VIFT checkpoint.
        max_new_tokens (`int`): for requests that name none.
    """

    def __init__(self, model, processor, max_new_tokens: int = 1024):
        self.model, self.processor, self.max_new_tokens = model, processor, max_new_tokens
        self.tokenizer = processor.tokenizer
        eos = model.generation_config.eos_token_id
        self.ends = set(eos if isinstance(eos, list) else [self.tokenizer.eos_token_id if eos is None else eos])
        self.streams = TextStreamCache()  # benchmarks ask one question about many pictures
        self.positions = model.config.get_text_config().max_position_embeddings

    def settings(self, request: Request) -> FusionSettings | None:
        """The fusion in force under `request`: the config's, where it says nothing; None when off."""
        given = dict(request.fusion)
        return resolve_fusion(self.model.config, given.pop("fusion", None), **given)

    def render(self, messages: list[dict]) -> tuple[str, list]:
        """
        The prompt of a chat whose parts are {"type": "text", "text"} or {"type": "image", "url" | "image"}.

        A text that holds as many image placeholders as its message has pictures says where they stand; without
        placeholders they stand where the parts are.

        Returns:
            (text, pictures as RGB).

        Raises:
            ValueError: video or audio; placeholders and pictures of a message that do not match, with both numbers.
        """
        token, pictures, turns = self.processor.image_token, [], []
        for message in messages:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            for part in parts:
                if part["type"] not in ("text", "image"):
                    raise ValueError(f"a prompt holds {part['type']}: VIFT reads text and images only")
            images = [part.get("url", part.get("image")) for part in parts if part["type"] == "image"]
            placed = sum(part["text"].count(token) for part in parts if part["type"] == "text")
            if placed and placed != len(images):
                raise ValueError(f"a message has {len(images)} images and {placed} placeholders {token!r} in its text")
            pictures += images
            if placed:
                parts = [part for part in parts if part["type"] == "text"]
            turns.append({"role": message["role"], "content": parts})
        prompt = self.processor.apply_chat_template(turns, add_generation_prompt=True)
        return prompt, [picture(image) for image in pictures]

    def inputs(self, prompts: list[tuple[str, list]], side: str = "left"):
        """Tensors of the prompts, padded on `side`, on the model's device."""
        pictures = [image for _, images in prompts for image in images]
        inputs = encode(self.model, self.processor, [text for text, _ in prompts], pictures, side)
        longest = int(inputs["attention_mask"].sum(dim=1).max())
        if longest >= self.positions:
            raise ValueError(f"a prompt has {longest} tokens; with an answer the model reads at most {self.positions}")
        return inputs

    @torch.inference_mode()
    def with_features(self, inputs) -> dict:
        """`inputs` with the pictures' features in the place of their pixels: computed once for many `generate()`."""
        inputs = dict(inputs)
        if (pixels := inputs.pop("pixel_values", None)) is not None:
            features = self.model.model.get_image_features(pixel_values=pixels, return_dict=True)
            inputs["mm_encoder_outputs"] = {"image": features}
        return inputs

    @torch.inference_mode()
    def generate(self, inputs, request: Request, **extra) -> list[Answer]:
        """One answer per row of `inputs`, greedy unless the request samples; `extra` keywords go to `generate()`."""
        used = inputs["attention_mask"].sum(dim=1).tolist()
        # prompt and answer fit the positions, whatever the row is batched with
        limits = [min(request.max_new_tokens, self.positions - tokens) for tokens in used]
        kwargs = {"text_stream": self.streams} | dict(inputs) | request.generation | request.fusion | extra
        output = self.model.generate(**kwargs, max_new_tokens=max(limits))
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._answer(row, *numbers, request) for row, *numbers in zip(new, used, limits)]

    def _answer(self, tokens: list[int], input_tokens: int, limit: int, request: Request) -> Answer:
        """The answer in a row of new tokens, which may go on after its end."""
        end = next((i for i, token in enumerate(tokens[:limit]) if token in self.ends), None)
        tokens = tokens[: limit if end is None else end]
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return Answer(request.cut(text), input_tokens, len(tokens), end is None)

    def continued(self, prompts: list[tuple[str, list]], continuations: list[list[int]]) -> dict:
        """Prompts with a continuation's tokens behind each, right-padded; `labels` has the continuations alone."""
        inputs = self.inputs(prompts, side="right")
        ids, starts = inputs["input_ids"], inputs["attention_mask"].sum(dim=1).tolist()
        width = max(start + len(tokens) for start, tokens in zip(starts, continuations))
        if width > self.positions:
            raise ValueError(f"prompt and continuation have {width} tokens; the model reads at most {self.positions}")
        whole = ids.new_full((len(ids), width), self.tokenizer.pad_token_id)
        mask, labels = torch.zeros_like(whole), torch.full_like(whole, -100)
        for row, (start, tokens) in enumerate(zip(starts, continuations)):
            whole[row, :start] = ids[row, :start]
            end = start + len(tokens)
            whole[row, start:end] = labels[row, start:end] = ids.new_tensor(tokens)
            mask[row, :end] = 1
        return dict(inputs) | {"input_ids": whole, "attention_mask": mask, "labels": labels}

    @torch.inference_mode()
    def log_likelihood(self, batch: dict, request: Request) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """
        (log-likelihood of each token, whether it is the likeliest) of each continuation in a batch of `continued`.

        Fused like `generate()`: the prompt is fused, the continuation is read after it.
        """
        settings = self.settings(request)
        fusion = False if settings is None else describe(settings)
        log_probs = self.model(**batch, fusion=fusion).logits[:, :-1].float().log_softmax(dim=-1)
        labels = batch["labels"][:, 1:]
        kept = labels != -100
        tokens = log_probs.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
        likeliest = log_probs.argmax(dim=-1) == labels
        return [(tokens[row][kept[row]], likeliest[row][kept[row]]) for row in range(len(labels))]

    def score(self, prompts: list[tuple[str, list]], continuations: list[str], request: Request):
        """
        Negative log-likelihood of each continuation and the end of the turn after its prompt.

        Returns:
            list of (nats, whether greedy decoding would say just that).
        """
        encoded = self.tokenizer([text.strip() for text in continuations], add_special_tokens=False)["input_ids"]
        batch = self.continued(prompts, [[*tokens, self.tokenizer.eos_token_id] for tokens in encoded])
        scored = self.log_likelihood(batch, request)
        return [(-float(tokens.sum()), bool(likeliest.all())) for tokens, likeliest in scored]


def describe(settings: FusionSettings) -> dict:
    """Settings as keywords of `generate()`, ready for JSON."""
    return {
        "alpha": settings.alpha,
        "beta": settings.beta,
        "fusion_layers": list(settings.layers),
        "fusion_rule": settings.rule,
        "fusion_span": settings.span,
        "fusion_norm": settings.norm,
        "fusion_answer": settings.answer,
    } | ({"fusion_skip_first": True} if settings.skip_first else {})


def in_words(fusion: dict) -> str:
    """`describe` in a line."""
    layers = fusion["fusion_layers"]
    whole = layers == list(range(layers[0], layers[-1] + 1))
    words = [
        f"alpha {fusion['alpha']:g}, beta {fusion['beta']:g}",
        f"layers {layers[0]}:{layers[-1] + 1}" if whole else f"layers {','.join(map(str, layers))}",
        fusion["fusion_rule"],
    ]
    words += [] if fusion["fusion_span"] == "all" else [f"span {fusion['fusion_span']}"]
    words += ["norm kept"] if fusion["fusion_norm"] else []
    words += ["the answer too"] if fusion["fusion_answer"] else []
    words += ["without the first token"] if fusion.get("fusion_skip_first") else []
    return ", ".join(words)


def picture(image):
    """A picture as RGB: a PIL image, or the path of a file."""
    if isinstance(image, str):
        return open_image(image)[0]
    return to_rgb(image, "the request's image")[0]
