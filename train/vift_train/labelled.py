"""The loss of a CPU step, on labelled positions only.

TRL leaves unlabelled positions out of its fused head and loss where it has Triton; elsewhere it scores every position
and masks afterwards, lest compiled kernels meet new shapes. CPUs have no such kernels, and with captions of ten tokens
in prompts of fifty that costs more than a third of a step
(docs/results/training/step.json).
"""

from contextlib import nullcontext
from unittest.mock import patch

from trl.trainer import utils


def labelled_only():
    """A context in which TRL's loss (1.16) leaves out unlabelled positions on CPUs too; other versions as they are."""
    as_it_is = getattr(utils, "_use_triton", None)
    if as_it_is is None:
        return nullcontext()
    return patch.object(utils, "_use_triton", lambda device: device.type == "cpu" or as_it_is(device))
