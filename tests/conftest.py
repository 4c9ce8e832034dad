"""What holds for every test: offline, one thread, and no cache shared with the user or another run.

The variables are set here, before any test imports torch or transformers, and are inherited by the
processes that tests start.
"""

import atexit
import os
import shutil
import socket
import tempfile

import pytest
from PIL import ImageFile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny: more threads only wait

# Remote code is copied into this folder on loading. A fresh one a process: no stale copy, no race.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="vift-test-modules-")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)

LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A connection to another machine is an error, so that no test passes only while online."""
    connect = socket.socket.connect

    def guarded(self, address):
        if isinstance(address, tuple) and not str(address[0]).startswith(LOOPBACK):
            raise OSError(f"a test tried to connect to {address[0]}; tests run offline")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def truncated_pictures_are_errors(monkeypatch):
    """lmms-eval has PIL fill them up, in the whole process that imports it; these tests share one with it."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
