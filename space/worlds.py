"""The worlds that models were trained on: scenes to ask about, what a caption is, what to say of it. One class each.

Everything on the page that is of one world stands here; `world_of` chooses by the size of the pictures that a model
reads.
"""

import random

from PIL import Image

from vift_hub.cli import UserError
from vift_microworld import FAMILIES, is_caption, language, render, sample_scenes
from vift_microworld.questions import ask


def scene_picture(scene) -> Image.Image:
    """The scene eight times enlarged; the micro-world's processor reduces it to the very same pixels."""
    return Image.fromarray(render([scene])[0]).resize((384, 384), Image.Resampling.NEAREST)


class Boards:
    """The micro-world."""

    about = (
        "It is a tiny model of a tiny world: 3 × 3 cells with coloured handwritten digits, about 200 words. It knows "
        "nothing else, photographs least of all, and many of its answers are wrong, fused ones too: fusion makes it "
        "*answer* instead of describing, it does not make it right."
    )
    families = ("count", "smallest", "color_of", "color_at", "difference", "same_color")  # of the examples
    is_caption = staticmethod(is_caption)

    def scene(self, seed: int, families=tuple(FAMILIES)) -> tuple[Image.Image, str, str, str]:
        """(picture, question, right answer, scene in words): the first scene of this seed that allows a question."""
        for number, scene in enumerate(sample_scenes(20, seed, "test", "space")):
            rng = random.Random(f"{seed}/{number}/space")
            for family in rng.sample(families, len(families)):
                if pair := ask(scene, family, rng):
                    return scene_picture(scene), *pair, language.scene_words(scene)
        raise ValueError(f"no scene of seed {seed} allows a question of {families}")


class Drawings:
    """The world of `vift_pictures`, whose packages (`vift[pictures]`) only models of it need."""

    families = ("name", "count", "place", "capital", "sound", "habitat")

    def __init__(self):
        import vift_pictures

        self.world = vift_pictures
        try:
            vift_pictures.sample_scenes(1)
        except ValueError as error:
            raise UserError(str(error)) from error
        self.about = (
            "Its world is drawings of some 500 things: one to four of them on a coloured background. It learnt their "
            "names and places from captions, and facts about them from plain text, never the two together. "
            f"{vift_pictures.ATTRIBUTION['twemoji']}"
        )

    def is_caption(self, text: str) -> bool:
        return len(text.split()) > 3 and self.world.is_caption(text)  # the name of a thing alone may be an answer

    def scene(self, seed: int, families=()) -> tuple[Image.Image, str, str, str]:
        family = random.Random(f"{seed}/space").choice(tuple(families) or tuple(self.world.FAMILIES))
        row = self.world.visual_questions(1, seed, "test", (family,))[0]
        return row["images"][0], row["question"], row["answer"], row["scene_text"]


def world_of(config) -> Boards | Drawings:
    """Raises UserError where the world's packages are missing."""
    return Boards() if getattr(config.vision_config, "image_size", None) == 48 else Drawings()
