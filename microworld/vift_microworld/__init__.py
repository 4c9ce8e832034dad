"""The micro-world: scenes of handwritten digits, in pictures and in words.

Everything the project claims can be run here on two CPU cores. See `scenes` (what there is),
`language` (captions), `questions` (question families), `data` (the data sets), `scoring`, and
`tokenizer`.
"""

from .data import (
    QUESTION_FEATURES,
    TRAINING_FEATURES,
    detailed_captions,
    text_instructions,
    visual_instructions,
    visual_questions,
    web_captions,
)
from .questions import FAMILIES
from .scenes import Scene, render, sample_scenes
from .scoring import exact_match, is_caption, normalize_answer

__all__ = [
    "FAMILIES", "QUESTION_FEATURES", "TRAINING_FEATURES", "Scene", "build_processor", "build_tokenizer",
    "detailed_captions", "exact_match", "is_caption", "normalize_answer", "render", "sample_scenes",
    "text_instructions", "visual_instructions", "visual_questions", "web_captions",
]  # fmt: skip


def __getattr__(name: str):
    """The tokenizer needs transformers, which takes seconds to import."""
    if name in ("build_processor", "build_tokenizer"):
        from . import tokenizer

        return getattr(tokenizer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
