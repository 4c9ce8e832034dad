"""Choose alpha, dose and band without labels: the model's own caption, read back as text, is the teacher.

For a handful of prompts (image, question) the model writes a caption of the image, then answers the question from
that caption alone. This answer `a` needs no fusion and no label, but costs a caption. The setting is kept under which
the fused prompt gives `a` the highest mean log-likelihood a token:

    argmax over (alpha, dose, band) of  mean_i  log p_fused(a_i | v_i, q_i) / len(a_i)

The grid: bands x doses at alpha = 1, then other alphas at the best of them; replacing the text tokens' states at the
input of one layer (alpha = 0, beta = 1); and no fusion. It answers the question that arXiv 2502.11427 leaves open, how
the coefficients can be set automatically.

Shapes: B prompts, S prompt tokens, A answer tokens.
"""

import torch

from .fusion_vift import resolve_fusion

DOSES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # beta x number of fused layers; the paper's are 1.4 and 2.1
ALPHAS = (0.9, 1.1)  # besides 1.0


def default_bands(num_layers: int) -> list[str]:
    """Lowest quarter and half, all layers, middle half, top half and quarter, as half-open bands."""
    quarter = max(1, num_layers // 4)
    half = max(1, num_layers // 2)
    bands = [(0, quarter), (0, half), (0, num_layers), (quarter, num_layers - quarter), (half, num_layers)]
    return list(dict.fromkeys(f"{a}:{b}" for a, b in (*bands, (num_layers - quarter, num_layers)) if a < b))


def replacements(num_layers: int, most: int = 8) -> list[str]:
    """Single layers to replace at (alpha 0, beta 1), spread over the stack; at layer 0 both runs are still equal."""
    step = max(1, -(-(num_layers - 1) // most))
    return [f"{layer}:{layer + 1}" for layer in range(1, num_layers, step)]


@torch.no_grad()
def calibrate(
    model,
    processor,
    images,
    questions,
    *,
    caption_query: str = "Describe the image in detail.",
    read_back="{caption}\n{question}",
    bands=None,
    doses=DOSES,
    alphas=ALPHAS,
    caption_tokens: int = 256,
    answer_tokens: int = 16,
    batch_size: int = 32,
    store: bool = True,
) -> dict:
    """
    Args:
        model, processor: a VIFT checkpoint.
        images (list of pictures), questions (list of `str`): one each a prompt; 32 to 64 are enough. No answers.
        caption_query (`str`): asks the model for a caption.
        read_back (`str` or callable): the prompt made of `caption` and `question`, a format or a function of the two.
        bands (*optional*): candidates for `fusion_layers`; `default_bands` when None (and then `replacements` too).
        doses, alphas: candidates; alpha = 1 is always tried.
        caption_tokens, answer_tokens (`int`): most tokens of a caption, and of an answer that are compared.
        store (`bool`): write the choice into `model.config` (saved by `save_pretrained`).

    Returns:
        `{"fusion_alpha", "fusion_dose", "fusion_layers", "score", "unfused_score", "answers", "table"}`; scores are
        log-likelihoods a token. If nothing beats no fusion the dose is 0 and fusion is off.

    Raises:
        ValueError: no prompts, not one image a question, or a candidate out of range.
    """
    images, questions = list(images), list(questions)
    if not questions or len(images) != len(questions):
        raise ValueError(f"calibrate needs one image a question: {len(images)} images, {len(questions)} questions")
    num_layers = model.config.get_text_config().num_hidden_layers
    replaced = replacements(num_layers) if bands is None else []
    bands = default_bands(num_layers) if bands is None else list(bands)
    candidates = []
    for band in bands:
        count = len(resolve_fusion(model.config, True, fusion_layers=band, beta=0.0).layers)
        candidates += [(band, dose) for dose in doses if abs(dose) <= 2 * count]  # beta is at most 2
    if not candidates:
        raise ValueError(f"bands={bands} and doses={list(doses)} hold no candidate with beta = dose / layers up to 2")
    template = read_back
    if not callable(read_back):

        def read_back(caption, question):
            return template.format(caption=caption, question=question)

    batches, answers = [], []
    for start in range(0, len(questions), batch_size):
        pictures, asked = images[start : start + batch_size], questions[start : start + batch_size]
        plain = {"fusion": False, "do_sample": False}
        inputs = _encode(model, processor, [caption_query] * len(asked), pictures)
        captions = _texts(processor, model.generate(**inputs, **plain, max_new_tokens=caption_tokens), inputs)
        told = [read_back(caption.strip(), question) for caption, question in zip(captions, asked)]
        inputs = _encode(model, processor, told)
        output = model.generate(**inputs, **plain, max_new_tokens=answer_tokens)
        answers += [text.strip() for text in _texts(processor, output, inputs)]
        said = output[:, inputs["input_ids"].shape[1] :]
        batches.append(_with_answers(model, _encode(model, processor, asked, pictures), said))

    def score(**setting) -> float:
        scores = torch.cat([_log_likelihood(model, batch, setting or False) for batch in batches])
        return float(scores.mean())

    unfused = score()
    settings = [{"fusion_layers": band, "dose": dose, "alpha": 1.0} for band, dose in candidates]
    table = [setting | {"score": score(**setting)} for setting in settings]
    best = max(table, key=lambda row: row["score"])
    for alpha in alphas:
        setting = {"fusion_layers": best["fusion_layers"], "dose": best["dose"], "alpha": alpha}
        table.append(setting | {"score": score(**setting)})
    for layer in replaced:
        setting = {"fusion_layers": layer, "dose": 1.0, "alpha": 0.0}
        table.append(setting | {"score": score(**setting)})
    best = max(table, key=lambda row: row["score"])
    if best["score"] <= unfused:
        best = {"fusion_layers": best["fusion_layers"], "dose": 0.0, "alpha": 1.0, "score": unfused}
    chosen = {f"fusion_{name.removeprefix('fusion_')}": best[name] for name in ("alpha", "dose", "fusion_layers")}
    if store:
        for name, value in chosen.items():
            setattr(model.config, name, value)
        model.config.fusion_beta = None  # the dose says it
        model.config.fusion_enabled = best["dose"] != 0.0
    return chosen | {"score": best["score"], "unfused_score": unfused, "answers": answers, "table": table}


def _encode(model, processor, texts: list[str], images=None):
    """Left-padded prompts (B, S) of one user turn each."""
    parts = [] if images is None else [{"type": "image"}]
    turns = [[{"role": "user", "content": [*parts, {"type": "text", "text": text}]}] for text in texts]
    prompts = processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = processor(text=prompts, images=images, padding=True, padding_side="left", return_tensors="pt")
    return inputs.to(model.device)


def _texts(processor, output, inputs) -> list[str]:
    return processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _with_answers(model, inputs, answers) -> dict:
    """The prompts (B, S) with the answers (B, A) behind them, up to and with their end-of-sequence token."""
    ends = torch.tensor(model.generation_config.eos_token_id, device=answers.device).reshape(-1)
    ended = torch.isin(answers, ends).int()
    said = ended.cumsum(dim=1) - ended == 0  # nothing ended before this token
    labels = torch.where(said, answers, -100)
    prompt = inputs["input_ids"]
    return dict(inputs) | {
        "input_ids": torch.cat([prompt, answers], dim=1),
        "attention_mask": torch.cat([inputs["attention_mask"], said.long()], dim=1),
        "labels": torch.cat([torch.full_like(prompt, -100), labels], dim=1),
    }


def _log_likelihood(model, batch, fusion) -> torch.Tensor:
    """Mean log-likelihood a label, (B,)."""
    logits = model(**batch, fusion=fusion).logits[:, :-1].float()
    labels = batch["labels"][:, 1:]
    token = logits.log_softmax(dim=-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    kept = labels != -100
    return (token * kept).sum(dim=1) / kept.sum(dim=1)
