"""Words about scenes: names with their articles and plurals, captions, and the scene in words."""

import random

from .scenes import Scene

NUMBERS = ("no", "one", "two", "three", "four")
# names that stand without "a", and do not change in the plural
UNCOUNTED = frozenset(
    """bread cheese rice milk coffee tea wine beer corn broccoli garlic lettuce popcorn butter salt spaghetti sushi
    honey bacon chocolate candy salad rain lightning soap grapes cherries blueberries peas pancakes peanuts jeans
    gloves
    socks shorts scissors books headphones glasses sunglasses skis maracas fire""".split()
) | {"french fries", "bubble tea", "ice cream", "tropical fish", "bow and arrow"}
_PLURALS = {"mouse": "mice", "goose": "geese", "sheep": "sheep", "fish": "fish", "pufferfish": "pufferfish",
            "wolf": "wolves", "ox": "oxen", "deer": "deer", "moose": "moose", "bison": "bison", "squid": "squid",
            "tooth": "teeth", "scarf": "scarves", "maple leaf": "maple leaves", "shrimp": "shrimp",
            "snowman": "snowmen", "jellyfish": "jellyfish",
            "four leaf clover": "four leaf clovers"}  # fmt: skip


_WITH_THE = {"United Kingdom", "United States", "United Arab Emirates", "Netherlands", "Philippines", "Maldives",
             "Bahamas",
             "Gambia", "Seychelles", "Solomon Islands", "Central African Republic", "Dominican Republic"}  # fmt: skip


def country(name: str) -> str:
    """The country of a flag, "Peru" or "the Netherlands"; "" where the name is no flag's."""
    land = name.removeprefix("flag of ")
    return "" if land == name else f"the {land}" if land in _WITH_THE else land


def article(name: str) -> str:
    """The name with its article: "a zebra", "an owl", "the flag of Peru", "bread"."""
    if land := country(name):
        return f"the flag of {land}"
    if name in ("sun", "moon"):
        return f"the {name}"
    if name in UNCOUNTED:
        return name
    return f"{'an' if name[0] in 'aeiou' and not name.startswith(('uni', 'eu')) else 'a'} {name}"


def plural(name: str) -> str:
    if land := country(name):
        return f"flags of {land}"
    if name in UNCOUNTED:
        return name
    if name in _PLURALS:
        return _PLURALS[name]
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    ending = "es" if name.endswith(("s", "sh", "ch", "x", "mango", "tomato", "potato", "mosquito")) else "s"
    return name + ending


def counted(name: str, count: int) -> str:
    """The name and how many: "a zebra", "three zebras", "two pictures of bread"."""
    if count == 1:
        return article(name)
    return f"{NUMBERS[count]} {'drawings of ' if name in UNCOUNTED else ''}{plural(name)}"


def listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def at(place: str) -> str:
    return "in the center" if place == "center" else f"{'on' if place in ('left', 'right') else 'at'} the {place}"


def placed(scene: Scene) -> str:
    """Every thing with its place: "a zebra on the left and a dog on the right"."""
    return listed([f"{article(thing.name)} {at(thing.place)}" for thing in scene.things])


def scene_words(scene: Scene) -> str:
    """The scene in words, which stands in for a picture in a text-only instruction."""
    return f"There is {placed(scene)}, on a {scene.texture} {scene.color} background."


def detailed_caption(scene: Scene, rng: random.Random) -> str:
    """Everything in the scene: names, counts, places, background."""
    opening = rng.choice(("The picture shows", "The image shows", "This is a picture of", "A picture of"))
    groups = listed([counted(name, count) for name, count in scene.counts.items()])
    background = f"{scene.texture} {scene.color} background"
    if len(scene.things) == 1:
        rest = f" {at(scene.things[0].place)}, on a {background}."
    else:
        rest = f" on a {background}. There is {placed(scene)}."
    return f"{opening} {groups}{rest}"


def web_caption(scene: Scene, rng: random.Random) -> str:
    """A short caption like those on the web: no counts; one kind in five is left out (never all), words around it."""
    kept = [name for name in scene.counts if rng.random() >= 0.2] or [rng.choice(list(scene.counts))]
    rng.shuffle(kept)
    form = rng.choice(("{}", "{}", "{}", "a picture of {}", "{} clipart", "{} icon", "photo of {}", "{} | free images",
                       "{} on {color}", "cute {}"))  # fmt: skip
    bare = form.startswith("cute") or rng.random() < 0.5
    names = [plural(name) if scene.counts[name] > 1 else name if bare else article(name) for name in kept]
    words = rng.choice((" and ".join, ", ".join, listed))(names)
    caption = form.format(words, color=scene.color)
    return rng.choice(
        (caption, caption, caption.lower(), caption[0].upper() + caption[1:], f"{caption}.", f"{caption}!")
    )


def captions(scene: Scene, rng: random.Random, kind: str) -> list[str]:
    """Several different captions of a scene; `kind` is "web" or "detailed"."""
    write = {"web": web_caption, "detailed": detailed_caption}[kind]
    return list(dict.fromkeys(write(scene, rng) for _ in range(4)))
