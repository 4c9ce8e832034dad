"""Scenes of one to four drawings on a background, and their rendering.

A scene holds one to three kinds of things, each once or several times, at named places, on a background that has a
colour and a texture. A *layout* is (places, size, colour, texture); each belongs to one split, by a hash, so that no
layout of a test scene was ever trained on. Same seed, same scene: draws come from `random.Random` seeded with a
string.

    train, validation, test   drawings of Twemoji, layouts of their own
    style                     test layouts, drawings of OpenMoji, a style never trained on
    facts                     test layouts; questions are about concepts whose facts stand in no text instruction
"""

import random
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from PIL import Image, ImageFilter, ImageOps, ImageStat

from . import concepts

IMAGE_SIZE = 224
SPLITS = ("train", "validation", "test", "style", "facts")
COLORS = {
    "white": (250, 250, 248), "black": (38, 38, 42), "gray": (158, 160, 164), "red": (214, 62, 58),
    "orange": (244, 152, 52), "yellow": (250, 224, 92), "green": (104, 178, 98), "blue": (92, 148, 220),
    "purple": (152, 104, 192), "pink": (246, 172, 196), "brown": (142, 100, 68),
}  # fmt: skip
TEXTURES = ("plain", "striped", "dotted", "shaded")
PLACES = tuple(
    f"{row} {column}".strip() for row in ("top", "", "bottom") for column in ("left", "", "right") if row or column
)
PLACES = (*PLACES[:4], "center", *PLACES[4:])  # in reading order
_CORNERS = ("top left", "top right", "bottom left", "bottom right")
# number of things -> (places, sizes in pixels of 224)
LAYOUTS = {
    1: [*(((place,), (72, 100)) for place in PLACES), (("center",), (140, 168))],
    2: [(pair, (72, 86, 100)) for pair in
        (("left", "right"), ("top", "bottom"), ("top left", "bottom right"), ("top right", "bottom left"))],
    3: [(("left", "center", "right"), (60, 66)), *((three, (72, 86, 100)) for three in combinations(_CORNERS, 3))],
    4: [(_CORNERS, (72, 86, 100))],
}  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """One drawing: `x`, `y` its middle and `size` its longer side, in pixels of 224; `angle` in degrees."""

    name: str
    points: str
    place: str
    x: int
    y: int
    size: int
    angle: int


@dataclass(frozen=True)
class Scene:
    """Things in reading order on a background."""

    things: tuple[Thing, ...]
    color: str
    texture: str
    style: str = "twemoji"
    seed: int = 0  # of the background's tint and pattern

    @property
    def counts(self) -> dict[str, int]:
        """Name -> how many there are, in reading order."""
        names = [thing.name for thing in self.things]
        return {name: names.count(name) for name in dict.fromkeys(names)}


def check_split(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    return split


def split_of(places: tuple[str, ...], size: int, color: str, texture: str) -> str:
    """The split that a layout belongs to: train for eight of ten."""
    number = random.Random(f"layout/{'+'.join(places)}/{size}/{color}/{texture}").randrange(10)
    return {8: "validation", 9: "test"}.get(number, "train")


def compose(rng: random.Random, split: str, names: list[str]) -> Scene:
    """A scene of the things named (one to four, repeated where there are several), in a layout of `split`."""
    wanted = check_split(split) if split in ("train", "validation") else "test"
    if len(names) not in LAYOUTS:
        raise ValueError(f"names must be one to four, got {len(names)}: {names}")
    while True:
        places, sizes = rng.choice(LAYOUTS[len(names)])
        size, color, texture = rng.choice(sizes), rng.choice(tuple(COLORS)), rng.choice(TEXTURES)
        if split_of(places, size, color, texture) == wanted:
            break
    names, known = rng.sample(names, len(names)), concepts.concepts()
    spread = 0.33 if places == ("left", "center", "right") else 0.26
    points = {name: rng.choice(known[name].drawings) for name in sorted(set(names))}
    things = []
    for place, name in zip(places, names):
        x = 0.5 + spread * (("right" in place) - ("left" in place))
        y = 0.5 + spread * (("bottom" in place) - ("top" in place))
        x, y = (round(part * IMAGE_SIZE) + rng.randint(-5, 5) for part in (x, y))
        angle = 0 if known[name].kind in ("flag", "weather") else rng.randint(-10, 10)
        things.append(Thing(name, points[name], place, x, y, round(size * rng.uniform(0.92, 1)), angle))
    style = "openmoji" if split == "style" else "twemoji"
    return Scene(tuple(things), color, texture, style, rng.randrange(2**31))


def sample_names(rng: random.Random, pool: list[str]) -> list[str]:
    """Names of one to four things; in half of the scenes of several, some are of one kind."""
    count = rng.choices((1, 2, 3, 4), (8, 5, 4, 3))[0]
    kinds = rng.randint(1, min(3, count)) if count > 1 and rng.random() < 0.5 else min(count, 3)
    names = rng.sample(pool, kinds)
    return names + [rng.choice(names) for _ in range(count - kinds)]


def sample_scenes(count: int, seed: int = 0, split: str = "train", purpose: str = "") -> list[Scene]:
    """`count` scenes; scene `i` depends on (seed, split, purpose, i) only, not on `count`."""
    check_split(split)
    rngs = [random.Random(f"{seed}/{split}/{purpose}/scene/{i}") for i in range(count)]
    pool = list(concepts.concepts())
    return [compose(rng, split, sample_names(rng, pool)) for rng in rngs]


def _background(scene: Scene, size: int) -> np.ndarray:
    """(size, size, 3) float32."""
    rng = np.random.default_rng(scene.seed)
    color = np.array(COLORS[scene.color], np.float32) + rng.uniform(-8, 8, 3).astype(np.float32)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) * (IMAGE_SIZE / size)
    turn, step = rng.uniform(0, np.pi), rng.uniform(22, 44)
    along = np.cos(turn) * x + np.sin(turn) * y
    if scene.texture == "striped":
        light = np.where(along % step < step / 2, 14.0, -14.0)
    elif scene.texture == "dotted":
        light = np.where(np.hypot(x % step - step / 2, y % step - step / 2) < step / 5, -26.0, 6.0)
    elif scene.texture == "shaded":
        light = 44 * (along - along.min()) / (along.max() - along.min()) - 22
    else:
        light = rng.normal(0, 2, (size, size))
    return color + light[..., None]


def _outlined(drawn: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """The drawing with a line around it where it is of the background's `color`: a clover on green is still seen."""
    mean = ImageStat.Stat(drawn.convert("RGB"), drawn.getchannel("A")).mean
    if max(abs(a - b) for a, b in zip(mean, color)) > 70:
        return drawn
    drawn = ImageOps.expand(drawn, 3, (0, 0, 0, 0))
    line = Image.new("RGBA", drawn.size, (255, 255, 255) if sum(color) < 600 else (60, 60, 60))
    line.putalpha(drawn.getchannel("A").filter(ImageFilter.MaxFilter(5)))
    return Image.alpha_composite(line, drawn)


def render(scene: Scene, size: int = IMAGE_SIZE) -> Image.Image:
    """The picture of a scene, RGB, `size` x `size` pixels."""
    picture = Image.fromarray(_background(scene, size).clip(0, 255).astype(np.uint8))
    scale = size / IMAGE_SIZE
    for thing in scene.things:
        drawn = concepts.drawing(thing.points, scene.style)
        part = thing.size * scale / max(drawn.size)
        drawn = drawn.resize([max(1, round(side * part)) for side in drawn.size], Image.Resampling.BICUBIC)
        if thing.angle:
            drawn = drawn.rotate(thing.angle, Image.Resampling.BICUBIC, expand=True)
        drawn = _outlined(drawn, COLORS[scene.color])
        left, top = (round(middle * scale - side / 2) for middle, side in zip((thing.x, thing.y), drawn.size))
        picture.paste(drawn, (left, top), drawn)
    return picture
