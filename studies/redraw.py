"""The pictures under docs/results, drawn again from the results beside them: nothing is measured.

    python -m vift_studies.redraw                        # after a change of how pictures look
    python -m vift_studies.redraw --only paper bridge

Each picture keeps the `Source` of its results. Not among them: demo.png and space.png, which show answers that no
results file holds.
"""

import argparse
import shutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from vift_eval.files import ROOT, read_json

from .bands import bridge
from .bands import page as bands
from .paper import plots as paper

RESULTS = ROOT / "docs" / "results"


def script(name: str):
    """A module of studies/benchmarks, which holds scripts and is no package."""
    folder = str(Path(__file__).with_name("benchmarks"))
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return import_module(name)


def performance(results: dict, folder: Path) -> None:
    script("latency").plot(results["cells"], folder / "performance.png", results["made"])


def span(results: dict, folder: Path) -> None:
    script("spans").draw(results, folder / "span.png")


def layers(results: dict, folder: Path) -> None:
    from vift_eval.layers import plots

    plots.draw(results, folder)


def sweep(results: dict, folder: Path) -> None:
    from vift_eval.sweep import report

    with tempfile.TemporaryDirectory() as place:
        for path in report.write(results, Path(place)):
            if path.suffix == ".png":
                shutil.copy(path, folder)


# folder of docs/results -> (its results file, what draws it)
PICTURES = {
    "paper": ("results.json", paper.draw),
    "bands": ("bands.json", bands.draw),
    "bridge": ("bridge.json", bridge.draw),
    "performance": ("performance.json", performance),
    "span": ("span.json", span),
    "sweep": ("results.json", sweep),
    "layers/stage1": ("analysis.json", layers),
    "layers/visual-instructions": ("analysis.json", layers),
}


def redraw(name: str, output: Path) -> None:
    """The pictures of one folder into `output`."""
    file, draw = PICTURES[name]
    draw(read_json(RESULTS / name / file), output)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(PICTURES), choices=PICTURES, help="folders of docs/results")
    args = parser.parse_args(argv)
    for name in args.only:
        redraw(name, RESULTS / name)
        print(RESULTS.relative_to(ROOT) / name, flush=True)


if __name__ == "__main__":
    main()
