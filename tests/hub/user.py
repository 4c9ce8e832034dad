"""A user of the Hub: an environment that knows the Hub on localhost, and a Python that lacks our packages."""

import os

from tests.imports import PYPROJECT, ROOT

BUNDLED = ROOT / "checkpoints" / "vift-micro"
PACKAGES = sorted({name.split(".")[0] for name in PYPROJECT["tool"]["setuptools"]["packages"]})
HIDE_OUR_PACKAGES = f"import sys\n\nfor name in {PACKAGES}:\n    sys.modules[name] = None\n"


def environment(hub, home, **variables) -> dict[str, str]:
    """Online, this Hub, nothing cached, a token."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and name != "PYTHONPATH"}
    env |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_writer", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return env | variables
