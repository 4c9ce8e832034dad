"""The Python snippets of the README run as pasted, from the root of the repository.

A fence that says `python no-run` holds what needs a download; every other `python` fence is run in
a process of its own. The model card's are run as published, from a Hub: `tests/hub/test_push.py`.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```python *(?P<info>[^\n]*)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)


def snippets():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if "no-run" not in match["info"]:
            line = text[: match.start()].count("\n") + 1
            yield pytest.param(match["code"], id=f"README.md:{line}")


@pytest.mark.parametrize("code", list(snippets()))
def test_snippet_runs_as_pasted(code):
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert ran.returncode == 0, f"{code}\n{ran.stderr}"
    assert ran.stdout.strip(), "the snippet shows nothing"


def test_the_readme_holds_snippets():
    assert list(snippets())


def test_the_readme_table_is_the_results_file():
    from vift_studies.paper.page import conditions_table
    from vift_studies.paper.plan import ASKED

    results = json.loads((ROOT / "docs" / "results" / "paper" / "results.json").read_text(encoding="utf-8"))
    table = conditions_table(results, [record for record in results["test"] if record["condition"] in ASKED])
    for name in ("README.md", "docs/results/paper/README.md"):
        assert table in (ROOT / name).read_text(encoding="utf-8"), name


def test_the_bundled_checkpoint_carries_the_current_code_and_template():
    bundled, source = ROOT / "checkpoints" / "vift-micro", ROOT / "modeling_vift"
    names = {file.name for file in source.glob("*_vift.py")} - {"attach_vift.py"}  # which is for other models
    assert {file.name for file in bundled.glob("*.py")} == names
    for file in (*(source / name for name in names), ROOT / "hub" / "vift_hub" / "chat_template.jinja"):
        assert (bundled / file.name).read_text(encoding="utf-8") == file.read_text(encoding="utf-8"), file.name
    assert sum(file.stat().st_size for file in bundled.iterdir()) < 15 * 2**20
    assert str(ROOT) not in (bundled / "config.json").read_text(encoding="utf-8")
