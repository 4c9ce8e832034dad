"""Scenes of real handwritten digits on a 3 x 3 grid, and their rendering.

A scene holds 2 to 5 objects: a digit 0-9 (all different), one of six colours, one of nine places.
Each object is drawn with a handwriting sample of scikit-learn's bundled `load_digits` (8 x 8 pixels,
1797 samples), doubled to 16 x 16, moved by at most one pixel and coloured. A picture is 48 x 48 x 3.

Splits never share a handwriting sample: sample `i` belongs to the split `SPLIT_OF[i % 10]`.
Same seed, same bytes: draws come from `random.Random` seeded with a string (SHA-512 inside), and
rendering is integer arithmetic.
"""

import random
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from sklearn.datasets import load_digits

COLORS = {
    "red": (255, 60, 60),
    "green": (50, 205, 70),
    "blue": (80, 110, 255),
    "yellow": (255, 225, 50),
    "purple": (205, 70, 230),
    "white": (245, 245, 245),
}
PLACES = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "center", "right"))
BACKGROUND = (22, 22, 28)
CELL = 16
IMAGE_SIZE = 3 * CELL
MIN_OBJECTS, MAX_OBJECTS = 2, 5
SPLITS = ("train", "validation", "test")
# 60 % of the handwriting samples for training, 20 % each for validation and test
SPLIT_OF = ("train",) * 6 + ("validation",) * 2 + ("test",) * 2
SHIFTS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))


@dataclass(frozen=True)
class Object:
    """One drawn digit: `place` indexes PLACES, `glyph` a sample of load_digits, `shift` SHIFTS."""

    place: int
    color: str
    digit: int
    glyph: int
    shift: int

    @property
    def name(self) -> str:
        return f"{self.color} {self.digit}"

    @property
    def where(self) -> str:
        return PLACES[self.place]

    @property
    def row(self) -> int:
        return self.place // 3

    @property
    def column(self) -> int:
        return self.place % 3


@dataclass(frozen=True)
class Scene:
    """Objects in reading order (top left to bottom right)."""

    objects: tuple[Object, ...]


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    return data.images.astype(np.uint8), data.target.astype(np.int64)


@cache
def glyph_indices(split: str) -> dict[int, tuple[int, ...]]:
    """Digit -> indices into load_digits of the samples that belong to `split`."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    _, target = _digits()
    indices = [index for index in range(len(target)) if SPLIT_OF[index % 10] == split]
    return {digit: tuple(index for index in indices if target[index] == digit) for digit in range(10)}


@lru_cache(maxsize=1)
def _glyph_bank() -> np.ndarray:
    """(glyphs, shifts, 16, 16) intensities 0..16, doubled and moved by each of SHIFTS."""
    images, _ = _digits()
    doubled = images.repeat(2, axis=1).repeat(2, axis=2)
    padded = np.pad(doubled, ((0, 0), (1, 1), (1, 1)))
    shifted = [padded[:, 1 - dy : 1 - dy + CELL, 1 - dx : 1 - dx + CELL] for dy, dx in SHIFTS]
    return np.stack(shifted, axis=1)


def sample_scene(rng: random.Random, split: str) -> Scene:
    """Draw one scene with handwriting of `split`."""
    glyphs = glyph_indices(split)
    count = rng.randint(MIN_OBJECTS, MAX_OBJECTS)
    places = sorted(rng.sample(range(len(PLACES)), count))
    digits = rng.sample(range(10), count)
    objects = tuple(
        Object(
            place=place,
            color=rng.choice(tuple(COLORS)),
            digit=digit,
            glyph=rng.choice(glyphs[digit]),
            shift=rng.randrange(len(SHIFTS)),
        )
        for place, digit in zip(places, digits)
    )
    return Scene(objects)


def sample_scenes(count: int, seed: int, split: str, purpose: str = "") -> list[Scene]:
    """`count` scenes; scene `i` depends on (seed, split, purpose, i) only, not on `count`."""
    return [sample_scene(random.Random(f"{seed}/{split}/{purpose}/scene/{i}"), split) for i in range(count)]


def render(scenes: list[Scene]) -> np.ndarray:
    """(N, 48, 48, 3) uint8 pictures of the scenes."""
    bank = _glyph_bank()
    pictures = np.empty((len(scenes), IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    pictures[:] = np.array(BACKGROUND, dtype=np.uint8)
    objects = [
        (n, o.place, o.glyph, o.shift, *COLORS[o.color]) for n, scene in enumerate(scenes) for o in scene.objects
    ]
    number, place, glyph, shift, *color = np.array(objects, dtype=int).reshape(-1, 7).T
    ink = bank[glyph, shift].astype(np.uint16)[..., None]  # (M, 16, 16, 1)
    color = np.stack(color, axis=-1).astype(np.uint16)[:, None, None, :]
    background = np.array(BACKGROUND, dtype=np.uint16)
    drawn = ((ink * color + (16 - ink) * background) // 16).astype(np.uint8)
    # a view with one axis per grid row and column, so that all objects are written at once
    cells = pictures.reshape(len(scenes), 3, CELL, 3, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
    cells[number, place // 3, place % 3] = drawn
    return pictures
