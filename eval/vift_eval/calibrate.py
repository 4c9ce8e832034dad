"""Choose alpha, dose and band for a model from unlabelled prompts: the model's own caption is the teacher.

    calibrate(model, processor, images, questions)     # on the command line: vift calibrate

The model writes a caption of each image, then answers the question from that caption alone. This answer `a` needs no
fusion and no label, but costs a caption. The setting is kept under which the fused prompt gives `a` the highest mean
log-likelihood per token:

    argmax over (alpha, dose, band) of  mean_i  log p_fused(a_i | v_i, q_i) / len(a_i)

The grid: bands x doses at alpha = 1, then other alphas at the best of them; replacing the text tokens' states at the
input of one layer (alpha = 0, beta = 1); the best of all without the text run's first token, if that is an attention
sink; and no fusion. `bands="lens"` (`--lens`) tries one band only, that of the logit-lens rule (`vift_layers.lens`)
with `a` as the answers: as many fused runs as there are doses. It answers the question that arXiv 2502.11427 leaves
open, how the coefficients can be set automatically. Shapes: B prompts, S prompt tokens, A answer tokens.
"""

import torch

from modeling_vift import resolve_fusion
from vift_layers.lens import lens_band, lens_profile

from .answers.generate import prompts_of
from .engine import Engine, Request

DOSES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # beta x number of fused layers; the paper's are 1.4 and 2.1
ALPHAS = (0.9, 1.1)  # besides 1.0
SINK = 10.0  # the first token is an attention sink if its state is so many times as long as the others


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


def sink_of(model, input_ids, attention_mask, layers) -> float:
    """Of the prompts (B, S): length of the text run's first state over the median of the others, at its largest."""
    stream = model.text_run(input_ids, attention_mask, fusion_layers=layers)
    first = torch.diff(stream.rows, prepend=stream.rows[:1] - 1) != 0
    lengths = [states.float().norm(dim=-1) for states in stream.states.values()]
    return max(float(of_layer[first].median() / of_layer[~first].median()) for of_layer in lengths)


def candidates_of(model, bands, doses) -> list[tuple]:
    """(band, dose) of each, where beta = dose / layers is at most 2.

    Raises:
        ValueError: none is.
    """
    candidates = []
    for band in bands:
        count = len(resolve_fusion(model.config, True, fusion_layers=band, beta=0.0).layers)
        candidates += [(band, dose) for dose in doses if abs(dose) <= 2 * count]
    if not candidates:
        raise ValueError(f"bands={bands} and doses={list(doses)} hold no candidate with beta = dose / layers up to 2")
    return candidates


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
        images (list of pictures), questions (list of `str`): one of each per prompt; 32 to 64 are enough. No answers.
        caption_query (`str`): asks the model for a caption.
        read_back (`str` or callable): the prompt made of `caption` and `question`, a format or a function of the two.
        bands (*optional*): candidates for `fusion_layers`; `default_bands` when None (and then `replacements` too);
            a single one such as "0:4", or "lens" for that of the logit-lens rule.
        doses, alphas: candidates; alpha = 1 is always tried.
        caption_tokens, answer_tokens (`int`): most tokens of a caption, and of an answer that are compared.
        store (`bool`): write the choice into `model.config` (saved by `save_pretrained`).

    Returns:
        `{"fusion_alpha", "fusion_dose", "fusion_layers", "fusion_skip_first", "score", "unfused_score", "sink",
        "answers", "table"}`; scores are log-likelihoods per token, `sink` is `sink_of` the layers chosen, "lens" (with
        `bands="lens"`) is `lens_profile`. If nothing beats no fusion the dose is 0 and fusion is off.

    Raises:
        ValueError: no prompts, not one image per question, or a candidate out of range.
    """
    images, questions = list(images), list(questions)
    if not questions or len(images) != len(questions):
        raise ValueError(f"calibrate needs one image per question: {len(images)} images, {len(questions)} questions")
    num_layers = model.config.get_text_config().num_hidden_layers
    replaced = replacements(num_layers) if bands is None else []
    if isinstance(bands, str):
        bands = [bands]
    bands = default_bands(num_layers) if bands is None else list(bands)
    by_lens = bands == ["lens"]
    candidates = [] if by_lens else candidates_of(model, bands, doses)
    template = read_back
    if not callable(read_back):

        def read_back(caption, question):
            return template.format(caption=caption, question=question)

    engine, batches, answers = Engine(model, processor), [], []
    pairs = [{"question": question, "images": [image]} for question, image in zip(questions, images)]
    for start in range(0, len(pairs), batch_size):
        rows = pairs[start : start + batch_size]
        inputs = engine.inputs(prompts_of(engine, rows, [caption_query] * len(rows)))
        captions = engine.generate(inputs, Request(caption_tokens, {"do_sample": False}, {"fusion": False}))
        texts = [read_back(caption.text, row["question"]) for caption, row in zip(captions, rows)]
        inputs = engine.inputs(prompts_of(engine, rows, texts, image=False))
        output = model.generate(**inputs, fusion=False, do_sample=False, max_new_tokens=answer_tokens)
        tokens = output[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]
        # each up to and with its end of the turn
        ends = torch.isin(tokens, torch.tensor(sorted(engine.ends), device=tokens.device)).int()
        lengths = (ends.cumsum(dim=1) - ends == 0).sum(dim=1).tolist()
        ended = [row[:length] for row, length in zip(tokens.tolist(), lengths)]
        batches.append(engine.continued(prompts_of(engine, rows), ended))

    def score(fusion: dict) -> float:
        request = Request(answer_tokens, fusion=fusion)
        likelihoods = [tokens.mean() for batch in batches for tokens, _ in engine.log_likelihood(batch, request)]
        return float(torch.stack(likelihoods).mean())

    def scored(settings: list[dict]) -> list[dict]:
        return [setting | {"score": score(setting | {"fusion": True})} for setting in settings]

    def best_of(table: list[dict]) -> dict:
        return max(table, key=lambda row: row["score"])

    seen = {}
    if by_lens:
        seen = {"lens": lens_profile(model, batches)}
        candidates = candidates_of(model, [lens_band(seen["lens"])], doses)
    unfused = score({"fusion": False})
    table = scored([{"fusion_layers": band, "dose": dose, "alpha": 1.0} for band, dose in candidates])
    at_best = {name: best_of(table)[name] for name in ("fusion_layers", "dose")}
    others = [at_best | {"alpha": alpha} for alpha in alphas]
    table += scored(others + [{"fusion_layers": layer, "dose": 1.0, "alpha": 0.0} for layer in replaced])
    best = best_of(table)
    inputs = engine.inputs(prompts_of(engine, rows))
    sink = sink_of(model, inputs["input_ids"], inputs["attention_mask"], best["fusion_layers"])
    if sink > SINK:
        setting = {name: best[name] for name in ("fusion_layers", "dose", "alpha")}
        table += scored([setting | {"fusion_skip_first": True}])
        best = best_of(table)
    if best["score"] <= unfused:
        best = {"fusion_layers": best["fusion_layers"], "dose": 0.0, "alpha": 1.0, "score": unfused}
    chosen = {f"fusion_{name.removeprefix('fusion_')}": best[name] for name in ("alpha", "dose", "fusion_layers")}
    chosen["fusion_skip_first"] = best.get("fusion_skip_first", model.config.fusion_skip_first)
    if store:
        for name, value in chosen.items():
            setattr(model.config, name, value)
        model.config.fusion_beta = None  # the dose says it
        model.config.fusion_enabled = best["dose"] != 0.0
    scores = {"score": best["score"], "unfused_score": unfused, "sink": sink}
    return chosen | scores | seen | {"answers": answers, "table": table}
