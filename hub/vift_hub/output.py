"""A folder that a command writes: new, and whole or not there."""

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError


def check_new(output: Path) -> None:
    """Raises ValueError where `output` is a file, or a folder that holds something."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output={output} exists and is not an empty folder")


@contextmanager
def new_folder(output: Path):
    """A folder to write into, which takes the place of `output` at the end; ValueError where it can't be written."""
    check_new(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=output.parent) as scratch:
            part = Path(scratch) / output.name
            part.mkdir()
            yield part
            part.replace(output)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"output={output} cannot be written: {error}") from error
