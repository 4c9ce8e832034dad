"""How often does the page's rule for pictures from outside a model's world (`vift_eval.known`) say what is so?

    python studies/benchmarks/unknown.py --json docs/results/unknown/unknown.json      # a minute of one core

The rule is fitted on training pictures of the model's world. Its limit is chosen on validation pictures of the world
against kinds of pictures made on the spot, and measured on test pictures of the world against other kinds, among them
near misses. The rule is written to `space/known/`, named after the weights; `--model` measures another model, whose
world is the micro-world where it reads pictures of 48 pixels, else that of `vift_pictures`.
"""

import argparse
import io
import random
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

import vift_pictures
from vift_eval.files import ROOT, command_line, made_by, write_json
from vift_eval.known import Known, best_limit, features
from vift_eval.models import BUNDLED, load_model
from vift_microworld import render, sample_scenes

WORDS = "the a picture total 42 9.99 Monday red answer page of and with Figure 3 seven".split()
PHOTOGRAPHS = {  # kind -> files that installed packages bring
    "chosen": ("sklearn/datasets/images/china.jpg", "sklearn/datasets/images/flower.jpg"),
    "measured": ("matplotlib/mpl-data/sample_data/grace_hopper.jpg", *(f"gradio/media_assets/images/{name}" for name in
                 ("cheetah1.jpg", "lion.jpg", "tower.jpg", "bus.png"))),
}  # fmt: skip


def color(rng) -> tuple[int, int, int]:
    return tuple(rng.randrange(256) for _ in range(3))


def noise(rng):
    return Image.fromarray(np.random.default_rng(rng.randrange(2**31)).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def gradient(rng):
    gray = Image.linear_gradient("L").rotate(rng.randrange(360))
    return ImageOps.colorize(gray.crop((48, 48, 208, 208)), color(rng), color(rng))


def shapes(rng):
    picture = Image.new("RGB", (224, 224), color(rng))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randint(1, 6)):
        x, y = rng.randrange(180), rng.randrange(180)
        corner = (x, y, x + rng.randint(20, 120), y + rng.randint(20, 120))
        rng.choice((draw.ellipse, draw.rectangle, draw.rounded_rectangle))(corner, fill=color(rng))
    return picture


def text(rng, paper="white", ink="black"):
    picture = Image.new("RGB", (300, 300), paper)
    draw, size = ImageDraw.Draw(picture), rng.choice((12, 18, 28, 40))
    for y in range(5, 300, size + 6):
        line = " ".join(rng.choices(WORDS, k=12))
        draw.text((8, y), line, font=ImageFont.load_default(size), fill=ink)
    return picture


def dark_text(rng):
    return text(rng, "#14161c", "#e6e6e6")


def chart(rng):
    picture = Image.new("RGB", (300, 220), "white")
    draw = ImageDraw.Draw(picture)
    draw.line((30, 10, 30, 195, 290, 195), fill="black", width=2)
    for bar in range(rng.randint(3, 8)):
        draw.rectangle((45 + 30 * bar, rng.randint(20, 180), 65 + 30 * bar, 194), fill=color(rng))
    return picture


def letters(rng):
    """A near miss of the micro-world: a board with letters in the place of digits."""
    picture = Image.new("RGB", (384, 384), (20, 20, 25))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(120)
    for place in rng.sample(range(9), rng.randint(2, 6)):
        middle = (place % 3 * 128 + 64, place // 3 * 128 + 64)
        fill = rng.choice(("#ff3c3c", "#3cc850", "#507cff", "#f0dc3c", "#c850dc"))
        draw.text(middle, rng.choice("ABCEFGHKMNPRTWXYZ"), font=font, fill=fill, anchor="mm")
    return picture


def photographs(rng, which: str):
    package, _, inside = rng.choice(PHOTOGRAPHS[which]).partition("/")
    picture = Image.open(Path(find_spec(package).submodule_search_locations[0]) / inside).convert("RGB")
    side = rng.randint(min(picture.size) // 2, min(picture.size))
    left, top = rng.randint(0, picture.width - side), rng.randint(0, picture.height - side)
    return picture.crop((left, top, left + side, top + side))


def boards(count: int, split: str) -> list:
    return [Image.fromarray(one) for one in render(sample_scenes(count, 0, split, "known"))]


def drawings(count: int, split: str) -> list:
    return [vift_pictures.render(scene) for scene in vift_pictures.sample_scenes(count, 0, split, "known")]


def as_jpeg(picture):
    file = io.BytesIO()
    picture.resize((384, 384), Image.Resampling.NEAREST).save(file, "JPEG", quality=85)
    return Image.open(file)


def pictures(micro: bool, each: int) -> dict[str, dict[str, list]]:
    """part -> kind -> pictures; the kinds of "known" parts are of the model's world."""
    world, other = (boards, drawings) if micro else (drawings, boards)

    def made(*kinds, **which):
        return {
            kind.__name__.replace("_", " "): [
                kind(random.Random(f"{kind.__name__}/{k}"), **which) for k in range(each)
            ]
            for kind in kinds
        }

    test = world(5 * each, "test")
    near = {"inverted scenes": [ImageOps.invert(one) for one in test[:each]]} | (made(letters) if micro else {})
    return {
        "fit": {"scenes": world(10 * each, "train")},
        "known, chosen on": {"scenes": world(5 * each, "validation")},
        "unknown, chosen on": {"the other world": other(each, "validation")}
        | made(noise, gradient, shapes) | made(photographs, which="chosen"),
        "known, measured on": {"scenes": test, "scenes as JPEG": [as_jpeg(one) for one in test]},
        "unknown, measured on": made(text, dark_text, chart) | made(photographs, which="measured")
        | {"the other world, another style": other(each, "style" if micro else "test")} | near,
    }  # fmt: skip


def measure(name: str, each: int) -> tuple[Known, dict]:
    """(the rule, {"limit", "pictures", part: {kind: share of pictures of which the rule says what is so}})."""
    model, processor = load_model(name)
    found = {
        part: {kind: features(model, processor, made) for kind, made in kinds.items()}
        for part, kinds in pictures(model.config.vision_config.image_size == 48, each).items()
    }
    rule = Known.fit(found.pop("fit")["scenes"])
    far = {part: {kind: rule.distances(tokens) for kind, tokens in kinds.items()} for part, kinds in found.items()}
    known, unknown = (np.concatenate([*far[f"{side}, chosen on"].values()]) for side in ("known", "unknown"))
    rule = Known(rule.mean, rule.root, best_limit(known, unknown))
    right = {
        part: {
            kind: round(float(((d <= rule.limit) == part.startswith("known")).mean()), 4) for kind, d in kinds.items()
        }
        for part, kinds in far.items()
    }
    counts = {part: {kind: len(d) for kind, d in kinds.items()} for part, kinds in far.items()}
    overall = {
        side: round(float(np.average([*right[part].values()], weights=[*counts[part].values()])), 4)
        for side in ("known", "unknown")
        for part in (f"{side}, measured on",)
    }
    return rule, {"limit": round(rule.limit, 4), "right": overall, **right, "pictures": counts}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(BUNDLED), help="folder of the model that is measured")
    parser.add_argument("--each", type=int, default=100, help="pictures of a kind; of the world five times as many")
    parser.add_argument("--rules", type=Path, default=ROOT / "space" / "known", help="folder that the rule goes to")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args(argv)
    rule, results = measure(args.model, args.each)
    print(f"wrote {rule.save(args.rules, Path(args.model))}: right on {results['right']}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, {"made": made_by(command_line(__file__, argv), Path(args.model))} | results)


if __name__ == "__main__":
    main()
