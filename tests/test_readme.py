"""The Python snippets of README and model card run as pasted, from the root of the repository.

A fence that says `python no-run` holds what needs a download; every other `python` fence is run in
a process of its own. In the model card, a template, `{{ repo_id }}` stands for the published model:
here, the bundled one.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```python *(?P<info>[^\n]*)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)


def snippets():
    for name in ("README.md", "model_card.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            if "no-run" not in match["info"]:
                line = text[: match.start()].count("\n") + 1
                code = match["code"].replace("{{ repo_id }}", "checkpoints/vift-micro")
                yield pytest.param(code, id=f"{name}:{line}")


@pytest.mark.parametrize("code", list(snippets()))
def test_snippet_runs_as_pasted(code):
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert ran.returncode == 0, f"{code}\n{ran.stderr}"
    assert ran.stdout.strip(), "the snippet shows nothing"


def test_readme_and_model_card_hold_snippets():
    names = {param.id.split(":")[0] for param in snippets()}
    assert names == {"README.md", "model_card.md"}
