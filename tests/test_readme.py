"""The Python snippets of the README run as pasted, from the root of the repository.

Every `python` fence is run in a process of its own. One that says `test=tiny-llava` names a model of the Hub: a tiny
LLaVA made on the spot stands in for it. The model card's are run as published, from a Hub: `tests/hub/test_push.py`.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.modeling.processor_families import FAMILIES

ROOT = Path(__file__).parents[1]
HUB_MODEL = "llava-hf/llava-1.5-7b-hf"
FENCE = re.compile(r"^```python *(?P<info>[^\n]*)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)


def snippets():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        line = text[: match.start()].count("\n") + 1
        yield pytest.param(match["code"], match["info"].strip(), id=f"README.md:{line}")


@pytest.mark.parametrize("code, info", list(snippets()))
def test_snippet_runs_as_pasted(code, info, tmp_path):
    if info:
        assert info == "test=tiny-llava" and HUB_MODEL in code
        next(family for family in FAMILIES if family.title == "Llava").write(tmp_path)
        code = code.replace(HUB_MODEL, str(tmp_path))
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert ran.returncode == 0, f"{code}\n{ran.stderr}"
    assert [line.split(":")[0] for line in ran.stdout.splitlines() if line.startswith("fusion=")] == [
        "fusion=False", "fusion=True"
    ]  # fmt: skip
    if not info:  # the README shows what it prints
        assert f"```text\n{ran.stdout}```" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_holds_snippets_and_one_screen():
    assert len(list(snippets())) == 2
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_readmes_figures_are_those_of_the_results_file():
    results = json.loads((ROOT / "docs" / "results" / "paper" / "results.json").read_text(encoding="utf-8"))
    by_condition = {record["condition"]: record for record in results["test"] if "layers" not in record}
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    means = {name: f"{100 * record['mean']:.1f}" for name, record in by_condition.items()}
    low, high = (f"{100 * end:.1f}" for end in by_condition["fused"]["ci95"])
    assert f"answers {means['fused']} % of the questions right [{low}, {high}]" in text
    assert f"it answers {means['blind']} %, with the wrong image {means['wrong_image']} %" in text
    assert f"answers {means['top_half']} %" in text and f"reaches {means['caption_first']} %" in text
    claims = [row["verdict"] for row in results["verdicts"] if row["claim"][0] in "abcdefg" and len(row["claim"]) <= 2]
    counts = [claims.count(one) for one in ("reproduced", "not reproduced", "not testable here")]
    assert len(claims) == 12 and counts == [3, 8, 1]  # "twelve claims, three ..., eight ..., and one"
    ms = {row["condition"]: row["ms"] for row in results["cost"]}
    assert f"takes {ms['caption_first'] / ms['fused']:.1f} times as long" in text


def test_the_bundled_checkpoint_carries_the_current_code_and_template():
    bundled, source = ROOT / "checkpoints" / "vift-micro", ROOT / "modeling_vift"
    names = {file.name for file in source.glob("*_vift.py")} - {"attach_vift.py"}  # which is for other models
    assert {file.name for file in bundled.glob("*.py")} == names
    for file in (*(source / name for name in names), ROOT / "hub" / "vift_hub" / "chat_template.jinja"):
        assert (bundled / file.name).read_text(encoding="utf-8") == file.read_text(encoding="utf-8"), file.name
    assert sum(file.stat().st_size for file in bundled.iterdir()) < 15 * 2**20
    assert str(ROOT) not in (bundled / "config.json").read_text(encoding="utf-8")
