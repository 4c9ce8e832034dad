"""Loading a model for a command: the bundled one, a folder, or a Hub id."""

import re
from pathlib import Path

from .cli import UserError, first_line

BUNDLED = Path(__file__).resolve().parents[2] / "checkpoints" / "vift-micro"
DTYPES = ("auto", "float32", "bfloat16", "float16")
SMALL = 20_000_000  # parameters; a smaller model only waits for its other threads


def load_model(name: str, revision: str | None = None, dtype: str = "float32", argument="--model", any_kind=False):
    """
    (model, processor) of a VIFT checkpoint, or of a vision-language model of any kind that transformers knows.

    The config is looked at first, so that no code of a repository is run that is no VIFT model.

    Args:
        name: folder or Hub id. revision: on the Hub.
        dtype: "auto" (as the weights are), "float32", "bfloat16" or "float16".
        argument: what the user calls `name`.
        any_kind (`bool`): other models than VIFT too, with transformers' own code.

    Raises:
        UserError: not there, not a VIFT model, or it does not load.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    given = f"{argument}={name}"
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}")
    kind = config_of(name, revision, argument, any_kind).get("model_type")
    try:
        where = {"revision": revision, "trust_remote_code": kind == "vift"}
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, **where)
        processor = AutoProcessor.from_pretrained(name, **where)
    except Exception as error:  # a damaged file raises whatever its reader raises
        advice = "; pip install 'vift[vlm]', as docs/families.md says" if isinstance(error, ImportError) else ""
        raise UserError(f"{given} does not load ({first_line(error)}){advice}") from error
    if model.num_parameters() < SMALL:
        torch.set_num_threads(1)
    return model.eval(), processor


def config_of(name: str, revision: str | None = None, argument: str = "--model", any_kind: bool = False) -> dict:
    """What config.json of a model says; a UserError as `load_model`'s, before anything of the model is loaded."""
    from transformers import PretrainedConfig

    given = f"{argument}={name}"
    if name == str(BUNDLED) and not (BUNDLED / "config.json").is_file():
        raise UserError(f"the bundled model is not there ({BUNDLED}); `make micro` trains it")
    if Path(name).is_file():
        raise UserError(f"{given} is a file; a model is a folder or a Hub id")
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise UserError(f"{given} is not a model: the folder has no config.json")
    try:
        config, _ = PretrainedConfig.get_config_dict(name, revision=revision)
    except (OSError, ValueError) as error:
        where = "not a readable model" if Path(name).is_dir() else "neither a folder nor found on the Hub"
        raise UserError(f"{given} is {where} ({first_line(error)})") from error
    kind = config.get("model_type") or "unknown"
    if kind != "vift" and not any_kind:
        raise UserError(f"{given} is not a VIFT model: its model_type is {kind!r}")
    return config


def unknown_words(tokenizer, text: str) -> list[str]:
    """The words of `text` that become, in whole or in part, the tokenizer's unknown token."""
    if tokenizer.unk_token_id is None:
        return []
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    spans = zip(encoded["input_ids"], encoded["offset_mapping"])
    unknown = [span for token, span in spans if token == tokenizer.unk_token_id]
    # token by token in the whole text, as a token may span words ("top left")
    words = re.finditer(r"\S+", text)
    return list(dict.fromkeys(w[0] for w in words if any(a < w.end() and w.start() < b for a, b in unknown)))


def model_name(model: str) -> str:
    return Path(model).name if Path(model).is_dir() else model
