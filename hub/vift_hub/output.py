"""A folder that a command writes: new, whole or not there, and of one run at a time."""

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout
from safetensors import SafetensorError

LOCK = ".cache/huggingface/vift-train.lock"  # where the Hub's client uploads nothing from


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


def lock(folder: str | Path, argument: str = "output_dir") -> FileLock:
    """Held as long as the result lives; released by the system when the process dies."""
    file = Path(folder) / LOCK
    file.parent.mkdir(parents=True, exist_ok=True)
    one = FileLock(file, is_singleton=True)
    try:
        one.acquire(timeout=6)  # data workers of a killed run notice its end within 5 seconds
    except Timeout:
        raise ValueError(f"{argument}={folder}: another run is writing there; give each run its own") from None
    return one
