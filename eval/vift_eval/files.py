"""Files that commands write: JSON with one record a line, Markdown tables, and by what a result was made."""

import hashlib
import json
import platform
import subprocess
import sys
from pathlib import Path

from vift_hub.cli import UserError, first_line

ROOT = Path(__file__).resolve().parents[2]


def json_lines(value, depth: int = 2, indent: str = "") -> str:
    """JSON in which everything below `depth` containers stands on one line, so that a diff shows records."""
    if depth == 0 or not isinstance(value, dict | list) or not value:
        return json.dumps(value, ensure_ascii=False)
    inner = indent + " "
    if isinstance(value, list):
        if not any(isinstance(one, dict | list) for one in value):
            return json.dumps(value, ensure_ascii=False)
        lines = [inner + json_lines(one, depth - 1, inner) for one in value]
        return "[\n" + ",\n".join(lines) + f"\n{indent}]"
    lines = [f"{inner}{json.dumps(str(key))}: {json_lines(one, depth - 1, inner)}" for key, one in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def write_json(path: Path, value) -> None:
    """Writes `value`, one record a line: whole or not at all."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    part.write_text(json_lines(value) + "\n", encoding="utf-8")
    part.replace(path)


def read_json(path: Path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def json_rows(path: Path, count: int, argument: str) -> list[tuple[int, object]]:
    """
    (line number, value) of the first `count` lines of JSON; a line that is none has the value None.

    Raises:
        UserError: unreadable; `argument` is what the user calls the file.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()][:count]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{argument} can't be read ({first_line(error)})") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append((number, json.loads(line)))
        except ValueError:
            rows.append((number, None))
    return rows


def markdown_table(header: list, rows: list[list]) -> str:
    """A Markdown table; cells are put as `str` gives them."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def weights_sha256(folder: Path) -> str | None:
    """SHA-256 over the weights files of a model's folder; None where there are none, as for a Hub id."""
    files = sorted(Path(folder).glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(1 << 24):
                digest.update(block)
    return digest.hexdigest() if files else None


def files_sha256(folder: Path) -> dict[str, str]:
    """File -> first 12 digits of its SHA-256, of what decides a model's answers: all but Markdown and pictures."""
    kinds = {".json", ".jinja", ".py", ".txt", ".model", ".safetensors", ".bin"}
    files = sorted(file for file in Path(folder).glob("*") if file.suffix in kinds)
    digests = {}
    for file in files:
        with file.open("rb") as opened:
            digests[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()[:12]
    return digests


def commit() -> str:
    """The commit of this checkout, with a + where files differ from it; "unknown" outside one."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=10", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    """Processor, Python, torch and transformers."""
    import torch
    import transformers

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (
        f"{names[0] if names else platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )


def command_line(command: str, argv: list[str] | None = None) -> str:
    """
    How a command was called, for `made_by`: names in the place of absolute paths.

    Args:
        command: of the console, or the `__file__` of a script of this checkout.
        argv: its arguments; those of this process when None.
    """
    if command.endswith(".py"):
        command = f"python {Path(command).resolve().relative_to(ROOT)}"
    words = sys.argv[1:] if argv is None else argv
    return " ".join([command, *(Path(word).name if Path(word).is_absolute() else word for word in words)])


def made_by(command: str, *models) -> dict:
    """
    What a result says of itself, under the key "made": the command, the commit of the code, each model's weights.

    Args:
        command: as a reader can type it.
        models: folders of checkpoints.

    Returns:
        {"command", "commit", "weights": {folder's name: first 12 digits of the SHA-256}, "machine"}.
    """
    weights = {Path(model).name: (weights_sha256(model) or "unknown")[:12] for model in models}
    return {"command": command, "commit": commit(), "weights": weights, "machine": machine()}


def made_line(made: dict) -> str:
    """`made_by` in one line: what a page prints, and what a picture carries as its `Source`."""
    weights = ", ".join(f"{name} {digits}" for name, digits in made["weights"].items())
    return f"{made['command']} (commit {made['commit']}{'; weights ' + weights if weights else ''}; {made['machine']})"


def save_figure(figure, path: Path, made: dict, **options) -> None:
    """A matplotlib figure with `made_line` in the file's text field `Source` (of a PDF: `Subject`)."""
    field = "Subject" if Path(path).suffix.lower() == ".pdf" else "Source"
    figure.savefig(path, metadata={field: made_line(made)}, **options)
