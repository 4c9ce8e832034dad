"""A connector whose image tokens look like the words of captions, before stage 1: minutes, no run of the LLM.

    python -m vift_train.warm_start --model START --captions data/web.jsonl --output WARM

Each image token is compared with the language model's own input embeddings; over the tokens of a picture, the words of
its caption are to be the likeliest. What comes out is read by the untouched language model as if these words stood
there, and stage 1 goes on from that. Captions alone are used, as in stage 1. This is not part of the paper (arXiv
2502.11427): it replaces most of the steps that a new connector needs, where steps are dear.

    logit(v) = logsumexp_i cos(t_i - m, E_v - m) / T         t_i image token, E_v embedding, m mean embedding
    loss     = - sum_v w_v log softmax(logit)_v              w_v: the caption's tokens, rarer ones weigh more

Shapes: N pictures, P image tokens of one, D hidden size, C channels of the tower, V tokens that stand in captions.
"""

import argparse
import math
from collections import Counter
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoProcessor

from vift_hub.cli import hide_bars
from vift_hub.models import config_of, loader_of
from vift_hub.output import check_new, new_folder
from vift_hub.pictures import to_rgb

from .data import load_rows

TEMPERATURE = 0.05
RARE = 5  # a token that stands in fewer captions is left out


@torch.no_grad()
def read_pictures(model, processor, pictures, batch_size: int = 32) -> torch.Tensor:
    """(N, P, C), float16: what the connector reads of each picture."""
    read = []
    first = model.model.multi_modal_projector.linear_1  # behind pooling and shuffling
    hook = first.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].half()))
    try:
        for start in tqdm(range(0, len(pictures), batch_size), "pictures", disable=None):
            images = [to_rgb(one)[0] for one in pictures[start : start + batch_size]]
            pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
            model.model.get_image_features(pixels.to(model.dtype), return_dict=True)
    finally:
        hook.remove()
    return torch.cat([one.reshape(-1, model.config.image_seq_length, one.shape[-1]) for one in read])


def caption_words(tokenizer, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    (tokens, weights): the V token ids that stand in captions, and (N, V) weights, each row's sum 1.

    A caption is tokenized as it stands inside a sentence. A token weighs log(N / captions that hold it).
    """
    ids = [
        sorted(set(tokenizer(f" {caption.lower()}", add_special_tokens=False)["input_ids"])) for caption in captions
    ]
    held = Counter(token for row in ids for token in row)
    tokens = sorted(token for token, count in held.items() if count >= RARE)
    place = {token: number for number, token in enumerate(tokens)}
    weights = torch.zeros(len(captions), len(tokens))
    for number, row in enumerate(ids):
        for token in row:
            if token in place:
                weights[number, place[token]] = math.log(len(captions) / held[token])
    return torch.tensor(tokens), weights / weights.sum(1, keepdim=True).clamp(min=1e-6)


def word_logits(tokens: torch.Tensor, words: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """(N, V) of image tokens (N, P, D) and unit word vectors (V, D)."""
    directions = torch.nn.functional.normalize(tokens - mean, dim=-1)
    return (directions @ words.T / TEMPERATURE).logsumexp(dim=1)


def warm_start(
    model, processor, pictures, captions, epochs=8, batch_size=128, learning_rate=2e-3, seed=0
) -> list[float]:
    """
    Trains the connector of `model` in place; everything else stays.

    Args:
        model, processor: a VIFT checkpoint, in float32.
        pictures, captions: one of each per row.

    Returns:
        The mean loss of each epoch.

    Raises:
        ValueError: not one caption a picture, or too few captions share their words.
    """
    if len(pictures) != len(captions):
        raise ValueError(f"warm_start needs one caption a picture: {len(pictures)} pictures, {len(captions)} captions")
    tokens, weights = caption_words(processor.tokenizer, captions)
    if not len(tokens):
        raise ValueError(f"no word stands in {RARE} of the {len(captions)} captions: give more captions")
    features = read_pictures(model, processor, pictures)
    if not torch.isfinite(features).all():
        raise ValueError("the vision tower's features are too large for float16: this tower can't be warm-started")
    projector = model.model.multi_modal_projector
    embeddings = model.get_input_embeddings().weight.detach().float()
    mean = embeddings.mean(0)
    offsets = embeddings[tokens] - mean
    words = torch.nn.functional.normalize(offsets, dim=-1)
    trained = [parameter.requires_grad_() for parameter in projector.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    total = epochs * -(-len(captions) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=total, pct_start=0.05)
    generator, losses = torch.Generator().manual_seed(seed), []
    for _ in range(epochs):
        sums = 0.0
        for rows in torch.randperm(len(captions), generator=generator).split(batch_size):
            logits = word_logits(project(projector, features[rows].float()), words, mean)
            loss = -(weights[rows] * logits.log_softmax(-1)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            sums += loss.item() * len(rows)
        losses.append(sums / len(captions))
        print(f"epoch {len(losses)} of {epochs}: loss {losses[-1]:.3f} (all words alike: {math.log(len(tokens)):.3f})")
    rescale(projector, features[: 8 * batch_size], mean, offsets.norm(dim=-1).mean())
    return losses


def project(projector, features: torch.Tensor) -> torch.Tensor:
    """(N, P, D): the connector after pooling and shuffling, which `read_pictures` has seen before."""
    return projector.linear_2(projector.act(projector.linear_1(features)))


@torch.no_grad()
def rescale(projector, features, mean, length) -> None:
    """Image tokens as far from the mean embedding as words are: the loss sees directions only."""
    found = (project(projector, features.float()) - mean).norm(dim=-1).mean()
    projector.linear_2.weight.mul_(length / found)
    projector.linear_2.bias.sub_(mean).mul_(length / found).add_(mean)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m vift_train.warm_start", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="the checkpoint that stage 1 would start from")
    parser.add_argument("--captions", required=True, help="caption rows, as vift train takes them")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--rows", type=int, default=8000, help="how many of them are read (default 8000)")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        check_new(args.output)
        for name in ("rows", "epochs"):
            if getattr(args, name) < 1:
                raise ValueError(f"--{name}={getattr(args, name)} must be at least 1")
        hide_bars()
        rows = load_rows(args.captions, plain=True, seed=args.seed, check_pictures="training")
        rows = rows.select([i for i, name in enumerate(rows["modality"]) if name == "image"][: args.rows])
        loader, trusted = loader_of(args.model, config_of(args.model), False)
        model = loader.from_pretrained(args.model, dtype=torch.float32, trust_remote_code=trusted)
        processor = AutoProcessor.from_pretrained(args.model, trust_remote_code=trusted)
        captions = [row[-1]["content"][0]["text"] for row in rows["messages"]]
        warm_start(model.eval(), processor, Pictures(rows), captions, args.epochs, seed=args.seed)
        with new_folder(args.output) as folder:
            model.to(torch.bfloat16).save_pretrained(folder)
            processor.save_pretrained(folder)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")
    print(f"wrote {args.output}; next: vift train --stage 1 --model {args.output} --captions ...")


class Pictures:
    """The first picture of each row, opened when it is read."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, part: slice):
        return [images[0] for images in self.rows[part]["images"]]


if __name__ == "__main__":
    main()
