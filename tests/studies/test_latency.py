"""The latency benchmark compares what it says: equal weights, equal answers, a limit added up by hand, cells kept."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from vift_eval.files import made_line

FOLDER = Path(__file__).parents[2] / "studies" / "benchmarks"


@pytest.fixture(scope="module")
def latency():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)  # as when it is run
        yield importlib.import_module("latency")


@pytest.fixture(scope="module")
def cell(latency):
    return latency.Cell("tiny", 16, 8, 2, True)


def first_logits(cell, way, monkeypatch):
    """What the first token is chosen from."""
    clock_of = importlib.import_module("ways").Clock
    seen, note = [], clock_of.__call__
    monkeypatch.setattr(clock_of, "__call__", lambda *args: seen.append(args[2].clone()) or note(*args))
    clock = cell.run(way, 3)
    assert clock.first > min(clock.steps) > 0 and len(clock.steps) == 2
    return seen[0]


def test_ways_share_weights_and_agree_where_they_should(latency, cell, monkeypatch):
    ways = [way for way in latency.WAYS if way != "repeng" or latency.repeng()]
    logits = {way: first_logits(cell, way, monkeypatch) for way in ways}
    with torch.no_grad():
        ours = cell.fused(**cell.prompt, **cell.image(), logits_to_keep=1).logits[:, -1]
    assert torch.equal(logits["plain"], ours), "the same weights"
    for way in ("kept", "two_passes", "three_passes"):
        torch.testing.assert_close(logits[way], logits["fused"], rtol=1e-5, atol=1e-6)
    assert all((values - logits["plain"]).abs().max() > 1e-4 for way, values in logits.items() if way != "plain")
    assert torch.equal(first_logits(cell, "plain", monkeypatch), logits["plain"]), "nothing is left behind"


def test_the_limit_is_the_share_of_the_text_pass(latency, cell):
    # width 64, keys and values of 2 x 64, 128 inside, 2 layers of which the second is fused; tower of 2 layers
    layer = 64 * 64 * 4 + 3 * 64 * 128
    tower = 2 * (4 * 64 * 64 + 2 * 64 * 128) + 64 * 64 + 64 * 64
    assert cell.limit == pytest.approx(1 + 8 * layer / ((16 + 8) * 2 * layer + 16 * tower))


def test_memory_is_that_of_the_call(latency, cell):
    assert cell.peak("fused") > cell.peak("plain") > 2 * 24 * 2 * 128 * 4  # at least one MLP's two inner tensors


def test_cells_in_the_file_are_not_run_again(latency, tmp_path, monkeypatch):
    options = ["--cell", "tiny", "16", "8", "1", "0", "--tokens", "3", "--cell_seconds", "0", "--decode", "--json"]
    path = tmp_path / "found.json"
    latency.main([*options, str(path), "--page"])
    results = json.loads(path.read_text())
    assert results["cpu"]["decode_over_plain"] == results["decode"]["tiny 16 8 1"]["fused"] > 0.5
    assert results["cpu"]["cells"] == 1 and results["cells"]["tiny 16 8 1"]["ttft"]["plain"] == 1
    page, picture = tmp_path / "README.md", tmp_path / "performance.png"
    assert "| tiny 16 8 1 |" in page.read_text()
    assert Image.open(picture).text["Source"] == made_line(results["made"]) in page.read_text()
    monkeypatch.setattr(latency, "Cell", None)
    latency.main([*options, str(path)])
    assert json.loads(path.read_text()) == results
