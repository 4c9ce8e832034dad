"""What a room imports is declared in pyproject.toml, by the extra that the room needs."""

import re
import sys
from importlib.metadata import packages_distributions

import pytest

from tests.imports import PYPROJECT, ROOMS, imports_of, read_modules

EXTRAS = {  # None: installed always
    "vift": None,
    "modeling_vift": None,
    "vift_hub": None,
    "vift_microworld": "microworld",
    "vift_pictures": "pictures",
    "vift_layers": "microworld",
    "vift_train": "train",
    "vift_eval": "eval",
    "vift_serve": "vllm",
    "vift_studies": "studies",
    "space": "space",
}
# what studies/benchmarks compares with; it stands in an environment of its own, as the benchmark's docstring says
# (docs/serving.md says the same of vLLM, whose pin of transformers excludes ours)
COMPARED = {"vllm", "ckatorch", "dadapy", "efficientnet_lite_pytorch", "repeng", "skdim"}
# what these commands import must come with less than their room's extra
COMMANDS = {"vift-demo": "microworld", "vift-analyze": "microworld", "vift-calibrate": "microworld"}


def declared(extra: str | None) -> set[str]:
    """Distributions that `vift[extra]` names, by itself and through other extras of ours."""
    project, names = PYPROJECT["project"], set()
    requirements = [*project["dependencies"], *(project["optional-dependencies"][extra] if extra else ())]
    for requirement in requirements:
        name, inner = re.match(r"([\w-]+)(?:\[([\w,]+)\])?", requirement).groups()
        if name == "vift":
            names |= set().union(*(declared(one) for one in inner.split(",")))
        else:
            names.add(normalised(name))
    return names


def normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def undeclared(names, modules, extra: str | None) -> dict[str, list[str]]:
    """Imported package -> the modules of `names` that import it although `extra` does not bring it."""
    distributions, wrong = packages_distributions(), {}
    for name in sorted(names):
        for package in {imported.split(".")[0] for imported in imports_of(name, modules, optional=False)}:
            ours = package in ROOMS or package in COMPARED or package in sys.stdlib_module_names
            if not ours and not {normalised(one) for one in distributions.get(package, ())} & declared(extra):
                wrong.setdefault(package, []).append(name)
    return wrong


def reached(start: str, modules) -> set[str]:
    """`start`, the modules of ours that it imports and can't do without, and so on."""
    names, waiting = set(), [start]
    while waiting:
        if (name := waiting.pop()) not in names:
            names.add(name)
            parents = [name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)]
            waiting += [one for one in [*imports_of(name, modules, optional=False), *parents] if one in modules]
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_what_a_room_imports_is_declared(room):
    modules = read_modules()
    names = {name for name in modules if name.split(".")[0] == room}
    assert undeclared(names, modules, EXTRAS[room]) == {}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_demonstration_needs_its_extra_only(command):
    modules = read_modules()
    module = PYPROJECT["project"]["scripts"][command].partition(":")[0]
    assert undeclared(reached(module, modules), modules, COMMANDS[command]) == {}


def test_what_is_not_declared_is_seen(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        "import trl\n\n\ndef f():\n    import numpy\n\n\ntry:\n    import gradio\nexcept ImportError:\n    pass\n"
    )
    assert undeclared(["room.a"], {"room.a": file}, None) == {"trl": ["room.a"]}
    assert undeclared(["room.a"], {"room.a": file}, "train") == {}
