"""A model's card: `fill` gives what `vift push` publishes, `training_card` what a training run leaves behind.

The first is `model_card.md` with its `{{ … }}` filled from the model and from files of the user. The second says how
the checkpoint is asked and how it was trained (TRL's own card shows a text pipeline, which cannot load a VIFT).
Both stand between two marks that Markdown does not show: `renew` writes anew what is there and keeps what people wrote
around them and into the metadata. A card with text and without marks is a person's, and is kept whole.
"""

import contextlib
import json
import re
import warnings
from importlib.metadata import version
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData, RepoCard
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.repocard import REGEX_YAML_BLOCK

TEMPLATE = Path(__file__).with_name("model_card.md")
# comments of Markdown, each after an empty line
SCORED = "lmms-eval "  # in the name of every score that `vift card` wrote
MARKS = ("[//]: # (vift: generated from here on; text outside these two lines is kept)", "[//]: # (vift: end)")
BLOCK = re.compile("(.*?)".join(map(re.escape, MARKS)), re.DOTALL)
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
    text = re.sub(r"\A\s*#+ [^\n]*\n", "", read(file.read_bytes(), f"{name}={file}").text)
    text = re.sub(r"^!\[[^\n]*\n+", "", text, flags=re.MULTILINE)
    return re.sub(r"^(#+ )", r"##\1", text, flags=re.MULTILINE).strip()


def fill(values: dict[str, str]) -> str:
    """
    The card with `values` in the place of their names, between the marks.

    Raises:
        ValueError: the template asks for a value that is not given.
    """
    template = TEMPLATE.read_text(encoding="utf-8")
    template = re.sub(r"<!-- The template.*?-->\n\n", "", template, flags=re.DOTALL)
    missing = sorted(set(re.findall(r"\{\{ *(\w+) *\}\}", template)) - set(values))
    if missing:
        raise ValueError(f"{TEMPLATE.name} asks for {', '.join(missing)}, which nothing gives")
    card = RepoCard(re.sub(r"\{\{ *(\w+) *\}\}", lambda match: values[match[1]], template))
    card.text = marked(re.sub(r"\n{3,}", "\n\n", card.text))
    return str(card)


def marked(text: str) -> str:
    """`text` between the marks; marks of its own are taken out."""
    return f"\n{MARKS[0]}\n\n{text.replace(MARKS[0], '').replace(MARKS[1], '').strip()}\n\n{MARKS[1]}\n"


def read(content: bytes, name) -> RepoCard:
    """A card; a ValueError begins with `name` if it is not in the Hub's format."""
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
        text = text if REGEX_YAML_BLOCK.search(text) else f"---\n{{}}\n---\n{text}"
        return ModelCard(text) and RepoCard(text)  # the first checks `model-index`, the second keeps it as it is
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{name} is no Markdown of the Hub's format: {error}") from error


def without_scores_of_ours(data: dict) -> list[str]:
    """Takes the scores that `vift card` wrote, which are of the weights then, out of `data`; returns their names."""
    names = []
    for model in list(data.get("model-index", [])):
        ours = [one for one in model["results"] if SCORED in str(one["dataset"]["name"])]
        names += [one["dataset"]["name"] for one in ours]
        model["results"] = [one for one in model["results"] if one not in ours]
        if ours and not model["results"]:
            data["model-index"].remove(model)
    if not data.get("model-index", [0]):
        del data["model-index"]
    return list(dict.fromkeys(names))


def merge(old: dict, kept: dict) -> dict:
    """Metadata of both: lists (tags) are joined, else `kept` counts; of scores of one task on one data set, `old`."""
    lists = [key for key in old if isinstance(old[key], list) and isinstance(kept.get(key), list)]
    joined = {key: old[key] + [one for one in kept[key] if one not in old[key]] for key in lists}
    models: dict[str, dict] = {}
    for model in joined.get("model-index", [])[::-1]:  # of two results of one task, the first is written last
        keys = [json.dumps([one["task"], one["dataset"]], sort_keys=True, default=str) for one in model["results"]]
        models.setdefault(model["name"], {}).update(zip(keys, model["results"]))
    index = [{"name": name, "results": [*results.values()]} for name, results in models.items()]
    return old | kept | joined | ({"model-index": index} if models else {})


def renew(generated: RepoCard, cards: dict[str, RepoCard]) -> tuple[RepoCard, list[str]]:
    """
    `generated` in the place of what was generated before, in the last of `cards` that a person wrote into.

    Args:
        cards: where it is from -> card; later ones count more.

    Returns:
        The card, and lines for the user about what is kept and what is left out.
    """
    data, notes, texts = generated.data.to_dict(), [], {}
    for name, card in cards.items():
        data, text = merge(data, card.data.to_dict()), BLOCK.sub("", card.text).strip()
        if text and not re.fullmatch(r"# .*", text):  # more than a title
            texts[name] = text
    *_, kept = [None, *texts]
    text = BLOCK.sub(lambda _: generated.text.strip(), cards[kept].text, count=1) if kept else generated.text
    if not BLOCK.search(text):
        notes.append(
            f"{kept} is kept whole, a person wrote it; for a filled-in card, put in two lines: {' '.join(MARKS)}"
        )
    for name, card in cards.items():
        left = [key for key, value in card.data.to_dict().items() if isinstance(value, str) and data[key] != value]
        if left := left + ["text"] * (texts.get(name) not in (None, texts.get(kept))):
            notes.append(f"{name}: left out, because {[*cards][-1]} says otherwise: {', '.join(left)}")
    header = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return RepoCard(f"---\n{header}---\n{text}"), notes


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
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{marked(text)}")


def save_training_card(new: ModelCard, file: Path, repo: str | None = None, token=None) -> None:
    """
    `new` renews what is in `file` or, where that does not exist yet, in `repo` on the Hub. What cannot be read stays
    as it is, with a warning: a run does not end on it.
    """
    try:
        cards = {str(file): read(file.read_bytes(), file)} if file.exists() else {}
        if repo and not cards:
            with contextlib.suppress(EntryNotFoundError):
                cards = {f"README.md of {repo}": RepoCard.load(repo, token=token)}
        renew(new, cards)[0].save(file)
    except (ValueError, OSError, yaml.YAMLError) as error:
        warnings.warn(f"no model card is written: {error}", stacklevel=2)
