"""Every family goes from the files of its processor to a fused answer, in the environment that docs/families.md names.

Without torchvision where the family's processor does without; the others with one that lies in a folder of its own
(`make` puts it there), in another process: PyPI's build of it fits PyPI's torch only. Beside another its compiled part
does not load, and what would describe that part to torch is left out; processors do without.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.modeling.processor_families import FAMILIES

TORCHVISION = Path(sys.prefix) / "torchvision"
ROOT = Path(__file__).parents[2]


def run(names, folder=None) -> dict:
    path = os.pathsep.join(map(str, [ROOT, *([folder] if folder else [])]))
    code = "import sys, types; sys.modules['torchvision._meta_registrations'] = types.ModuleType('none')\n"
    code += "from tests.modeling.run_processors import main; main(*sys.argv[1:])"
    command = [sys.executable, "-c", code, *names]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))}
    out = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False)
    results = [json.loads(line) for line in out.stdout.splitlines() if line.startswith("{")]
    assert len(results) == len(names), out.stderr[-2000:]
    return {result["family"]: result for result in results}


@pytest.fixture(scope="module")
def results():
    with_torchvision = [family.title for family in FAMILIES if family.needs_torchvision]
    without = run([family.title for family in FAMILIES if not family.needs_torchvision])
    return without | (run(with_torchvision, TORCHVISION) if TORCHVISION.is_dir() else {})


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.title)
def test_from_processor_files_to_a_fused_answer(family, results):
    """The first logits are those of the equation, by hooks on the native model; alone and in a batch."""
    if family.needs_torchvision and not TORCHVISION.is_dir():
        pytest.skip(f"{family.title}'s processor needs torchvision, which `make test` puts into {TORCHVISION}")
    result = results[family.title]
    assert result.get("raised") is None
    assert result["error"] < 1e-6 and result["batch_error"] < 1e-6
    assert result["effect"] > 0.05 and result["off_is_native"]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.title)
def test_ids_that_wrap_a_picture_are_found_in_config_and_processor(family, results):
    if family.needs_torchvision and not TORCHVISION.is_dir():
        pytest.skip(f"{family.title}'s processor needs torchvision, which `make test` puts into {TORCHVISION}")
    assert results[family.title]["wrappers"] == sorted(family.wrappers)


def test_without_torchvision_the_error_names_what_to_install(tmp_path):
    """InternVL's video processor imports torchvision; `vift-analyze` loads models of every kind."""
    internvl = next(family for family in FAMILIES if family.title == "InternVL")
    internvl.write(tmp_path, with_processor=False)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "InternVLProcessor"}')
    (tmp_path / "video_preprocessor_config.json").write_text('{"video_processor_type": "InternVLVideoProcessor"}')
    internvl.tokenizer().save_pretrained(tmp_path)
    internvl.pictures().save_pretrained(tmp_path)
    command = [sys.executable, "-m", "vift_eval.layers.command", str(tmp_path), "--output", str(tmp_path / "out")]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    last = out.stderr.strip().splitlines()[-1]
    assert out.returncode == 2 and "Torchvision" in last and "pip install 'vift[vlm]'" in last
