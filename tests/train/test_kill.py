"""A run that is killed at any moment, saves included, and resumed has the losses and weights of one that never was.

VIFT_KILLS=20 kills twenty times; without it a few, in CI.
"""

import os
import subprocess
import sys
from pathlib import Path

KILLS = int(os.environ.get("VIFT_KILLS", 5))


def test_killed_at_any_moment_and_resumed_equals_never_killed(tmp_path):
    script = Path(__file__).with_name("kills.py")
    command = [sys.executable, str(script), str(tmp_path), str(KILLS), os.environ.get("VIFT_KILLS_SEED", "0")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=Path(__file__).parents[2])
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    print(ran.stdout)
    assert ran.stdout.count("killed at moment") == KILLS and ran.stdout.count("before the final save") == 4
