"""Open a picture a user hands over: any common kind becomes 8-bit RGB, the rest one clear error.

Turned as its EXIF tag says; transparency laid on white; CMYK, palette and gray converted; 16-bit, 32-bit
and floating-point pixels rescaled by the picture's own range (`vift_hub.pictures`, as in training); of an
animation the first frame. Refused, as an `ImageError` of one line: missing, empty, corrupt and truncated
files, files that are no picture, and more than `max_pixels` (checked before anything is decoded, so a
decompression bomb costs nothing).
"""

import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from vift_hub import pictures
from vift_hub.cli import first_line

MAX_PIXELS = 64_000_000  # twice a 32-megapixel camera; 192 MB once decoded


class ImageError(ValueError):
    """The file cannot be used as a picture; the message is one line for the user."""


def open_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, list[str]]:
    """Returns the picture as RGB and notes on what was done to it that a user may not expect.

    Raises: ImageError.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageError(f"{path}: {'a folder, no picture' if path.is_dir() else 'no such file'}")
    try:
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty (0 bytes)")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures (refused here) and odd metadata
            with Image.open(path) as image:
                if image.width * image.height > max_pixels:
                    raise ImageError(too_large(path, f"{image.width} × {image.height}", max_pixels))
                return to_rgb(image, path)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not a picture, or a kind this program cannot read") from None
    except Image.DecompressionBombError:
        raise ImageError(too_large(path, "the picture", max_pixels)) from None
    except (OSError, MemoryError) as error:
        raise ImageError(f"{path}: cannot be read ({first_line(error)})") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on corrupt bytes
        raise ImageError(f"{path}: damaged picture ({first_line(error)})") from error


def to_rgb(image: Image.Image, path: Path) -> tuple[Image.Image, list[str]]:
    image, notes = pictures.to_rgb(image)
    return image, [f"{path} {note}" for note in notes]


def too_large(path: Path, what: str, max_pixels: int) -> str:
    return f"{path}: {what} is more than {max_pixels / 1e6:.0f} million pixels; make it smaller"
