"""Made-up drawings: every concept is a coloured square, so that these tests need no package of drawings."""

import random

import pytest
from PIL import Image

from vift_pictures import concepts
from vift_pictures.facts import KIND_OF


def made_up_drawing(points: str, style: str = "twemoji") -> Image.Image:
    rng = random.Random(f"{points}/{style}")
    return Image.new("RGBA", (24, 16), tuple(rng.randrange(256) for _ in range(3)) + (255,))


@pytest.fixture
def made_up(monkeypatch):
    known = {name: concepts.Concept(name, kind, (name,)) for name, kind in KIND_OF.items()}
    monkeypatch.setattr(concepts, "concepts", lambda: known)
    monkeypatch.setattr(concepts, "drawing", made_up_drawing)
