"""What interventions on layers cost in right answers: `vift analyze --interventions`.

Each of `conditions` is one context of `interventions`; the model answers the same questions under each. Scores
are exact match, also as a share of the intact model's, with paired intervals over questions.
"""

from collections.abc import Iterator

import numpy as np
import torch

from vift_layers.capture import encode, render
from vift_layers.interventions import knock_out, skip, transplant
from vift_microworld import exact_match

from ..answers.bootstrap import difference, interval


@torch.inference_mode()
def answers(
    model, processor, pairs: list[dict], image: bool = True, batch_size=64, max_new_tokens=8, **kwargs
) -> list[str]:
    """Greedy answers to the queries of `pairs`, with their images or without; `kwargs` go to `generate()`."""
    texts = []
    for start in range(0, len(pairs), batch_size):
        rows = pairs[start : start + batch_size]
        prompts = [render(processor, row["query"], None if image else "") for row in rows]
        inputs = encode(model, processor, prompts, [[row["image"]] for row in rows] if image else None)
        output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens, **kwargs)
        new = output[:, inputs["input_ids"].shape[1] :]
        texts += [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    return texts


def conditions(model, donor=None) -> Iterator[tuple[str, str, object]]:
    """(group, layers, context manager) of each condition; windows are a quarter of the depth wide."""
    num_layers = model.config.get_text_config().num_hidden_layers
    width = max(1, num_layers // 4)
    step = max(1, width // 2)
    starts = range(0, num_layers - width + 1, step)
    windows = [f"{start}:{start + width}" for start in starts]
    for layers in windows:
        yield "knock-out, window", layers, knock_out(model, layers)
    for layers in (f"{start}:{num_layers}" for start in range(0, num_layers, step)):
        yield "knock-out, from here up", layers, knock_out(model, layers)
    for tokens in ("image", "all"):
        for layers in windows:
            yield f"skip, {tokens} tokens", layers, skip(model, layers, tokens)
    if donor is not None:
        for layers in (f"0:{stop}" for stop in range(step, num_layers + 1, step)):
            yield "transplant, cumulative", layers, transplant(model, donor, layers)
        for layers in windows:
            yield "transplant, window", layers, transplant(model, donor, layers)
        for layers in windows:
            yield "transplant, complement", f"~{layers}", transplant(model, donor, f"~{layers}")


def intervene(model, processor, pairs: list[dict], donor=None, progress=None, **kwargs) -> dict:
    """
    Args:
        pairs: rows with `answer`. donor (*optional*): another checkpoint of the same decoder.
        progress (*optional*): called with the name of what was just asked and its accuracy.

    Returns:
        {"n", "intact", "blind", "donor", "conditions"}, a condition {"group", "layers", "accuracy", "ci95", "share",
        "minus_intact"} where `share` is the accuracy as a share of the intact model's.

    Raises:
        ValueError: a row without answer.
    """
    if missing := [number for number, pair in enumerate(pairs) if pair["answer"] is None]:
        raise ValueError(f"row {missing[0]} has no answer: interventions are measured by right answers")

    def hits(subject, image=True) -> np.ndarray:
        texts = answers(subject, processor, pairs, image, **kwargs)
        return np.array([exact_match(text, pair["answer"]) for text, pair in zip(texts, pairs)], dtype=float)

    def entry(values: np.ndarray) -> dict:
        return {"accuracy": round(float(values.mean()), 4), "ci95": interval(values)}

    intact = hits(model)
    results = {"n": len(pairs), "intact": entry(intact), "blind": entry(hits(model, image=False)), "conditions": []}
    if donor is not None:
        results["donor"] = entry(hits(donor))
    for group, layers, context in conditions(model, donor):
        with context:
            values = hits(model)
        share = round(float(values.mean() / intact.mean()), 4) if intact.any() else None
        one = {"group": group, "layers": layers, **entry(values), "share": share}
        results["conditions"].append(one | {"minus_intact": difference(values, intact)})
        if progress is not None:
            progress(f"{group} {layers}", float(values.mean()))
    return results
