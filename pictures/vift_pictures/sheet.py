"""A page to look at: 24 scenes with a caption and a question each, all splits in turn.

python -m vift_pictures.sheet sheet.png
"""

import random
import sys
import textwrap

from PIL import Image, ImageDraw, ImageFont

from .data import families_of, question
from .language import captions
from .scenes import IMAGE_SIZE, SPLITS, render


def sheet(seed: int = 0) -> Image.Image:
    """Six columns, four rows; question number by number through the families."""
    width, height = IMAGE_SIZE + 16, IMAGE_SIZE + 150
    page = Image.new("RGB", (6 * width, 4 * height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for place in range(24):
        split = SPLITS[place % len(SPLITS)]
        scene, row = question(place, seed, split, families_of(split))
        said = [captions(scene, random.Random(place), kind)[0] for kind in ("web", "detailed")]
        left, top = place % 6 * width + 8, place // 6 * height + 8
        page.paste(render(scene), (left, top))
        words = [f"{split} / {row['family']}", *said, f"{row['question']} {' / '.join(row['answers'])}"]
        text = "\n".join(line for one in words for line in textwrap.wrap(one, 38))
        pen.text((left, top + IMAGE_SIZE + 2), text, fill="black", font=font, spacing=1)
    return page


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].endswith(".png"):
        print("usage: python -m vift_pictures.sheet FILE.png", file=sys.stderr)
        sys.exit(2)
    sheet().save(sys.argv[1])
