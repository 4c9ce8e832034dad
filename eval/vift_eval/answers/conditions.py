"""Evaluation on the micro-world: one question set, many ways to ask it.

    python -m vift_eval.answers.conditions --models DIR [DIR ...] --split test --json docs/microworld/results.json

Every model directory is one independent training seed. `MODES` says what each way of asking does;
`evaluate` returns the predictions of one, `summarize` its scores with 95 % bootstrap intervals over
questions, `difference` the paired difference of two.
"""

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from vift_microworld import exact_match, is_caption, language, visual_questions
from vift_microworld.data import user_turn

from .bootstrap import difference, interval

MODES = {
    "unfused": "the picture and the question, plain generate()",
    "fused": "the same, fused as the checkpoint's config says",
    "blind": "the question alone",
    "gold": "the scene in words and the question",
    "caption_first": "the model's own caption, then text only: caption and question",
    "top_half": "fused as in the paper: alpha 1, dose 2 (beta x fused layers), the top half of the layers",
    "all_layers": "the same in all layers",
    "lowest_half": "the same in the lowest half of the layers",
    "random_vectors": "fused with random vectors of the text stream's norms",
    "other_question": "fused with the text stream of another question of the same length",
    "wrong_image": "fused, with the picture of another question",
    "forced_first_token": "the first token of the blind answer forced, then plain with the picture",
}
LAYERS = ("top_half", "all_layers", "lowest_half")


def _prompts(processor, questions, texts: list[str], image: bool) -> list[str]:
    turns = [[user_turn(text, image)] for text in texts]
    return processor.apply_chat_template(turns, add_generation_prompt=True)


def _partners(questions, lengths: list[int], seed: int = 0) -> list[int]:
    """For each question, another of the same token length, of another family where there is one."""
    rng = random.Random(seed)
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    partners = []
    for index, length in enumerate(lengths):
        others = [i for i in by_length[length] if questions[i]["question"] != questions[index]["question"]]
        foreign = [i for i in others if questions[i]["family"] != questions[index]["family"]]
        partners.append(rng.choice(foreign or others or [index]))
    return partners


# what of a config the results say
FUSION_FIELDS = tuple(f"fusion_{name}" for name in ("alpha", "beta", "dose", "layers", "rule", "span", "answer"))


def _random_like(stream, seed: int):
    """The text stream with every vector replaced by a random one of the same norm."""
    generator = torch.Generator().manual_seed(seed)
    for layer, states in stream.states.items():
        noise = torch.randn(states.shape, generator=generator)
        scale = states.float().norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
        stream.states[layer] = (noise * scale).to(states)
    return stream


@torch.inference_mode()
def _generate(model, processor, prompts, images=None, max_new_tokens=12, batch_size=128, **kwargs):
    """Greedy answers in the order of `prompts`; batches hold prompts of like length.

    `kwargs["per_batch"]`, if given, is a function of a batch's indices and inputs that returns more keywords.
    """
    per_batch = kwargs.pop("per_batch", None)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].split()))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        inputs = processor(
            text=[prompts[i] for i in batch],
            images=None if images is None else [images[i] for i in batch],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        inputs = inputs.to(model.device)
        extra = dict(kwargs)
        if per_batch is not None:
            extra |= per_batch(batch, inputs)
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, **extra)
        texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(batch, texts):
            answers[i] = text.strip()
    return answers


def evaluate(model, processor, questions, mode: str = "fused", **kwargs) -> list[str]:
    """
    Args:
        model, processor: a loaded VIFT checkpoint.
        questions: rows of `vift_microworld.visual_questions` (a Dataset or a list of dicts).
        mode: one of `MODES`.
        kwargs: `batch_size`, `max_new_tokens`, and fusion arguments of `generate()`.

    Returns:
        One answer a question.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    rows = [questions[i] for i in range(len(questions))]
    asked = [row["question"] for row in rows]
    if mode == "blind":
        return _generate(model, processor, _prompts(processor, rows, asked, image=False), **_plain(kwargs))
    if mode == "gold":
        texts = [f"{row['scene_text']} {row['question']}" for row in rows]
        return _generate(model, processor, _prompts(processor, rows, texts, image=False), **_plain(kwargs))
    images = [row["images"][0] for row in rows]
    prompts = _prompts(processor, rows, asked, image=True)
    if mode == "unfused":
        return _generate(model, processor, prompts, images, fusion=False, **_plain(kwargs))
    if mode == "caption_first":
        query = [language.DETAILED_QUERIES[0]] * len(rows)
        plain = _plain(kwargs) | {"max_new_tokens": 48}
        captions = _generate(model, processor, _prompts(processor, rows, query, True), images, fusion=False, **plain)
        texts = [f"{scene_from_caption(caption)} {question}" for caption, question in zip(captions, asked)]
        return _generate(model, processor, _prompts(processor, rows, texts, False), **_plain(kwargs))
    if mode == "forced_first_token":
        first = evaluate(model, processor, questions, "blind", max_new_tokens=1)
        return _forced(model, processor, prompts, images, first, **_plain(kwargs))

    kwargs.setdefault("fusion", True)
    if mode in LAYERS:
        half = model.config.get_text_config().num_hidden_layers // 2
        kwargs["fusion_layers"] = {"top_half": 0.5, "all_layers": 1.0, "lowest_half": f"0:{max(1, half)}"}[mode]
        paper = {"alpha": 1.0, "fusion_answer": False}
        kwargs = paper | ({} if "beta" in kwargs else {"dose": 2.0}) | kwargs
    if mode == "wrong_image":
        shift = len(images) // 2 + 1
        images = images[shift:] + images[:shift]
    layers = kwargs.get("fusion_layers")
    if mode in ("random_vectors", "other_question"):  # another stream for the prompt; none goes on with the answer
        kwargs["fusion_answer"] = False
    if mode == "random_vectors":

        def random_stream(batch, inputs):
            own = model.text_run(inputs["input_ids"], inputs["attention_mask"], layers)
            return {"text_stream": _random_like(own, batch[0])}

        kwargs["per_batch"] = random_stream
    if mode == "other_question":
        lengths = [len(ids) for ids in processor.tokenizer(prompts)["input_ids"]]
        partners = _partners(rows, lengths)

        def other_stream(batch, inputs):
            other = processor(
                text=[prompts[partners[i]] for i in batch],
                images=[images[i] for i in batch],
                padding=True,
                padding_side="left",
                return_tensors="pt",
            )
            return {"text_stream": model.text_run(other["input_ids"], other["attention_mask"], layers)}

        kwargs["per_batch"] = other_stream
    return _generate(model, processor, prompts, images, **kwargs)


def scene_from_caption(caption: str) -> str:
    """A caption of one's own as the scene in words: without "the picture shows 3 digits :"."""
    return caption.split(":", 1)[-1].strip()


def _plain(kwargs: dict) -> dict:
    return {name: kwargs[name] for name in ("batch_size", "max_new_tokens") if name in kwargs}


def _forced(model, processor, prompts, images, first: list[str], **kwargs) -> list[str]:
    """Unfused answers that begin with the given first token."""
    texts = [prompt + word for prompt, word in zip(prompts, first)]
    rest = _generate(model, processor, texts, images, fusion=False, **kwargs)
    return [f"{word} {text}".strip() for word, text in zip(first, rest)]


def correct(predictions: list[str], questions) -> np.ndarray:
    return np.array([exact_match(p, a) for p, a in zip(predictions, list(questions["answer"]))], dtype=float)


def summarize(predictions: list[str], questions) -> dict:
    """{"accuracy", "ci95", "caption_rate", "by_family"} of one set of answers."""
    hits = correct(predictions, questions)
    families = np.array(list(questions["family"]))
    return {
        "accuracy": round(float(hits.mean()), 4),
        "ci95": interval(hits),
        "caption_rate": round(float(np.mean([is_caption(p) for p in predictions])), 4),
        "by_family": {
            family: round(float(hits[families == family].mean()), 4) for family in dict.fromkeys(families.tolist())
        },
    }


def load(path: str):
    """(model, processor) of a checkpoint, in fp32."""
    model = AutoModelForImageTextToText.from_pretrained(path, trust_remote_code=True, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(path, trust_remote_code=True)


def run(paths: list[str], split: str, count: int, seed: int = 0, modes=tuple(MODES), **kwargs) -> dict:
    """The whole table: per seed, and pooled differences with their intervals."""
    questions = visual_questions(count, seed=seed, split=split)
    hits: dict[str, list] = {mode: [] for mode in modes}
    seeds = []
    for path in paths:
        model, processor = load(path)
        scores, start = {}, time.monotonic()
        for number, mode in enumerate(modes, 1):
            predictions = evaluate(model, processor, questions, mode, **kwargs)
            scores[mode] = summarize(predictions, questions)
            hits[mode].append(correct(predictions, questions))
            left = (time.monotonic() - start) / number * (len(modes) - number)
            print(
                f"{Path(path).name} {mode:18s} {scores[mode]['accuracy']:6.1%} "
                f"captions {scores[mode]['caption_rate']:6.1%}  {left:.0f} s left",
                flush=True,
            )
        for base in ("unfused", "blind"):
            if base in modes and "fused" in modes:
                scores[f"fused_minus_{base}"] = difference(hits["fused"][-1], hits[base][-1])
        seeds.append({"model": Path(path).name, **scores})
    pooled = {
        mode: {"accuracy": round(float(np.mean(values)), 4), "ci95": interval(np.array(values))}
        for mode, values in hits.items()
    }
    if "fused" in modes:
        for mode in modes:
            if mode != "fused":
                pooled[mode]["fused_minus_this"] = difference(np.array(hits["fused"]), np.array(hits[mode]))
    fusion = {name: getattr(model.config, name) for name in FUSION_FIELDS}
    return {"split": split, "n": count, "fusion": fusion, "seeds": seeds, "pooled": pooled}


def table(results: dict) -> str:
    """Markdown: one row a mode, one column a seed (exact match in %, share of captions in brackets)."""
    names = [entry["model"] for entry in results["seeds"]]
    modes = list(results["pooled"])
    lines = [
        "| way of asking | " + " | ".join(names) + " | mean [95 %] | fused − this [95 %] |",
        "|---|" + "---|" * (len(names) + 2),
    ]
    for mode in modes:
        cells = [f"{entry[mode]['accuracy']:.1%} ({entry[mode]['caption_rate']:.0%})" for entry in results["seeds"]]
        pooled = results["pooled"][mode]
        mean = f"{pooled['accuracy']:.1%} [{pooled['ci95'][0]:.1%}, {pooled['ci95'][1]:.1%}]"
        delta = pooled.get("fused_minus_this")
        gap = (
            f"{100 * delta['difference']:+.1f} [{100 * delta['ci95'][0]:+.1f}, {100 * delta['ci95'][1]:+.1f}]"
            if delta
            else ""
        )
        lines.append(f"| `{mode}` | " + " | ".join([*cells, mean, gap]) + " |")
    return "\n".join(lines)


def page(results: dict, command: str) -> str:
    """The Markdown page with the table, what each row means, and the command that made it."""
    fusion = ", ".join(f"{name.removeprefix('fusion_')} {value}" for name, value in results["fusion"].items())
    meanings = "\n".join(f"- `{mode}`: {MODES[mode]}" for mode in results["pooled"])
    return (
        "# The micro-world table\n\n"
        f"Exact match over {results['n']} questions of the {results['split']} split, in brackets the share of "
        "captions given instead of answers. One column a training seed, independent end to end (phase 0 included). "
        "Intervals are 95 % bootstrap intervals over questions, paired for differences (in points). "
        f"Fusion, one setting for all seeds, chosen on the validation split: {fusion}.\n\n"
        f"{table(results)}\n\n{meanings}\n\nMade by:\n\n```\n{command}\n```\n"
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", required=True, help="checkpoints, one a seed")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--count", type=int, default=1500, help="questions")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--dose", type=float)
    parser.add_argument("--layers", help="band such as 0:4")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args(argv)
    overrides = {"dose": args.dose, "fusion_layers": args.layers}
    overrides = {name: value for name, value in overrides.items() if value is not None}
    results = run(args.models, args.split, args.count, modes=tuple(args.modes), **overrides)
    print(table(results))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if args.markdown:
        names = " ".join(Path(path).name for path in args.models)
        command = f"python -m vift_eval.answers.conditions --models {names} --split {args.split} --count {args.count}"
        args.markdown.write_text(page(results, command), encoding="utf-8")


if __name__ == "__main__":
    main()
