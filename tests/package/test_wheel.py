"""A wheel, installed elsewhere: its commands work outside a checkout, with the data that they need."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.imports import ROOT

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
LEFT_OUT = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "docs", "tests", "runs", "notebooks")
DATA = ("eval/tasks", "train/recipes", "checkpoints/vift-micro")
EVERY_COMMAND = """
import functools, json, sys
from pathlib import Path
import vift, vift_eval.models, vift_hub.models, vift_train
from vift.__main__ import main

site = Path(sys.argv[1])
for module in (vift, vift_eval, vift_hub, vift_train):
    assert Path(module.__file__).is_relative_to(site), module.__file__
for folder in (vift.BUNDLED, vift_eval.models.TASKS, vift_train.RECIPES):
    assert folder.is_relative_to(site) and folder.is_dir(), folder
assert main(["demo", "--n", "15", "--json", "demo.json"]) == 0
assert json.loads(Path("demo.json").read_text())["n"] == 15 and Path("demo.png").is_file()
assert main(["calibrate", "--n", "2", "--output", "calibrated"]) == 0 and Path("calibrated/config.json").is_file()
assert main(["analyze", "--n", "40", "--no-probes", "--output", "layers"]) == 0 and Path("layers/README.md").is_file()
print("ours ends here", file=sys.stderr)
import modeling_vift
import lmms_eval.__main__, lmms_eval.tasks
from vift_train.micro import load_recipe

assert Path(modeling_vift.__file__).is_relative_to(site) and load_recipe()["stage2"]["caption_rows"]
# without the seconds that indexing lmms-eval's own thousands of tasks takes
plain = lmms_eval.tasks.TaskManager.__init__
lmms_eval.tasks.TaskManager.__init__ = functools.partialmethod(plain, include_defaults=False)
sys.argv[1:] = ["--model", "vift", "--model_args", f"pretrained={vift.BUNDLED}", "--tasks", "vift_micro", "--limit",
                "4", "--include_path", str(vift_eval.models.TASKS), "--batch_size", "4", "--output_path", "results"]
lmms_eval.__main__.cli_evaluate()
(file,) = Path("results").rglob("*_results.json")
assert {"vift_micro_visual", "vift_micro_caption", "vift_micro_text"} <= json.loads(file.read_text())["results"].keys()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    build = [sys.executable, "-c", BUILD, str(folder)]
    ran = subprocess.run(build, cwd=folder / "source", capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return next(folder.glob("vift-*.whl"))


def test_a_wheel_has_the_data_and_is_small(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for folder, package in zip(DATA, ("vift_eval/tasks", "vift_train/recipes", "vift_hub/checkpoints/vift-micro")):
        files = [file for file in (ROOT / folder).rglob("*") if file.is_file() and "__pycache__" not in file.parts]
        missing = {f"{package}/{file.relative_to(ROOT / folder).as_posix()}" for file in files} - set(names)
        assert files and not missing, missing
    left_out = ("tests/", "space/", "docs/")
    assert not [name for name in names if name.startswith(left_out) or "__pycache__" in name]
    assert wheel.stat().st_size < 8 * 2**20


@pytest.mark.slow
def test_an_installed_wheel_runs_every_command_outside_a_checkout(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = f"{sys.executable} -m pip install --quiet --no-deps --no-index --target {site} {wheel}"
    subprocess.run(pip.split(), check=True)
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", EVERY_COMMAND, str(site)]
    ran = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    ours = ran.stderr.split("ours ends here")[0]
    assert not ours.strip(), ours  # no warnings, no bars where nobody looks
    where = [sys.executable, "-m", "vift", "where", "--tasks"]
    told = subprocess.run(where, cwd=elsewhere, env=environment, capture_output=True, text=True).stdout
    assert told == f"{site}/vift_eval/tasks\n" and (Path(told.strip()) / "vift_micro" / "questions.json").is_file()
