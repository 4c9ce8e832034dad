"""A picture as a model sees it, wherever it comes from: whole, turned as its EXIF tag says, 8-bit RGB.

Only whole pictures: other libraries turn on Pillow's `LOAD_TRUNCATED_IMAGES`, for the whole process.
"""

import contextlib
import io
import threading
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image, ImageFile, ImageOps

DECODING = threading.RLock()  # the switch has one value for all threads


@contextlib.contextmanager
def whole_pictures():
    """While it lasts, a truncated picture is an OSError when it is decoded, whatever the switch says outside."""
    with DECODING, patch.object(ImageFile, "LOAD_TRUNCATED_IMAGES", False):
        yield


def eight_bit(image: Image.Image) -> Image.Image:
    """A picture of 16 or 32 bits or of floats, with its own range laid on 0..255 (Pillow would clip it); one of a
    single value is read as its type is meant. Any other picture as it is."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError("no pixel is a finite number")
    low, high = finite.min(), finite.max()
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    if low == high:
        low, high = 0.0, 1.0 if image.mode == "F" else 65535.0
    return Image.fromarray((np.clip((values - low) / (high - low), 0, 1) * 255).round().astype(np.uint8))


def to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """The first frame of an opened picture as RGB, transparency laid on white, and notes on what is unexpected.

    Raises: what Pillow raises for a picture that is not whole; ValueError: pixels without a finite value.
    """
    notes = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        image.seek(0)
        notes.append(f"has {frames} frames; only the first is used")
    with whole_pictures():
        image.load()
    image = ImageOps.exif_transpose(image)
    if (shown := eight_bit(image)) is not image:
        kind = {"F": "floating-point", "I": "32-bit"}.get(image.mode, "16-bit")
        notes.append(f"has {kind} pixels; rescaled to 8 bits: its darkest became black, its brightest white")
        from transformers.utils import logging  # takes seconds to import

        logging.get_logger(__name__).warning_once(f"A picture {notes[-1]}")  # here too: notes are not shown everywhere
        image = shown
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB"), notes


def open_stored(image: dict | Image.Image) -> Image.Image:
    """RGB of {"bytes", "path"} (a picture as `datasets` stores it), or of one that is open.

    Raises: ValueError: missing, empty, corrupt, truncated; one line.
    """
    path = None
    try:
        if isinstance(image, Image.Image):
            return to_rgb(image)[0]
        path = image["path"] if image["bytes"] is None else None
        with Image.open(io.BytesIO(image["bytes"]) if path is None else path) as picture:
            return to_rgb(picture)[0]
    except Exception as error:  # decoders raise whatever they like
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        if path is None:  # the text of such an error may hold an object of Python's
            reason = "not a kind that can be read" if "identify" in reason else reason
        shown = "" if path is None else f"{path} " if len(Path(path).name) < 256 else "of a path too long "
        raise ValueError(f"image {shown}can't be read ({type(error).__name__}: {reason[:200]})") from None
