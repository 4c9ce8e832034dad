"""`python slow.py space/app.py ...`: the Space with a model slow enough that a browser can see it stream."""

import runpy
import sys
import time

from torch.nn.modules.module import register_module_forward_hook

STEP = 0.03  # seconds a token, on top of the bundled model's few milliseconds


def wait(module, args, output):
    if hasattr(module, "generate"):
        time.sleep(STEP)


register_module_forward_hook(wait)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
