"""Worlds that models of this project were trained on: questions nobody trained on, what is right, what to say of it.

`world_of` chooses by the size of the pictures that a model reads.
"""

from vift_hub.cli import UserError


class Digits:
    """The micro-world: a 3 x 3 grid of coloured handwritten digits, asked about in some 200 words."""

    questions, max_new_tokens = 300, 12  # by default: 20 a family; an answer's first tokens, where a caption shows
    whole = 48  # tokens of the longest caption
    credit = "Scenes of handwritten digits from scikit-learn's load_digits."
    unknown = "the bundled model knows only its own world, a 3 × 3 grid of coloured digits on black"

    def rows(self, count: int, seed: int) -> list[dict]:
        from vift_microworld import visual_questions

        return list(visual_questions(count, seed=seed, split="test"))

    def is_right(self, text: str, row: dict) -> bool:
        from vift_microworld import exact_match

        return exact_match(text, row["answer"])

    def is_caption(self, text: str, row: dict) -> bool:
        from vift_microworld import is_caption

        return is_caption(text)


class Drawings:
    """The world of `vift_pictures`: one to four drawings of some 500 things. Raises UserError without its packages."""

    questions, max_new_tokens, whole = 46, 24, 64
    unknown = "this model learnt from drawings of some 500 things; photographs and other things it was never shown"

    def __init__(self):
        try:
            import vift_pictures

            vift_pictures.sample_scenes(1)
        except ImportError as error:
            raise UserError("questions about drawings need pip install 'vift[pictures]'") from error
        except ValueError as error:
            raise UserError(str(error)) from error
        self.world = vift_pictures
        self.credit = vift_pictures.ATTRIBUTION["twemoji"]

    def rows(self, count: int, seed: int) -> list[dict]:
        return self.world.visual_questions(count, seed, "test")

    def is_right(self, text: str, row: dict) -> bool:
        return self.world.is_right(text, row["answers"], row["family"], row["question"])

    def is_caption(self, text: str, row: dict) -> bool:
        return not self.is_right(text, row) and self.world.is_caption(text, row["answers"], row["question"])


def world_of(config) -> Digits | Drawings:
    """Of a model's config; a model of neither is asked about drawings, which more models know."""
    return Digits() if getattr(config.vision_config, "image_size", None) == 48 else Drawings()
