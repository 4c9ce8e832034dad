"""`import vift`: quick, lazy, and a missing extra is named."""

import subprocess
import sys

import pytest

import vift

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""


def fresh(code: str, blocked=()) -> subprocess.CompletedProcess:
    code = BLOCKED.format(names=set(blocked)) + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_importing_the_package_is_quick_and_imports_nothing_of_the_rooms():
    code = (
        "import time\nstart = time.process_time()\nimport vift\nassert vift.__version__\n"
        "seconds = time.process_time() - start\nassert seconds < 0.3, seconds\n"
        "heavy = {'torch', 'transformers', 'modeling_vift', 'vift_hub'}\n"
        "assert not {one.split('.')[0] for one in sys.modules} & heavy"
    )
    ran = fresh(code)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("name", [name for name in vift.__all__ if name != "__version__"])
def test_every_name_is_what_its_room_has(name):
    found = getattr(vift, name)
    module = vift.NAMES[name][0]
    assert found is getattr(sys.modules[module], name, sys.modules[module]) and name in dir(vift)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'fuse'"):
        vift.fuse  # noqa: B018
    with pytest.raises(ImportError, match="fuse"):
        from vift import fuse  # noqa: F401


def test_a_missing_extra_is_named_by_the_package_and_by_the_commands():
    code = """
import vift
try:
    vift.VIFTTrainer
except ImportError as error:
    assert "pip install 'vift[train]'" in str(error) and "No module named" not in str(error), error
else:
    raise AssertionError
from vift.__main__ import main
sweep = ["sweep", "--model", str(vift.BUNDLED), "--tasks", "t", "--output", "x", "--beta", "0.1"]
train, micro, analyze = ["train", "--captions", "x"], ["micro", "--output", "x"], ["analyze", "--output", "x"]
for arguments in (train, micro, ["demo"], sweep, analyze, ["calibrate"]):
    try:
        main(arguments)
    except SystemExit as left:
        assert left.code == 2, arguments
"""
    ran = fresh(code, blocked=["datasets", "lmms_eval"])
    assert ran.returncode == 0, ran.stderr
    lines = ran.stderr.strip().splitlines()
    extras = {"train": "train", "micro": "train", "demo": "microworld", "sweep": "eval", "analyze": "microworld"}
    for line, (name, extra) in zip(lines, (extras | {"calibrate": "microworld"}).items(), strict=True):
        assert line.startswith(f"vift {name}: error: needs `pip install 'vift[{extra}]'` ("), line
