"""The site builds strictly, every page is in its menu, and nothing on it comes from elsewhere."""

import logging
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = sorted(file.name for file in (ROOT / "docs").glob("*.md"))
pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -c constraints.txt -e '.[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    warned = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warned.append(record.getMessage())
    logging.getLogger("mkdocs").addHandler(handler)
    folder = tmp_path_factory.mktemp("site")
    try:
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    finally:
        logging.getLogger("mkdocs").removeHandler(handler)
    assert warned == []  # broken links and anchors, names without docstrings
    return folder


def test_the_site_builds_without_a_warning_and_has_every_page(site):
    built = {file.name for file in site.glob("*.html")}
    assert {name.replace(".md", ".html") for name in PAGES} <= built
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    menu = re.findall(r"[\w-]+\.md", yaml.dump(config["nav"]))
    assert sorted(menu) == PAGES


def test_nothing_is_fetched_from_elsewhere(site):
    loads = re.compile(r"<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//(?P<host>[^/\" >]+)")
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert loads.findall(text) == [] and "unpkg.com" not in text, page.name


def test_the_reference_has_every_name_of_import_vift(site):
    import vift

    shown = (site / "api.html").read_text(encoding="utf-8")
    for name in vift.NAMES:
        assert re.search(rf"\b{name}\b", shown), name
    for place in re.findall(r"^::: (\S+)", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE):
        assert f'id="{place}"' in shown or f"id={place}" in shown, place
