"""The folder that is put on a Space runs on its own; its header, requirements and the project's pins agree."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from space.app import main  # here, as what torch's packages say when they are first imported is not ours
from vift_hub.space import main as assemble

ROOT = Path(__file__).parents[2]


def pins(name):
    return dict(re.findall(r"^([A-Za-z0-9_-]+)==(\S+)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE))


def header():
    return yaml.safe_load((ROOT / "space" / "README.md").read_text(encoding="utf-8").split("---")[1])


def test_what_a_space_installs_is_what_was_tested():
    required, tested = pins("space/requirements.txt"), pins("constraints.txt")
    assert required and required == {name: tested[name] for name in required}
    assert header()["sdk_version"] == tested["gradio"]
    lines = (ROOT / "space" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert len(required) == sum(not line.startswith("#") for line in lines)  # nothing without a pin


def test_the_header_is_what_a_space_reads():
    fields = header()
    assert (fields["sdk"], fields["license"]) == ("gradio", "apache-2.0")
    assert (ROOT / fields["app_file"]).is_file() and len(fields["short_description"]) <= 60
    assert fields["suggested_hardware"] == "cpu-basic"


def test_the_assembled_folder_runs_without_the_repository(tmp_path, capsys):
    target = tmp_path / "space"
    assemble([str(target)])
    assert {"README.md", "requirements.txt", "LICENSE"} < {path.name for path in target.iterdir()}
    # -S: no editable install is found; only the packages that a Space would have, and the folder
    code = (
        "import runpy, sys; sys.argv = ['space/app.py', '--model', 'nowhere'];"
        "runpy.run_path('space/app.py')\n"
        "import vift_eval.models, vift_microworld, modeling_vift, space.engine\n"
        "for module in (vift_eval, vift_microworld, modeling_vift, space.engine): print(module.__file__)\n"
        "engine = space.engine.Engine(str(vift_eval.models.BUNDLED))\n"
        "print(engine.name)"
    )
    env = os.environ | {"PYTHONPATH": sysconfig.get_paths()["purelib"]}
    ran = subprocess.run([sys.executable, "-S", "-c", code], cwd=target, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.split()) == 5 and all(line.startswith(str(target)) for line in ran.stdout.split())
    with pytest.raises(SystemExit) as stopped:
        assemble([str(target)])
    assert stopped.value.code == 2 and "exists" in capsys.readouterr().err


def test_a_model_that_is_none_is_one_line_and_status_2(tmp_path, capsys):
    for name in ("org/model", str(tmp_path)):
        assert main(["--model", name]) == 2
        err = capsys.readouterr().err
        assert err.startswith("space: error: ") and err.count("\n") == 1


def test_without_the_repository_no_space_is_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vift_hub.space.ROOT", tmp_path)  # as in a wheel
    with pytest.raises(SystemExit) as stopped:
        assemble([str(tmp_path / "target")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "run it in a clone" in error and error.count("\n") == 1
    assert not (tmp_path / "target").exists()
