"""A real visual world: scenes of drawings of some 500 concepts, in pictures and in words.

`facts` is what is known of the concepts, `concepts` their drawings, `scenes` what there is to see, `language`
captions, `questions` families with one hop and two, `scoring` answers, `prompts` plain chat, `data` the rows, `export`
the files.
The pictures come from packages: `pip install 'vift[pictures]'`.
"""

from .concepts import ATTRIBUTION, held_out
from .data import detailed_captions, text_instructions, visual_instructions, visual_questions, web_captions
from .prompts import PROMPTS, chat
from .questions import FAMILIES, TWO_HOPS
from .scenes import SPLITS, Scene, render, sample_scenes
from .scoring import exact_match, is_caption, is_right, normalize_answer

__all__ = [
    "ATTRIBUTION", "FAMILIES", "PROMPTS", "SPLITS", "TWO_HOPS", "Scene", "chat", "detailed_captions", "exact_match",
    "held_out", "is_caption", "is_right", "normalize_answer", "render", "sample_scenes", "text_instructions",
    "visual_instructions", "visual_questions", "web_captions",
]  # fmt: skip
