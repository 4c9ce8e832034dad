"""Words about scenes: descriptions that stand in for a picture, captions, and caption queries.

A description (`scene_words`) is what a text-only instruction shows instead of a picture. A caption is
what the model should *say* about a picture or a description. Both use the same phrases ("top left red
7"), so that captions can teach a connector to put picture tokens where the language model expects words
about scenes.
"""

import random

from .scenes import COLORS, Scene

# Queries that ask for a caption in so many words; a text LLM knows them before it sees a picture.
DETAILED_QUERIES = (
    "describe the picture in detail .",
    "describe the picture .",
    "what is in the picture ?",
    "what digits are in the picture and where are they ?",
    "which digits are there and what color are they ?",
    "tell me everything about the picture .",
    "where is each digit and what color is it ?",
    "write a detailed caption .",
)
BRIEF_QUERIES = (
    "describe the picture briefly .",
    "write a short caption .",
    "what does the picture show in short ?",
    "name the digits in the picture .",
)
CAPTION_QUERIES = DETAILED_QUERIES + BRIEF_QUERIES
WEB_QUERY = "caption the picture ."
# Queries of the caption data (stage 2 only) that open like real questions, as the pools used to turn
# captions into instructions do ("what do you see, and where?"). All are answered by the whole caption.
ASKING_QUERIES = (
    "what digits are there ?",
    "which digits are in the picture ?",
    "where are the digits ?",
    "what color are the digits ?",
    "what colors are there ?",
    "how many digits are there and where are they ?",
    "how many digits are in the picture and what are they ?",
    "what is at each place ?",
    "which digit is where ?",
    "what is the color of each digit ?",
    "which color has each digit ?",
    "what is the place of each digit ?",
    "what is there ?",
    "what does the picture show ?",
    "which digits have which color ?",
    "where is each color ?",
    "is there a digit in the picture ?",
    "are there digits in the picture ?",
    "tell me what is in the picture .",
    "tell me the digits and the colors .",
    "name each digit and the place of it .",
)
# The same, naming something in the scene; the data still answers with the whole caption.
NAMING_QUERIES = (
    "tell me about the {digit} .",
    "tell me about the {place} .",
    "tell me about the {color} digit .",
    "what is at the {place} ?",
    "is the {digit} in the picture ?",
    "where is the {digit} and what color is it ?",
    "what is the {digit} and where is it ?",
    "is there a {color} digit and where is it ?",
)

# And some that ask for what the text instructions teach. A model goes on answering the kinds of question that no
# caption query resembles, so these decide how complete the paper's failure is (docs/log.md).
REASONING_QUERIES = (
    "where is the {digit} in the picture ?",
    "at which place is the {color} digit ?",
    "at which place are the digits ?",
    "what color is the {digit} in the picture ?",
    "which color has the digit at the {place} ?",
    "what color is the smallest digit ?",
    "which color has the largest digit and where is it ?",
    "how many {color} digits are in the picture ?",
    "is the digit at the {place} the largest ?",
    "is the {digit} larger than the digit at the {place} ?",
    "is the digit at the {place} larger than the {digit} ?",
    "what is the sum of the digits ?",
    "what is the sum of the {digit} and the digit at the {place} ?",
    "what is the difference of the digits ?",
    "what is the difference of the {digit} and the digit at the {place} ?",
    "is the {digit} left of the digit at the {place} ?",
    "is the {digit} above the digit at the {place} ?",
    "is the {color} digit left of the {digit} ?",
    "do the digits have the same color ?",
    "do the {digit} and the digit at the {place} have the same color ?",
)
QUERY_POOLS = {
    "web": (WEB_QUERY,),
    "caption": CAPTION_QUERIES,
    "asking": ASKING_QUERIES,
    "naming": NAMING_QUERIES,
    "reasoning": REASONING_QUERIES,
}


def scene_words(scene: Scene) -> str:
    """The scene in words: "top left red 7 , middle center blue 3 ."."""
    return " , ".join(f"{o.where} {o.name}" for o in scene.objects) + " ."


def detailed_caption(scene: Scene) -> str:
    """Everything in the scene: how many digits, and each with its colour and place."""
    return f"the picture shows {len(scene.objects)} digits : {scene_words(scene)}"


def brief_caption(scene: Scene) -> str:
    """The digits and colours, without places."""
    return "the picture shows " + " , ".join(o.name for o in scene.objects) + " ."


def caption_for(scene: Scene, query: str) -> str:
    """The caption that `query` asks for (detailed when there is no query)."""
    return brief_caption(scene) if query in BRIEF_QUERIES else detailed_caption(scene)


def caption_query(scene: Scene, rng: random.Random, pools: tuple[str, ...] = ("caption", "asking", "naming")) -> str:
    """A query of any of the named `QUERY_POOLS`, in equal shares."""
    query = rng.choice(QUERY_POOLS[rng.choice(pools)])
    item = rng.choice(scene.objects)
    return query.format(digit=item.digit, place=item.where, color=item.color)


def web_caption(scene: Scene, rng: random.Random) -> str:
    """A short caption like those on the web: objects go missing, sometimes a colour is wrong.

    One object in five is left out (never all), one colour in fifty is wrong, one caption in four
    names no places: "top left red 7 , middle center blue 3 ." or "red 7 , blue 3 .".
    """
    kept = [o for o in scene.objects if rng.random() >= 0.2] or [rng.choice(scene.objects)]
    colors = [rng.choice(tuple(COLORS)) if rng.random() < 0.02 else o.color for o in kept]
    names = [f"{color} {o.digit}" for color, o in zip(colors, kept)]
    if rng.random() < 0.75:
        names = [f"{o.where} {name}" for name, o in zip(names, kept)]
    return " , ".join(names) + " ."
