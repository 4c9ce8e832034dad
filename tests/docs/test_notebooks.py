"""The notebooks run from the first cell to the last, and show what they print."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(name: str, monkeypatch, capsys, sizes: str | None = None) -> tuple[dict, list[tuple[str, str]]]:
    """The notebook's names at its end, and of each cell of code what it prints now and what is stored with it."""
    monkeypatch.chdir(ROOT / "notebooks")  # where Jupyter starts it
    cells = json.loads((ROOT / "notebooks" / name).read_text(encoding="utf-8"))["cells"]
    names, printed = {"__name__": "__main__"}, []
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        code = "".join(cell["source"])
        if sizes and "sizes" in cell["metadata"].get("tags", ()):
            assert code.partition("=")[0] == sizes.partition("=")[0]  # only the numbers differ
            code = sizes
        exec(compile(code, name, "exec"), names)
        stored = "".join(line for output in cell["outputs"] for line in output.get("text", ()))
        printed.append((capsys.readouterr().out, stored))
    return names, printed


def test_quickstart_prints_what_it_shows(monkeypatch, capsys):
    names, printed = run("quickstart.ipynb", monkeypatch, capsys)
    assert [shown for shown, _ in printed] == [stored for _, stored in printed]
    assert names["rows"][0]["answer"] in printed[-1][0]


@pytest.mark.slow
def test_train_your_own_runs_and_shows_a_model_that_got_better(monkeypatch, capsys):
    names, printed = run("train_your_own.ipynb", monkeypatch, capsys, "CAPTIONS, EPOCHS, QUESTIONS = 48, 1, 16")
    assert names["after"].keys() == names["before"].keys() and names["trainer"].state.global_step == 3
    stored = re.findall(r"^fused +(\d+) of 150", "".join(stored for _, stored in printed), re.MULTILINE)
    before, after = map(int, stored)  # with the notebook's own numbers
    assert after > before + 15
