"""Makes the folder of a Hugging Face Space: page, packages and bundled model, laid out as in the repository.

    python -m vift_hub.space build/space
    hf upload my-org/my-space build/space . --repo-type space

A Space installs requirements.txt and nothing else, so the packages go along as they are.
"""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("space", "modeling_vift", "microworld/vift_microworld", "eval/vift_eval", "checkpoints/vift-micro")
ON_TOP = ("space/README.md", "space/requirements.txt", "LICENSE")


def assemble(target: Path) -> None:
    """Raises FileExistsError where `target` is there already."""
    target.mkdir(parents=True)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__", ".gradio"))
    for name in ON_TOP:
        shutil.copy(ROOT / name, target)


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__)
        return 2
    try:
        assemble(Path(arguments[0]))
    except FileExistsError:
        print(f"vift_hub.space: error: {arguments[0]} exists; name a new folder", file=sys.stderr)
        return 2
    print(f"wrote {arguments[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
