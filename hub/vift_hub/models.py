"""Where a model is: the bundled one, a folder, or a name on the Hub; looked up before anything heavy is imported.

Nothing of a repository is run: `config.json` is read as JSON.
"""

import json
import sys
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from .cli import UserError, first_line

HERE = Path(__file__).resolve().parent


def carried(package_folder: Path, name: str, checkout: str) -> Path:
    """A folder that a wheel has inside a package, as `name`, and a checkout at `checkout`, from its root."""
    inside = package_folder / name
    return inside if inside.is_dir() else HERE.parents[1] / checkout


BUNDLED = carried(HERE, "checkpoints", "checkpoints") / "vift-micro"


def find(name: str, argument: str = "--model", revision: str | None = None) -> None:
    """
    Asks the Hub once, and not at all for what lies here.

    Raises:
        UserError: `name` is no file or folder, and no model on the Hub that can be read; `argument` is what the user
            calls it.
    """
    given = f"{argument}={name}"
    if Path(name).exists():
        return
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(f"{given}: there is no such file or folder, and no model on the Hub has such a name") from None
    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        return
    try:
        HfApi().model_info(name, revision=revision, timeout=10)
    except GatedRepoError as error:
        raise UserError(f"{given} is gated on the Hub: ask for access there, then `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{given} has no revision {revision} on the Hub") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{given} is neither a folder nor found on the Hub") from error
    except Exception as error:  # no network, a proxy, offline mode: whatever the client raises
        why = "HF_HUB_OFFLINE is set" if isinstance(error, OfflineModeIsEnabled) else first_line(error)
        reached = f"the Hub can't be reached ({why})"
        raise UserError(f"{given} is neither a folder nor found on the Hub: {reached}") from error


def config_of(name: str, revision: str | None = None, argument: str = "--model", any_kind: bool = False) -> dict:
    """
    What a model's config.json says.

    Args:
        any_kind: other models than VIFT too.

    Raises:
        UserError: not there, unreadable, or another kind of model.
    """
    given, place = f"{argument}={name}", Path(name)
    if name == str(BUNDLED) and not (BUNDLED / "config.json").is_file():
        raise UserError(f"the bundled model is not there ({BUNDLED}); `make micro` trains it")
    if place.is_file():
        raise UserError(f"{given} is a file; a model is a folder or a Hub id")
    find(name, argument, revision)
    if place.is_dir() and not (place / "config.json").is_file():
        raise UserError(f"{given} is not a model: the folder has no config.json")
    try:
        file = place / "config.json" if place.is_dir() else hf_hub_download(name, "config.json", revision=revision)
        config = json.loads(Path(file).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{given} is not a readable model ({first_line(error)})") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "vift" and not any_kind:
        raise UserError(f"{given} is not a VIFT model: its model_type is {kind or 'unknown'!r}")
    return config


def loader_of(name: str, config: dict, trust_remote_code: bool = False) -> tuple[type, bool]:
    """
    (the class whose `from_pretrained` loads a model, its `trust_remote_code`).

    The Python files of a VIFT's own folder are run. Those of a repository on the Hub are run when that is asked for;
    else this package's own class reads a VIFT from there, and transformers' own another model.

    Args:
        config: what `config_of` found.
    """
    from transformers import AutoModelForImageTextToText

    from modeling_vift import VIFTForConditionalGeneration

    from . import join  # noqa: F401  (our own class reads the config)

    vift = config.get("model_type") == "vift"
    if trust_remote_code or (vift and Path(name).is_dir()):
        return AutoModelForImageTextToText, True
    if vift and "auto_map" in config:
        own = "vift's own classes read it (--trust-remote-code runs them)"
        print(f"note: the Python files of {name} are not run: {own}", file=sys.stderr)
    return (VIFTForConditionalGeneration if vift else AutoModelForImageTextToText), False
