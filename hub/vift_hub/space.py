"""Makes the folder of a Hugging Face Space: page, packages and bundled model, laid out as in the repository.

    python -m vift_hub.space build/space
    hf upload my-org/my-space build/space . --repo-type space

A Space installs requirements.txt and nothing else, so the packages go along as they are.
"""

import argparse
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = """space modeling_vift microworld/vift_microworld pictures/vift_pictures eval/vift_eval hub/vift_hub
checkpoints/vift-micro""".split()
ON_TOP = ("space/README.md", "space/requirements.txt", "LICENSE")


def assemble(target: Path) -> None:
    """Raises FileExistsError where `target` is there already, FileNotFoundError without the repository (a wheel)."""
    for name in (*FOLDERS, *ON_TOP):
        (ROOT / name).stat()
    target.mkdir(parents=True)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__", ".gradio"))
    for name in ON_TOP:
        shutil.copy(ROOT / name, target)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="vift_hub.space", description=__doc__.split("\n")[0])
    parser.add_argument("target", type=Path, help="a new folder")
    target = parser.parse_args(argv).target
    try:
        assemble(target)
    except FileExistsError:
        parser.exit(2, f"vift_hub.space: error: {target} exists; name a new folder\n")
    except OSError as error:
        parser.exit(2, f"vift_hub.space: error: {error}; run it in a clone of the repository\n")
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
