"""A Hub on localhost for the tests of a file, and `vift push` in this process."""

import time

import pytest
from huggingface_hub import constants

from tests.hub.server import start
from vift_hub import commands, stage


@pytest.fixture(scope="module")
def hub():
    hub = start()
    yield hub
    hub.shutdown()


@pytest.fixture
def in_process(hub, monkeypatch):
    """main() of vift push in this process, online with `hub`; returns a function that runs it."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client's pauses between tries (the server waits)
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    monkeypatch.setenv("HF_TOKEN_PATH", "/nonexistent")
    yield commands.push
    hub.refuse_commits, hub.break_uploads, hub.stall_uploads, hub.race = None, False, False, False


@pytest.fixture
def unchecked(monkeypatch):
    """Skips the fresh process of the round trip, which has tests of its own."""
    monkeypatch.setattr(stage, "check", lambda *args: None)
