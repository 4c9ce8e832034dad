"""Picture files that a Space must refuse, and one that it takes. Shared by the tests of API and browser."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.eval.test_images import png_header
from vift_microworld import visual_questions


def good(folder: Path) -> Path:
    path = folder / "scene.png"
    visual_questions(1)[0]["images"][0].save(path)
    return path


def odd(folder: Path) -> Path:
    """Of a kind that the bundled model does not know."""
    path = folder / "odd.png"
    Image.linear_gradient("L").convert("RGB").save(path)
    return path


def fifty_megapixels(folder: Path) -> Path:
    path = folder / "fifty.png"
    Image.new("1", (10_000, 5_000)).save(path)
    return path


def bomb(folder: Path) -> Path:
    path = folder / "bomb.png"
    path.write_bytes(png_header(60_000, 60_000))
    return path


def corrupt(folder: Path) -> Path:
    path = folder / "corrupt.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    return path


def no_picture(folder: Path) -> Path:
    path = folder / "words.png"
    path.write_text("hello")
    return path


REFUSED = {
    fifty_megapixels: "million pixels",
    bomb: "million pixels",
    corrupt: "corrupt.png",
    no_picture: "not a picture",
}
