"""Families of questions, and their twins in words.

A question in one hop needs what is seen (names, counts, places, the background); one in two hops needs a fact about
what is seen (picture -> name -> fact), which captions never tell. The visual questions speak of what is "in the
picture" and are for evaluation only; the twins speak of what is "described", after the scene in words, or of things by
their names. No twin and no plain question is about a fact of a concept that is `concepts.held_out`.
"""

import random
from functools import cache

from . import concepts
from .facts import FACTS, KIND_OF, KINDS, SIZES
from .language import NUMBERS, article, at, country, plural, scene_words
from .scenes import Scene, compose, sample_names

SHOWN = {"picture": ("in the picture", "in this image", "shown here"),
         "words": ("described", "in this description", "mentioned here")}  # fmt: skip
_CLASSES = ("mammal", "bird", "fish", "insect", "reptile")
# relation -> (what it is about, ways to ask)
RELATIONS = {
    "capital": ("flag", ("What is the capital of {}?", "Name the capital city of {}.", "Which is the capital of {}?")),
    "continent": ("flag", ("On which continent is {}?", "Which continent does {} belong to?")),
    "language": ("flag", ("Which language do people speak in {}?", "What is the main language of {}?")),
    "category": ("thing", ("Is {} {choices}?", "What kind of thing is {}: {choices}?")),
    "class": ("animal", ("What class of animals does {} belong to: {choices}?", "Is {} {choices}?")),
    "sound": ("animal", ("What sound does {} make?", "Name the sound that {} makes.")),
    "habitat": ("animal", ("Where does {} live?", "In what kind of place does {} live?")),
    "diet": ("animal", ("What does {} eat?", "What is the main food of {}?")),
    "legs": ("animal", ("How many legs does {} have?", "What is the number of legs of {}?")),
    "young": ("animal", ("What is the young of {} called?", "What do people call the baby of {}?")),
    "color": ("thing", ("What is the usual color of {}?", "Which color does {} usually have?")),
    "travels": ("thing", ("Where does {} travel: {choices}?", "Where would someone see {} go: {choices}?")),
    "use": ("thing", ("What do people use {} for?", "What is the use of {}?")),
    "found": ("thing", ("Where would someone usually find {}?", "In which place is {} usually found?")),
}  # fmt: skip
_FREE = {"animal", "plant", "food", "vehicle", "musical instrument", "building", "clothing"}
_EATEN = {"food", "plant"}
# kinds that a thing of the kind may be taken for as well: they never stand beside each other as choices
_BLURRED = {"animal": {"food"}, "plant": {"food"}, "food": {"animal", "plant"}, "drink": {"food"},
            "fruit": _EATEN, "vegetable": _EATEN}  # fmt: skip


def _an(word: str) -> str:
    return word if word == "clothing" else f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _choices(relation: str, name: str, rng: random.Random) -> str:
    if relation == "travels":
        options = ["on the road", "on rails", "in the air", "on water"]
    else:
        right = FACTS[relation][name][0]
        others = sorted((_FREE - {right} - _BLURRED.get(right, set())) if relation == "category" else
                        set(_CLASSES) - {right})  # fmt: skip
        options = [_an(one) for one in [right, *rng.sample(others, 2)]]
    rng.shuffle(options)
    return f"{', '.join(options[:-1])} or {options[-1]}"


def _plain(name: str) -> str:
    """How a question names a thing: "Peru", "the Netherlands", "a zebra"."""
    return country(name) or article(name)


@cache
def taught(relation: str, split: str) -> list[str]:
    """Names of concepts with a fact of `relation`: those held out where `split` is "facts", else the others."""
    names = [name for name in FACTS[relation] if concepts.held_out(name) == (split == "facts")]
    if relation == "class":
        names = [name for name in names if FACTS["class"][name][0] in _CLASSES]
    return names if relation != "travels" else [name for name in names if name != "rocket"]


def _this(kind: str, shown: str) -> str:
    return f"the country whose flag is {shown}" if kind == "flag" else f"the {kind} {shown}"


def _fact(relation: str):
    def family(rng: random.Random, split: str, shown: str):
        names = taught(relation, split)
        answer = rng.choice(sorted({FACTS[relation][name][0] for name in names}))  # all equally often: no blind guess
        name = rng.choice([name for name in names if FACTS[relation][name][0] == answer])
        kind, ways = RELATIONS[relation]
        question = rng.choice(ways).format(_this(kind, shown), choices=_choices(relation, name, rng)
                                           if relation in ("category", "class", "travels") else "")  # fmt: skip
        return compose(rng, split, [name]), question, FACTS[relation][name]

    return family


def _seen(ask):
    """A family in one hop: a scene of any things that `ask(rng, scene, shown)` can ask about."""

    def family(rng: random.Random, split: str, shown: str):
        while True:
            scene = compose(rng, split, sample_names(rng, list(KIND_OF)))
            if (pair := ask(rng, scene, shown)) is not None:
                return scene, *pair

    return family


def names_of(name: str) -> tuple[str, ...]:
    return (name.removeprefix("flag of "), name) if name.startswith("flag of ") else (name,)


def _name(rng, scene, shown):
    if len(scene.things) > 1:
        return None
    name = scene.things[0].name
    told = KIND_OF[name] == "flag" or not concepts.held_out(name)  # to call it an animal would tell its category
    kind = KIND_OF[name] if told and KIND_OF[name] in ("animal", "flag", "fruit", "vehicle") else "thing"
    return (f"Which country has the flag {shown}?" if kind == "flag" else f"Which {kind} is {shown}?"), names_of(name)


def _at_place(rng, scene, shown):
    if len(scene.counts) < 2:
        return None
    thing = rng.choice(scene.things)
    return f"What is {at(thing.place)} of the scene {shown}?", names_of(thing.name)


def _place(rng, scene, shown):
    single = [t for t in scene.things if scene.counts[t.name] == 1 and t.size < 110]
    if not single:
        return None
    thing = rng.choice(single)
    middle = ("center", "middle") if thing.place == "center" else (thing.place,)
    return f"At which place of the scene {shown} is {_the(thing.name)}?", middle


def _the(name: str) -> str:
    return article(name) if country(name) or name in ("sun", "moon") else f"the {name}"


def _count(rng, scene, shown):
    if len(scene.counts) < 2:  # else a caption of one kind, as "three dogs", could not be told from an answer
        return None
    if rng.random() < 0.4:
        return f"How many things are {shown} in all?", (NUMBERS[len(scene.things)], str(len(scene.things)))
    name = rng.choice(list(scene.counts))
    return f"How many {plural(name)} are {shown}?", (NUMBERS[scene.counts[name]], str(scene.counts[name]))


def _background(rng, scene, shown):
    grays = {"gray": ("gray", "grey")}
    return f"What color is the background of the scene {shown}?", grays.get(scene.color, (scene.color,))


def _present(rng, scene, shown):
    there = rng.random() < 0.5
    name = rng.choice([name for name in (scene.counts if there else KIND_OF) if there or name not in scene.counts])
    return f"Is {article(name)} {shown}?", ("yes" if there else "no",)


def _left_or_above(rng, scene, shown):
    single = [thing for thing in scene.things if scene.counts[thing.name] == 1]
    word, axis = rng.choice((("left of", "x"), ("above", "y")))
    pairs = [(a, b) for a in single for b in single if abs(getattr(a, axis) - getattr(b, axis)) > 40]
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    answer = "yes" if getattr(a, axis) < getattr(b, axis) else "no"
    return f"Is {_the(a.name)} {word} {_the(b.name)} {shown}?", (answer,)


def _which_is(rng: random.Random, split: str, shown: str):
    """Which of two things is of a kind: two names, two facts."""
    kinds = rng.sample(sorted(_FREE), 2)
    pools = [[name for name in KINDS[kind] if name in taught("category", split)] for kind in kinds]
    if not all(pools) or kinds[1] in _BLURRED.get(kinds[0], ()):
        return _which_is(rng, split, shown)
    names = [rng.choice(pool) for pool in pools]
    return compose(rng, split, names), f"Which of the two things {shown} is {_an(kinds[0])}?", (names[0],)


def _bigger(rng: random.Random, split: str, shown: str):
    lines = [[name for name in line if concepts.held_out(name) == (split == "facts")] for line in SIZES]
    (a, small), (b, large) = sorted(rng.sample([(i, line) for i, line in enumerate(lines) if line], 2))
    names, word = (rng.choice(small), rng.choice(large)), rng.choice(("bigger", "smaller"))
    question = f"Which of the two things {shown} is {word} in real life?"
    return compose(rng, split, list(names)), question, (names[word == "bigger"],)


_ONE_HOP = {"name": _name, "at_place": _at_place, "place": _place, "count": _count, "background": _background,
            "present": _present, "left_or_above": _left_or_above}  # fmt: skip
ONE_HOP = {name: _seen(family) for name, family in _ONE_HOP.items()}
TWO_HOPS = {**{relation: _fact(relation) for relation in RELATIONS}, "which_is": _which_is, "bigger": _bigger}
FAMILIES = {**ONE_HOP, **TWO_HOPS}


def ask(family: str, rng: random.Random, split: str, form: str = "picture") -> tuple[Scene, str, tuple[str, ...]]:
    """(scene, question, accepted answers) of `family`; `form` "words" asks about a description instead of a picture.

    Raises:
        ValueError: `family` is none of `FAMILIES`, or needs no fact although `split` is "facts".
    """
    allowed = TWO_HOPS if split == "facts" else FAMILIES
    if family not in allowed:
        raise ValueError(f"family must be one of {', '.join(allowed)} for split {split!r}, got {family!r}")
    return allowed[family](rng, split, rng.choice(SHOWN[form]))


_SENTENCES = {"capital": "The capital of {x} is {y}.", "sound": "It makes the sound {y}.", "legs": "It has {y} legs.",
              **dict.fromkeys(("continent", "language", "category", "color"), "It is {y}.")}  # fmt: skip


def _answer(rng: random.Random, answer: str, form: str = "{y}", **words) -> str:
    said = rng.choice(("{y}", "{y}.", form)).format(y=answer, **words)
    return said[0].upper() + said[1:]


def instruction(rng: random.Random) -> dict[str, str]:
    """A text-only instruction: a fact by name, the reverse, a comparison, or a scene in words with a twin question."""
    draw = rng.random()
    if draw < 0.45:
        relation = rng.choice(tuple(RELATIONS))
        name = rng.choice(taught(relation, "train"))
        choices = _choices(relation, name, rng) if relation in ("category", "class", "travels") else ""
        question = rng.choice(RELATIONS[relation][1]).format(_plain(name), choices=choices)
        y = FACTS[relation][name][0]
        shown = _an(y) if relation == "category" else y
        output = _answer(rng, shown, _SENTENCES.get(relation, "{y}"), x=_plain(name))
    elif draw < 0.5:
        name = rng.choice(taught("capital", "train"))
        capital = FACTS["capital"][name][0]
        question = rng.choice(
            (f"Which country has the capital {capital}?", f"Of which country is {capital} the capital?")
        )
        output = _answer(rng, _plain(name))
    elif draw < 0.56:
        lines = [[name for name in line if not concepts.held_out(name)] for line in SIZES]
        a, b = (rng.choice(line) for line in rng.sample([line for line in lines if line], 2))
        larger = max((a, b), key=lambda name: next(i for i, line in enumerate(SIZES) if name in line))
        question = rng.choice((f"Which is bigger, {article(a)} or {article(b)}?",
                               f"What is larger in real life: {article(a)} or {article(b)}?"))  # fmt: skip
        output = _answer(rng, article(larger))
    elif draw < 0.62:
        kind = rng.choice(sorted(_FREE))
        some = rng.sample([name for name in KINDS[kind] if name in taught("category", "train")], 3)
        question = rng.choice((f"Name three examples of: {kind}.", f"Give three examples of the kind {kind}."))
        output = f"{some[0].capitalize()}, {some[1]} and {some[2]}."
    else:
        scene, question, answers = ask(rng.choice(tuple(FAMILIES)), rng, "train", "words")
        words = scene_words(scene)
        question = rng.choice((f"{words} {question}", f"{question} {words}", f"{words}\n{question}"))
        output = _answer(rng, answers[0])
    return {"instruction": question[0].upper() + question[1:], "output": output}
