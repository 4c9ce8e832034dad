"""Phase 0 of the micro recipe: pre-train a vision tower and a text LLM from nothing.

These stand for what a large recipe downloads. The tower (SigLIP architecture) learns to name the digit
and the colour in each grid cell from the hidden layer that VIFT reads (-2); the language model (Qwen2
architecture) learns the world's language from text alone. Neither ever sees the other's data. Both
run on one thread, so that a two-core machine trains them side by side.
"""

import math
import time
from contextlib import nullcontext

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from vift_microworld import data, scenes

VISION_FEATURE_LAYER = -2


def fast_precision():
    """bf16 autocast where the CPU computes in bf16 (twice as fast), plain fp32 elsewhere."""
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext()


class Progress:
    """Prints a line with the loss and the time left every few seconds."""

    def __init__(self, name: str, total: int, every: float = 15.0):
        self.name, self.total, self.every = name, total, every
        self.start = self.last = time.monotonic()

    def update(self, step: int, loss: float) -> None:
        now = time.monotonic()
        if now - self.last < self.every and step < self.total:
            return
        self.last = now
        left = (now - self.start) / step * (self.total - step)
        print(f"{self.name}: step {step}/{self.total}, loss {loss:.3f}, {left:.0f} s left", flush=True)


class _Optimizer:
    """Muon on the matrices inside the layers, AdamW on all else; 3 % warm-up, then cosine to 2 %.

    Muon finds the look-up circuits ("which digit is at ...") in about half of AdamW's steps here.
    """

    def __init__(self, module: nn.Module, settings: dict):
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        inner = [p for n, p in named if p.ndim == 2 and "layers." in n]
        outer = [p for n, p in named if not (p.ndim == 2 and "layers." in n)]
        rate, decay, steps = (settings[k] for k in ("learning_rate", "weight_decay", "steps"))
        self.parts = [
            torch.optim.Muon(inner, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(outer, lr=rate, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        self.parameters = inner + outer
        warm_up = max(1, round(0.03 * steps))

        def at(step: int) -> float:
            done = (step - warm_up) / max(1, steps - warm_up)
            return (step + 1) / warm_up if done < 0 else 0.51 + 0.49 * math.cos(math.pi * done)

        self.schedules = [torch.optim.lr_scheduler.LambdaLR(part, at) for part in self.parts]

    def step(self) -> None:
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for part in (*self.parts, *self.schedules):
            part.step()
        for part in self.parts:
            part.zero_grad()


def _crowded_scenes(generator: np.random.Generator, count: int) -> list[scenes.Scene]:
    """Training scenes for the tower: any cell may hold a digit (60 %), handwriting of `train`."""
    glyphs = scenes.glyph_indices("train")
    names = tuple(scenes.COLORS)
    result = []
    for filled in generator.random((count, 9)) < 0.6:
        objects = []
        for place in np.flatnonzero(filled).tolist():
            digit = int(generator.integers(10))
            glyph = glyphs[digit][int(generator.integers(len(glyphs[digit])))]
            color = names[int(generator.integers(len(names)))]
            objects.append(scenes.Object(place, color, digit, glyph, int(generator.integers(9))))
        result.append(scenes.Scene(tuple(objects)))
    return result


def cell_targets(batch: list[scenes.Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 9) digit classes (10 = empty) and colour classes (6 = empty)."""
    digits = torch.full((len(batch), 9), 10)
    colors = torch.full((len(batch), 9), len(scenes.COLORS))
    names = list(scenes.COLORS)
    for row, scene in enumerate(batch):
        for item in scene.objects:
            digits[row, item.place] = item.digit
            colors[row, item.place] = names.index(item.color)
    return digits, colors


def to_pixels(batch: list[scenes.Scene]) -> torch.Tensor:
    """(B, 3, 48, 48) in -1..1, as the processor makes them."""
    return torch.from_numpy(scenes.render(batch)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_tower(settings: dict, seed: int) -> SiglipVisionModel:
    """Pre-train the vision tower; prints its accuracy on unseen handwriting (validation split)."""
    torch.manual_seed(seed)
    tower = SiglipVisionModel(SiglipVisionConfig(**settings["config"]))
    width = tower.config.hidden_size
    heads = nn.ModuleDict({"digit": nn.Linear(width, 11), "color": nn.Linear(width, 7)})
    both = nn.ModuleList([tower, heads])
    optimizer = _Optimizer(both, settings)
    generator = np.random.Generator(np.random.PCG64(seed))

    def read(batch: list[scenes.Scene]) -> tuple[torch.Tensor, torch.Tensor]:
        output = tower(pixel_values=to_pixels(batch), output_hidden_states=True)
        states = output.hidden_states[VISION_FEATURE_LAYER]  # (B, 9, D)
        return heads["digit"](states), heads["color"](states)

    progress = Progress("tower", settings["steps"])
    for step in range(1, settings["steps"] + 1):
        batch = _crowded_scenes(generator, settings["batch_size"])
        digits, colors = cell_targets(batch)
        with fast_precision():
            digit_logits, color_logits = read(batch)
            loss = cross_entropy(digit_logits.flatten(0, 1).float(), digits.flatten(), label_smoothing=0.05)
            loss += cross_entropy(color_logits.flatten(0, 1).float(), colors.flatten())
        loss.backward()
        optimizer.step()
        progress.update(step, loss.item())
    with torch.no_grad():
        batch = scenes.sample_scenes(500, seed, "validation", "tower")
        digits, colors = cell_targets(batch)
        digit_logits, color_logits = read(batch)
        drawn = digits < 10
        digit = (digit_logits.argmax(-1) == digits)[drawn].float().mean()
        color = (color_logits.argmax(-1) == colors)[drawn].float().mean()
    print(f"tower: unseen handwriting, digits {digit:.1%}, colours {color:.1%}", flush=True)
    return tower.eval()


@torch.no_grad()
def start_from_words(weight: torch.Tensor, vocabulary: dict[str, int]) -> None:
    """Start each token of several words ("red 7") at the sum of its words' embeddings over the root of their number.

    In place, weight (V, D). What "red 7" shares with "red 3" and "blue 7" is there from the first step, which decides
    whether look-ups are learnt at all. A word that is no token by itself ("top") gets a vector for this purpose.
    """
    generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
    several = {token: token.split() for token in vocabulary if len(token.split()) > 1}
    words = {}
    for word in dict.fromkeys(word for parts in several.values() for word in parts):
        own = vocabulary.get(word)
        noise = torch.randn(weight.shape[1], generator=generator) * weight.std()
        words[word] = noise if own is None else weight[own].clone()
    for token, parts in several.items():
        weight[vocabulary[token]] = torch.stack([words[word] for word in parts]).sum(0) / len(parts) ** 0.5


def tokenize_conversations(tokenizer, conversations: list[list[dict]]) -> list[tuple]:
    """(input_ids, labels) per conversation; labels are -100 outside the assistant's turns."""
    encoded = tokenizer.apply_chat_template(
        conversations, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return [
        (ids, [token if keep else -100 for token, keep in zip(ids, mask)])
        for ids, mask in zip(encoded["input_ids"], encoded["assistant_masks"])
    ]


def _length_batches(rows: list[tuple], batch_size: int, generator: np.random.Generator):
    """Endless batches of rows of like length: shuffled, sorted in chunks of 16 batches."""
    while True:
        order = generator.permutation(len(rows))
        batches = []
        for start in range(0, len(order), 16 * batch_size):
            chunk = sorted(order[start : start + 16 * batch_size], key=lambda i: len(rows[i][0]))
            batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
        for i in generator.permutation(len(batches)):
            yield [rows[j] for j in batches[i]]


def train_language_model(settings: dict, seed: int, tokenizer) -> Qwen2ForCausalLM:
    """Pre-train the text LLM on conversations about scenes in words."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        **settings["config"],
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config._attn_implementation = "eager"
    model = Qwen2ForCausalLM(config)
    start_from_words(model.get_input_embeddings().weight, tokenizer.get_vocab())
    table = data.text_instructions(settings["conversations"], seed=seed, split="train", turns=settings["turns"])
    rows = tokenize_conversations(tokenizer, list(table["messages"]))
    for cycle in range(len(settings["steps"])):
        train_cycle(model, rows, settings, seed, cycle)
    return model.eval()


def train_cycle(model, rows: list[tuple], settings: dict, seed: int, cycle: int) -> None:
    """One cycle of the text LLM's schedule, warm-up to decay, with an optimizer and an order of its own; in place."""
    pad, steps = model.config.pad_token_id, settings["steps"][cycle]
    own = settings | {"steps": steps, "learning_rate": settings["learning_rate"][cycle]}
    optimizer = _Optimizer(model, own)
    batches = _length_batches(rows, own["batch_size"], np.random.Generator(np.random.PCG64(seed + 1000 * cycle)))
    progress = Progress(f"language model, cycle {cycle + 1}", steps)
    for step in range(1, steps + 1):
        batch = next(batches)
        longest = max(len(ids) for ids, _ in batch)
        # right padding needs no mask: attention is causal and padded labels are ignored
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row, _ in batch])
        labels = torch.tensor([row + [-100] * (longest - len(row)) for _, row in batch])
        with fast_precision():
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        optimizer.step()
        progress.update(step, loss.item())
