"""Which layers to train: runs the steps of `study` and writes docs/results/bands/ (`page`).

    python -m vift_studies.bands      # work folder runs/paper: stage 1 of `make paper` is reused, or trained

Stopped or killed, the same command goes on where it was; `--page` writes the page from the steps that are done.
"""

import sys

from .. import runner
from .page import write_page
from .study import plan


def main(argv: list[str] | None = None) -> int:
    return runner.main("vift_studies.bands", __doc__.split("\n")[0], plan, write_page, argv)


if __name__ == "__main__":
    sys.exit(main())
