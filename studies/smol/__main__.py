"""A real language model in the paper's own form: train over seeds, measure, write docs/results/smol/.

    python -m vift_studies.smol                  # or: make smol

Stopped or killed, the same command goes on where it was; `--page` writes the page from the steps that are done.
"""

import sys

from .. import runner
from .page import write_page
from .plan import SMOL, plan


def main(argv: list[str] | None = None) -> int:
    return runner.main("vift_studies.smol", __doc__.split("\n")[0], plan, write_page, argv, "runs/smol", SMOL)


if __name__ == "__main__":
    sys.exit(main())
