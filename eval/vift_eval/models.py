"""Loading a model for a command: the bundled one, a folder, or a Hub id."""

import re
from pathlib import Path

from vift_hub.cli import UserError, hide_bars, one_line
from vift_hub.models import BUNDLED, carried, config_of, loader_of

DTYPES = ("auto", "float32", "bfloat16", "float16")
TASKS = carried(Path(__file__).resolve().parent, "tasks", "eval/tasks")  # of lmms-eval, in YAML
SMALL = 20_000_000  # parameters; a smaller model only waits for its other threads

__all__ = ["BUNDLED", "DTYPES", "TASKS", "config_of", "load_model", "model_name", "unknown_words"]


def load_model(name: str, revision: str | None = None, dtype: str = "float32", argument="--model", any_kind=False,
               trust_remote_code: bool = False):  # fmt: skip
    """
    (model, processor) of a VIFT checkpoint, or of a vision-language model of any kind that transformers knows.

    Args:
        name: folder or Hub id. revision: on the Hub.
        dtype: "auto" (as the weights are), "float32", "bfloat16" or "float16".
        argument: what the user calls `name`.
        any_kind (`bool`): other models than VIFT too, with transformers' own code.
        trust_remote_code (`bool`): run the Python files of a repository on the Hub (`vift_hub.models.loader_of`).

    Raises:
        UserError: not there, not a VIFT model, or it does not load.
    """
    given = f"{argument}={name}"
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}")
    config = config_of(name, revision, argument, any_kind)  # before the seconds that torch takes
    import torch
    from transformers import AutoProcessor
    from transformers.utils import logging

    from vift_hub.original import all_there

    hide_bars()
    logging.set_verbosity_error()
    loader, trusted = loader_of(name, config, trust_remote_code)
    try:
        where = {"revision": revision, "trust_remote_code": trusted}
        model, loading = loader.from_pretrained(name, dtype=dtype, output_loading_info=True, **where)
        if config.get("model_type") == "vift":
            all_there(name, loading)
        processor = AutoProcessor.from_pretrained(name, **where)
    except Exception as error:  # a damaged file raises whatever its reader raises
        advice = "; pip install 'vift[vlm]', as docs/families.md says" if isinstance(error, ImportError) else ""
        if "trust_remote_code=True" in str(error):
            raise UserError(f"{given} has Python files of its own: read them, then say --trust-remote-code") from error
        raise UserError(f"{given} does not load ({one_line(error)}){advice}") from error
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
    words = re.finditer(r"\S+", text)
    return list(dict.fromkeys(w[0] for w in words if any(a < w.end() and w.start() < b for a, b in unknown)))


def model_name(model: str) -> str:
    return Path(model).name if Path(model).is_dir() else model
