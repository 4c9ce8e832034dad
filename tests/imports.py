"""What the project's modules import, read from their source: also inside functions, and relative imports resolved."""

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ROOMS = {
    "vift": "vift",
    "modeling_vift": "modeling_vift",
    "vift_microworld": "microworld/vift_microworld",
    "vift_pictures": "pictures/vift_pictures",
    "vift_layers": "layers/vift_layers",
    "vift_hub": "hub/vift_hub",
    "vift_train": "train/vift_train",
    "vift_eval": "eval/vift_eval",
    "vift_serve": "serve/vift_serve",
    "vift_studies": "studies",
    "space": "space",
}


def read_modules(root: Path = ROOT, rooms: dict[str, str] = ROOMS) -> dict[str, Path]:
    """Dotted name -> file, of every module in the rooms."""
    modules = {}
    for package, folder in rooms.items():
        for file in sorted((root / folder).rglob("*.py")):
            parts = file.relative_to(root / folder).with_suffix("").parts
            modules[".".join([package, *parts]).removesuffix(".__init__")] = file
    return modules


def imports_of(name: str, modules: dict[str, Path], optional: bool = True) -> set[str]:
    """
    Dotted names that the module `name` imports. `from a import b` is `a.b` where that is one of `modules`, else `a`.

    Args:
        optional: also those that may fail, inside `try: ... except ImportError`.
    """
    file = modules[name]
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    allowed_to_fail = {
        id(node)
        for attempt in ast.walk(tree)
        if isinstance(attempt, ast.Try) and any("ImportError" in ast.dump(handler) for handler in attempt.handlers)
        for statement in attempt.body
        for node in ast.walk(statement)
    }
    names = set()
    for node in ast.walk(tree):
        if not optional and id(node) in allowed_to_fail:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            inner = {f"{base}.{alias.name}" for alias in node.names}
            names |= {one if one in modules else base for one in inner}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            names |= {part.value for part in node.args[:1] if isinstance(part, ast.Constant)}
    # scripts of one folder import each other by their bare names
    return {f"{package}.{one}" if f"{package}.{one}" in modules and one not in modules else one for one in names}
