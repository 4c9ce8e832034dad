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
from .tokenizer import build_processor, build_tokenizer

__all__ = [
    "FAMILIES", "QUESTION_FEATURES", "TRAINING_FEATURES", "Scene", "build_processor", "build_tokenizer",
    "detailed_captions", "exact_match", "is_caption", "normalize_answer", "render", "sample_scenes",
    "text_instructions", "visual_instructions", "visual_questions", "web_captions",
]  # fmt: skip
