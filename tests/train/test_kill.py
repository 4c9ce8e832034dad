"""A run that is killed at any moment, saves included, and resumed has the losses and weights of one that never was.

VIFT_KILLS=20 kills twenty times; without it a few, in CI.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("VIFT_KILLS", 5))
KINDS = ("map1", "stream1", "map2", "stream2")


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_moment_and_resumed_equals_never_killed(kind, tmp_path):
    kills = KILLS // len(KINDS) + (KINDS.index(kind) < KILLS % len(KINDS))
    script = Path(__file__).with_name("kills.py")
    command = [sys.executable, str(script), str(tmp_path), kind, str(kills), os.environ.get("VIFT_KILLS_SEED", "0")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=Path(__file__).parents[2])
    assert ran.returncode == 0 and "DONE" in ran.stdout, ran.stdout + ran.stderr[-4000:]
    assert ran.stdout.count("killed at moment") == kills
    print(ran.stdout)
