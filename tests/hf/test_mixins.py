"""transformers' own tests for every model: VIFT passes all that stock Llava passes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run_mixins.py")


@pytest.mark.slow
def test_every_transformers_test_that_stock_llava_passes_passes_here(tmp_path):
    """In a process of its own: these tests change global state and are a package named `tests`.

    It uses the network once, through pip, for the source distribution of transformers.
    """
    out = tmp_path / "results.json"
    done = subprocess.run([sys.executable, str(RUN), "--json", str(out)], capture_output=True, text=True, timeout=1800)
    if done.returncode == 3:
        pytest.skip(f"{done.stdout.strip()} (offline?)")
    assert out.exists(), done.stdout + done.stderr
    results = json.loads(out.read_text())
    assert sum(r["outcome"] == "passed" for r in results["vift"].values()) > 100, done.stdout
    assert results["missing"] == [], done.stdout
