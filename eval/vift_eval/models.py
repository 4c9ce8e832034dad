"""Loading a VIFT checkpoint for a command: the bundled model, a folder, or a Hub id."""

import re
from pathlib import Path

from .cli import UserError, first_line

BUNDLED = Path(__file__).resolve().parents[2] / "checkpoints" / "vift-micro"
SMALL = 20_000_000  # parameters; a smaller model only waits for its other threads


def load_model(name: str, revision: str | None = None, dtype: str = "float32"):
    """(model, processor) of a VIFT checkpoint.

    The config is looked at first, so that no code of a repository is run that is no VIFT model.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor, PretrainedConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if name == str(BUNDLED) and not (BUNDLED / "config.json").is_file():
        raise UserError(f"the bundled model is not there ({BUNDLED}); `make micro` trains it")
    if Path(name).is_file():
        raise UserError(f"--model={name} is a file; a model is a folder or a Hub id")
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise UserError(f"--model={name} is not a model: the folder has no config.json")
    try:
        config, _ = PretrainedConfig.get_config_dict(name, revision=revision)
    except (OSError, ValueError) as error:
        where = "not a readable model" if Path(name).is_dir() else "neither a folder nor found on the Hub"
        raise UserError(f"--model={name} is {where} ({first_line(error)})") from error
    if config.get("model_type") != "vift":
        kind = config.get("model_type") or "unknown"
        raise UserError(f"--model={name} is not a VIFT model: its model_type is {kind!r}")
    try:
        where = {"revision": revision, "trust_remote_code": True}
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, **where)
        processor = AutoProcessor.from_pretrained(name, **where)
    except Exception as error:  # a damaged file raises whatever its reader raises
        raise UserError(f"--model={name} does not load ({first_line(error)})") from error
    if model.num_parameters() < SMALL:
        torch.set_num_threads(1)
    return model.eval(), processor


def unknown_words(tokenizer, text: str) -> list[str]:
    """The words of `text` that become, in whole or in part, the tokenizer's unknown token."""
    if tokenizer.unk_token_id is None:
        return []
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    spans = zip(encoded["input_ids"], encoded["offset_mapping"])
    unknown = [span for token, span in spans if token == tokenizer.unk_token_id]
    # token by token in the whole text, as a token may span words ("top left")
    words = list(re.finditer(r"\S+", text))
    found = [w[0] for w in words if any(a < w.end() and w.start() < b for a, b in unknown)]
    return list(dict.fromkeys(found))


def model_name(model: str) -> str:
    return Path(model).name if Path(model).is_dir() else model
