"""The room uses the tiny checkpoint of tests/eval."""

from tests.eval.conftest import tiny_checkpoint  # noqa: F401
