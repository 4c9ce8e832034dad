"""A model's card: `fill` gives what `vift-push` publishes, `training_card` what a training run leaves behind.

The first is `model_card.md` with its `{{ … }}` filled from the model and from files of the user. The second says how
the checkpoint is asked and how it was trained (TRL's own card shows a text pipeline, which cannot load a VIFT).
Both stand between two marks that Markdown does not show. `merge` renews what stands between them, unless a person
edited it (the first mark holds its hash), and keeps all else: metadata, scores, text.
"""

import difflib
import hashlib
import json
import re
from importlib.metadata import version
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK

TEMPLATE = Path(__file__).with_name("model_card.md")
MARKS = "[//]: # (generated {}: text outside these two lines is kept)\n", "\n[//]: # (end)"
BLOCK = re.compile(re.escape(MARKS[0]).replace(r"\{\}", r"\w+") + "(.*?)" + re.escape(MARKS[1]), re.DOTALL)
TITLE = re.compile(r"\A\s*# [^\n]*\n*")
NOT_GIVEN = {
    "training_data": "Not stated for this model.",
    "evaluation": "No evaluation is published with this model.",
    "limits": "",
}
TRAINING_CARD = """# {name}

Trained by `VIFTTrainer`, {what}. A vision-language model that fuses the hidden states of its prompt with the image and
without it when it answers ([arXiv 2502.11427](https://arxiv.org/abs/2502.11427)).

## Quick start

```python
from transformers import pipeline

pipe = pipeline("image-text-to-text", model="{repo}", trust_remote_code=True)
content = [{{"type": "image", "url": "picture.png"}}, {{"type": "text", "text": "What is in the picture?"}}]
answer = pipe(text=[{{"role": "user", "content": content}}], max_new_tokens=128, return_full_text=False)
print(answer[0]["generated_text"])
```

`trust_remote_code=True` runs the Python files beside the weights: read them, and pin a `revision`.

Trained with {versions}.
"""


def facts(model) -> str:
    """A table of what the config says: parts, sizes and the fusion defaults."""
    config = model.config
    vision, text = config.vision_config, config.text_config
    strength = f"dose {config.fusion_dose}" if config.fusion_dose is not None else f"β {config.fusion_beta}"
    fusion = f"α {config.fusion_alpha}, {strength}, layers {config.fusion_layers}, {config.fusion_rule}, span "
    fusion += f"{config.fusion_span}{', the answer too' if config.fusion_answer else ''}; "
    fusion += f"{'on' if config.fusion_enabled else 'off'} unless the call says otherwise"
    rows = {
        "Parameters": f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:,.1f} M",
        "Weights": str(model.dtype).removeprefix("torch."),
        "Vision tower": f"{vision.model_type}, {vision.num_hidden_layers} layers, hidden state "
        f"{config.vision_feature_layer}; images of {vision.image_size} × {vision.image_size} pixels, "
        f"{config.image_seq_length} tokens each",
        "Language model": f"{text.model_type}, {text.num_hidden_layers} layers of width {text.hidden_size}",
        "Fusion": fusion,
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def section(name: str, file: Path | None) -> str:
    """The user's Markdown for a section, without a heading of its own and pictures (they are not uploaded)."""
    if file is None:
        return NOT_GIVEN[name]
    if not file.is_file():
        raise ValueError(f"{name}={file} is no file")
    text = re.sub(r"\A\s*#+ [^\n]*\n", "", file.read_text(encoding="utf-8"))
    text = re.sub(r"^!\[[^\n]*\n+", "", text, flags=re.MULTILINE)
    return re.sub(r"^(#+ )", r"##\1", text, flags=re.MULTILINE).strip()


def fill(values: dict[str, str]) -> str:
    """
    The card with `values` in the place of their names.

    Raises:
        ValueError: the template asks for a value that is not given.
    """
    template = TEMPLATE.read_text(encoding="utf-8")
    template = re.sub(r"<!-- The template.*?-->\n\n", "", template, flags=re.DOTALL)
    missing = sorted(set(re.findall(r"\{\{ *(\w+) *\}\}", template)) - set(values))
    if missing:
        raise ValueError(f"{TEMPLATE.name} asks for {', '.join(missing)}, which nothing gives")
    card = re.sub(r"\{\{ *(\w+) *\}\}", lambda match: values[match[1]], template)
    return re.sub(r"\n{3,}", "\n\n", card)


def marked(text: str) -> str:
    """`text` between the marks."""
    digest = hashlib.sha256(text.strip().encode()).hexdigest()[:12]
    return f"{MARKS[0].format(digest)}\n{text.strip()}\n{MARKS[1]}"


def parse(card: str, name: str) -> tuple[dict, list[str], bool]:
    """(metadata, the text before and after the marks, whether a person edited what stands between them)."""
    card = card.removeprefix("\ufeff").replace("\r\n", "\n")
    header = REGEX_YAML_BLOCK.match(card)
    try:
        data = yaml.safe_load(header[2]) if header else {}
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: its metadata are no YAML: {error}") from error
    if not isinstance(data or {}, dict):
        raise ValueError(f"{name}: its metadata are a {type(data).__name__}, not names with values")
    text = card[header.end() if header else 0 :]
    block = BLOCK.search(text)
    edited = block is not None and marked(block[1]) != block[0]
    around = [text, ""] if block is None or edited else [text[: block.start()], text[block.end() :]]
    return data or {}, [part.strip() for part in around], edited


def both(theirs: str, ours: str) -> str:
    """Every paragraph of the two, common ones once."""
    a, b = theirs.split("\n\n"), ours.split("\n\n")
    steps = difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    parts = [part for kind, i, j, k, m in steps for part in (*a[i:j], *(() if kind == "equal" else b[k:m]))]
    return "\n\n".join(part for part in parts if part.strip())


def both_scores(theirs: list, ours: list) -> list:
    """`model-index` of both; where a model has results of one task on one data set in both, the second counts."""
    models: dict[str, dict] = {}
    for model in (*theirs, *ours):
        asked = [json.dumps([one["task"], one["dataset"]], sort_keys=True, default=str) for one in model["results"]]
        named = dict(zip(asked, model["results"]))
        models.setdefault(model["name"], {}).update(named)
    return [{"name": name, "results": list(results.values())} for name, results in models.items()]


def merge(generated: str, cards: dict[str, str]) -> tuple[str, list[str]]:
    """
    `generated` (`fill`) with what people and `vift-card` wrote into `cards` (where it is from -> text, later ones
    count more); and lines for the user about what could not be renewed.

    Raises:
        ValueError: the metadata of a card are broken; the error names it.
    """
    data, (text, _), _ = parse(generated, TEMPLATE.name)
    around, notes = ["", ""], []
    for name, card in cards.items():
        more, parts, edited = parse(card, name)
        try:
            scores = both_scores(data.get("model-index") or [], more.get("model-index") or [])
        except (TypeError, KeyError) as error:
            raise ValueError(f"{name}: its model-index is not in the Hub's format ({error!r})") from error
        lists = {key: data[key] for key in more if isinstance(data.get(key), list) and isinstance(more[key], list)}
        data |= more | {key: old + [one for one in more[key] if one not in old] for key, old in lists.items()}
        if scores:
            data["model-index"] = scores
        if re.fullmatch(r"# .*", parts[0]) and TITLE.match(around[0]):
            parts[0] = ""  # a title, and there is one
        around = [both(*pair) for pair in zip(around, parts)]
        if edited:
            text = ""
            notes.append(f"{name}: its generated part was edited by hand, so it is kept and nothing is filled in")
    if text:
        text = marked(TITLE.sub("", text) if TITLE.match(around[0]) else text)
    header = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    body = "\n\n".join(part for part in (around[0], text, around[1]) if part)
    return f"---\n{header}---\n\n{body}\n", notes


def training_card(repo: str, what: str, tags: list[str]) -> ModelCard:
    """
    Args:
        repo: where the checkpoint goes, or its name.
        what: stage, steps and what was trained, in words.
        tags: beside "vift" and "custom_code".
    """
    versions = ", ".join(f"{name} {version(name)}" for name in ("trl", "transformers", "torch", "datasets"))
    tags = sorted({"vift", "custom_code", *tags})
    data = ModelCardData(library_name="transformers", pipeline_tag="image-text-to-text", tags=tags)
    text = TRAINING_CARD.format(name=repo.split("/")[-1], repo=repo, what=what, versions=versions)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{marked(text)}\n")
