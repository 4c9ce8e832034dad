"""A model is looked up once; Python files of a repository on the Hub run only when that is asked for."""

import os
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import HfApi

from tests.eval.conftest import tiny_checkpoint  # noqa: F401
from vift_hub.cli import UserError
from vift_hub.models import config_of, find

LOAD = """
import os, sys
from vift_eval.models import load_model
model, processor = load_model("org/tiny")
assert type(model).__module__.startswith("modeling_vift."), type(model)
assert not os.path.exists(sys.argv[1]), "code of the repository ran"
model, processor = load_model("org/tiny", trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
assert os.path.exists(sys.argv[1])
"""


def test_code_from_the_hub_runs_only_when_asked_for(tiny_checkpoint, tmp_path):  # noqa: F811
    commit = "0123456789" * 4
    repository = tmp_path / "home" / "hub" / "models--org--tiny"
    shutil.copytree(tiny_checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    with (repository / "snapshots" / commit / "modeling_vift.py").open("a") as file:
        file.write(f"\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    places = {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", LOAD, str(tmp_path / "ran")]
    ran = subprocess.run(command, env=os.environ | places, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("note: the Python files of org/tiny are not run") == 1


def test_a_name_that_the_hub_lacks_is_asked_for_once(hub, in_process, monkeypatch):
    asked, plain = [], HfApi.model_info
    monkeypatch.setattr(HfApi, "model_info", lambda *args, **kwargs: asked.append(1) or plain(*args, **kwargs))
    with pytest.raises(UserError, match="--model=org/none is neither a folder nor found on the Hub$"):
        config_of("org/none")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://localhost:9")
    with pytest.raises(UserError, match="org/none is neither .*: the Hub can't be reached"):
        find("org/none")
    assert len(asked) == 2
    for name in ("./none", "/none", "a/b/c", "runs/x y"):
        with pytest.raises(UserError, match="there is no such file or folder"):
            find(name)
    assert len(asked) == 2


def test_folders_that_are_no_models_are_named(tmp_path):
    for text, words in (("{", "not a readable model"), ("[]", "'unknown'"), ('{"model_type": "llava"}', "'llava'")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=words):
            config_of(str(tmp_path))
