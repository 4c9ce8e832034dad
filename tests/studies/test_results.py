"""What machines wrote under docs/results is one piece: page, picture and JSON of a folder say the same."""

import json
from pathlib import Path

import pytest
from PIL import Image

from vift_eval.files import json_lines, made_line
from vift_studies.bands import bridge
from vift_studies.bands import page as bands
from vift_studies.paper.page import page as paper_page
from vift_studies.paper.verdicts import verdicts
from vift_studies.redraw import PICTURES, redraw

RESULTS = Path(__file__).parents[2] / "docs" / "results"
PAGES = {"paper": paper_page, "bands": bands.page, "bridge": bridge.page}


def made() -> list[tuple[Path, dict]]:
    files = [(file, json.loads(file.read_text(encoding="utf-8"))) for file in sorted(RESULTS.rglob("*.json"))]
    return [(file, results) for file, results in files if isinstance(results, dict) and "made" in results]


MADE = made()


def test_the_studies_are_among_them():
    assert set(PAGES) <= {file.parent.name for file, _ in MADE}


@pytest.mark.parametrize("file, results", MADE, ids=[str(file.relative_to(RESULTS)) for file, _ in MADE])
def test_page_picture_and_json_are_of_one_run(file, results):
    line = made_line(results["made"])
    own = file.parent != RESULTS  # a file beside the folders stands alone
    pages = list(file.parent.glob("*.md")) if own else []
    for page in pages:
        assert line in page.read_text(encoding="utf-8"), page
    for picture in file.parent.glob("*.png") if own else ():
        assert Image.open(picture).text["Source"] == line, picture
    for page in pages:
        for shown in (text for text in page.read_text(encoding="utf-8").splitlines() if text.startswith("![")):
            assert (file.parent / shown.split("(")[-1].rstrip(")")).is_file(), shown


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_the_results_file(name):
    (file,) = [file for file, _ in MADE if file.parent.name == name]
    results = json.loads(file.read_text(encoding="utf-8"))
    assert PAGES[name](results) == (file.parent / "README.md").read_text(encoding="utf-8")
    assert json_lines(results) + "\n" == file.read_text(encoding="utf-8")


def test_every_picture_is_drawn_from_the_results_beside_it(tmp_path):
    drawn = {RESULTS / name for name in PICTURES}
    assert {picture.parent for picture in RESULTS.rglob("*.png")} - {RESULTS} == drawn
    redraw("bridge", tmp_path)
    again, committed = (Image.open(folder / "bridge.png") for folder in (tmp_path, RESULTS / "bridge"))
    assert again.size == committed.size and again.text["Source"] == committed.text["Source"]


def test_verdicts_follow_from_the_figures_by_todays_rules():
    by_name = {file.parent.name: results for file, results in MADE}
    assert verdicts(by_name["paper"]) == by_name["paper"]["verdicts"]
    assert bands.verdicts(by_name["bands"]) == by_name["bands"]["verdicts"]


def test_a_page_without_figures_says_so():
    nothing = {"made": {"command": "", "commit": "", "weights": {}, "machine": ""}, "seeds": [0], "cpu_seconds": {}}
    assert paper_page(nothing).count("Not measured yet") == 6
