"""The house: who may import whom, no circle between modules, no file too long, every package packed.

Floors, bottom to top; packages of one floor do not import each other, and none imports from above.
"""

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.imports import PYPROJECT, ROOMS, ROOT, imports_of, read_modules

FLOORS = (
    ("modeling_vift", "vift_microworld", "vift_pictures", "vift_layers"),
    ("vift_hub",),
    ("vift_train", "vift_eval", "vift_serve"),
    ("vift_studies", "space"),
    ("vift",),
)
DATA = {"vift_eval.tasks", "vift_train.recipes", "vift_hub.checkpoints"}  # packed beside the code
LONGEST_FILE, MOST_LINES_OF_THE_MODEL = 400, 1300  # lines


def wrong_imports(modules: dict[str, Path]) -> list[str]:
    """Imports of another package of the same floor or of a higher one."""
    floor = {package: number for number, packages in enumerate(FLOORS) for package in packages}
    wrong = []
    for name in modules:
        own = name.split(".")[0]
        for imported in sorted(imports_of(name, modules)):
            other = imported.split(".")[0]
            if other != own and floor.get(other, -1) >= floor[own]:
                wrong.append(f"{name} imports {imported}")
    return wrong


def circle(modules: dict[str, Path]) -> list[str]:
    """The modules of a circle of imports, or none."""
    graph = {name: imports_of(name, modules) & modules.keys() for name in modules}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def count_lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def too_long(files, longest: int = LONGEST_FILE) -> dict[str, int]:
    """File -> lines, of those that have more than `longest`."""
    return {str(file): lines for file in files if (lines := count_lines(file)) > longest}


def lines_of_the_model(modules: dict[str, Path]) -> int:
    return sum(count_lines(file) for name, file in modules.items() if name.split(".")[0] == "modeling_vift")


def test_no_import_runs_upward_or_sideways():
    assert wrong_imports(read_modules()) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circle(read_modules()) == []


def test_no_file_is_too_long():
    assert too_long([*read_modules().values(), *(ROOT / "tests").rglob("*.py")]) == {}
    assert lines_of_the_model(read_modules()) <= MOST_LINES_OF_THE_MODEL


def test_every_package_is_packed():
    modules = read_modules()
    packages = {name for name, file in modules.items() if file.name == "__init__.py"} - {"space"}
    assert packages | DATA == set(PYPROJECT["tool"]["setuptools"]["packages"])
    assert {package for floor in FLOORS for package in floor} == ROOMS.keys()


# The rules can be broken -------------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path):
    """A made-up tree with one module a.py in every room; returns a function that writes another one and reads all."""

    def write(**files: str) -> dict[str, Path]:
        for package, text in files.items():
            name, _, module = package.partition("__")
            (tmp_path / ROOMS[name] / f"{module or 'b'}.py").write_text(text, encoding="utf-8")
        return read_modules(tmp_path)

    for folder in ROOMS.values():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "__init__.py").touch()
        (tmp_path / folder / "a.py").write_text("import torch\n\nvalue = 1\n")
    return write


def test_a_house_in_order_passes(house):
    modules = house(
        vift_hub="from modeling_vift.a import value\nfrom . import a\n",
        vift_train="import vift_hub.a\nimport vift_layers\n",
        vift_eval="from vift_hub import a\nfrom .a import value\n",
        vift_studies="from vift_eval import a\nfrom vift_train.a import value\n",
        space="from vift_eval.a import value\n",
        vift="from vift_train.a import value\n",
    )
    assert wrong_imports(modules) == [] and circle(modules) == [] and too_long(modules.values()) == {}


@pytest.mark.parametrize(
    "package, text, imported",
    [
        ("modeling_vift", "import vift_microworld", "vift_microworld"),
        ("vift_layers", "from modeling_vift.a import value", "modeling_vift.a"),
        ("vift_microworld", "def f():\n    from vift_hub import a", "vift_hub.a"),
        ("vift_pictures", "import vift_microworld", "vift_microworld"),
        ("vift_hub", "import vift_train.a as one", "vift_train.a"),
        ("vift_train", "if False:\n    import vift_eval", "vift_eval"),
        ("vift_serve", "import vift_eval.a", "vift_eval.a"),
        ("vift_eval", "try:\n    import vift_train\nexcept ImportError:\n    pass", "vift_train"),
        ("vift_eval", "import importlib\n\nimportlib.import_module('vift_studies.a')", "vift_studies.a"),
        ("vift_studies", "from space.a import value", "space.a"),
        ("vift_hub", "import vift.a", "vift.a"),
    ],
)
def test_an_import_upward_or_sideways_is_seen(house, package, text, imported):
    assert wrong_imports(house(**{package: text + "\n"})) == [f"{package}.b imports {imported}"]


def test_a_circle_is_seen_also_through_functions_and_relative_imports(house):
    modules = house(
        vift_eval__b="from . import c\n",
        vift_eval__c="def f():\n    from .d import value\n",
        vift_eval__d="from vift_eval.b import value\n",
    )
    assert set(circle(modules)) == {"vift_eval.b", "vift_eval.c", "vift_eval.d"}
    assert circle(house(vift_eval__d="value = 1\n")) == []
    assert set(circle(house(vift_studies__c="import b\n", vift_studies__b="import c\n"))) == {
        "vift_studies.b",
        "vift_studies.c",
    }


def test_long_files_are_seen(house):
    modules = house(vift_hub="pass\n" * 400, modeling_vift="pass\n" * (MOST_LINES_OF_THE_MODEL - 3))
    assert list(too_long(modules.values())) == [str(modules["modeling_vift.b"])]
    assert lines_of_the_model(modules) == MOST_LINES_OF_THE_MODEL
    modules = house(vift_hub="pass\n" * 401, modeling_vift="pass\n" * (MOST_LINES_OF_THE_MODEL - 2))
    assert str(modules["vift_hub.b"]) in too_long(modules.values())
    assert lines_of_the_model(modules) > MOST_LINES_OF_THE_MODEL
