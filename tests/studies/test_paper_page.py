"""docs/results/paper/README.md is its results file, and every figure of the page has its plot."""

import json
from pathlib import Path

from vift_studies.paper.page import page
from vift_studies.paper.verdicts import verdicts

PAPER = Path(__file__).parents[2] / "docs" / "paper"


def test_the_page_is_the_results_file():
    results = json.loads((PAPER / "results.json").read_text(encoding="utf-8"))
    text = (PAPER / "README.md").read_text(encoding="utf-8")
    assert page(results) == text
    assert verdicts(results) == results["verdicts"]  # they follow from the figures, today's rules on today's file
    for line in text.splitlines():
        if line.startswith("!["):
            assert (PAPER / line.split("(")[1].rstrip(")")).is_file(), line


def test_a_page_without_figures_says_so():
    text = page({"seeds": [0, 1, 2], "cpu_seconds": {}})
    assert text.count("Not measured yet") == 6
