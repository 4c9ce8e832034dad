"""A Hub on localhost for the tests of a file."""

import pytest

from tests.hub.server import start


@pytest.fixture(scope="module")
def hub():
    hub = start()
    yield hub
    hub.shutdown()
