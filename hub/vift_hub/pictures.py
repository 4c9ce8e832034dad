"""Only whole pictures: other libraries turn on Pillow's `LOAD_TRUNCATED_IMAGES`, for the whole process."""

import contextlib
import threading
from unittest.mock import patch

from PIL import ImageFile

DECODING = threading.RLock()  # the switch has one value for all threads


@contextlib.contextmanager
def whole_pictures():
    """While it lasts, a truncated picture is an OSError when it is decoded, whatever the switch says outside."""
    with DECODING, patch.object(ImageFile, "LOAD_TRUNCATED_IMAGES", False):
        yield
