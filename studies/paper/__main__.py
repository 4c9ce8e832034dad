"""The paper in a box: train what is needed over three seeds, measure every claim, write docs/results/paper/.

    python -m vift_studies.paper                 # or: make paper

Stopped or killed, the same command goes on where it was; `--page` writes the page from the steps that are done.
"""

import sys

from .. import runner
from .page import write_page
from .plan import plan


def main(argv: list[str] | None = None) -> int:
    return runner.main("vift_studies.paper", __doc__.split("\n")[0], plan, write_page, argv)


if __name__ == "__main__":
    sys.exit(main())
