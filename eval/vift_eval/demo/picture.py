"""One picture of what fusion changes: scenes, a question each, the answers without and with fusion.

Below the cards, one bar per condition: share of right answers with its 95 % interval, and the share of
captions given instead of answers.
"""

import textwrap
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

from ..files import save_figure

PAPER, CARD, EDGE = "#f6f3ec", "#ffffff", "#ddd6c8"
INK, FAINT = "#22222a", "#7a766d"
# blue and orange: told apart with any colour vision; the marks say the same without colour
RIGHT, WRONG = "#1769aa", "#c2571a"
COLUMNS = 4
CARD_W, GAP, MARGIN, PAD, SCENE, REPLY_H = 3.3, 0.22, 0.4, 0.14, 1.36, 0.77  # inches
HEADER_H, FOOTER_H = 1.05, 1.5


@dataclass(frozen=True)
class Example:
    image: Image.Image
    question: str
    answer: str | None  # None: not known (a user's own question)
    replies: dict[str, tuple[str, bool | None]]  # "without fusion" → (reply, right?)


@dataclass(frozen=True)
class Bar:
    label: str
    accuracy: float  # 0–1, as are the others
    low: float
    high: float
    caption_rate: float | None = None


def draw_picture(
    path: Path, examples: list[Example], bars: list[Bar], title: str, subtitle: str, note: str, made: dict
) -> None:
    """Writes the picture; `made` is by what it was made (`files.made_by`)."""
    columns = min(COLUMNS, len(examples))
    rows = -(-len(examples) // columns)
    width = max(2 * MARGIN + columns * (CARD_W + GAP) - GAP, 11.5 if bars else 0)
    card_h = SCENE + 2.5 * PAD + REPLY_H * max(len(example.replies) for example in examples)
    footer = FOOTER_H if bars else 0.0
    height = HEADER_H + rows * (card_h + GAP) + footer + 0.35
    figure = Figure(figsize=(width, height), dpi=110, facecolor=PAPER)
    page = figure.add_axes((0, 0, 1, 1))
    page.set(xlim=(0, width), ylim=(height, 0))  # inches from the top left corner
    page.axis("off")
    page.text(MARGIN, 0.42, title, size=20, weight="bold", color=INK, va="center")
    page.text(MARGIN, 0.78, subtitle, size=11.5, color=FAINT, va="center")
    for i, example in enumerate(examples):
        left = MARGIN + i % columns * (CARD_W + GAP)
        draw_card(page, example, left, HEADER_H + i // columns * (card_h + GAP), card_h)
    if bars:
        draw_bars(page, bars, HEADER_H + rows * (card_h + GAP) + 0.12, width)
    page.text(MARGIN, height - 0.2, note, size=8.5, color=FAINT, va="center")
    save_figure(figure, path, made)


def draw_card(page, example: Example, left: float, top: float, height: float) -> None:
    page.add_patch(
        FancyBboxPatch(
            (left, top), CARD_W, height,
            boxstyle="round,pad=0,rounding_size=0.09", facecolor=CARD, edgecolor=EDGE, linewidth=1,
        )
    )  # fmt: skip
    pad, side = PAD, SCENE
    scale = side / max(example.image.size)
    w, h = (s * scale for s in example.image.size)
    # nearest: the micro-world's pixels are meant to be seen; a photograph is scaled smoothly
    smooth = "nearest" if max(example.image.size) <= 64 else "antialiased"
    corner = left + pad + (side - w) / 2, top + pad + (side - h) / 2
    extent = (corner[0], corner[0] + w, corner[1] + h, corner[1])
    page.imshow(example.image, extent=extent, interpolation=smooth, aspect="auto", zorder=2)
    x = left + 2 * pad + side
    page.text(
        x, top + pad, wrap(example.question, 19, 5), size=9.6, weight="bold", color=INK, va="top",
        linespacing=1.3,
    )  # fmt: skip
    if example.answer is not None:
        page.text(
            x, top + pad + side, f"right answer\n{example.answer}", size=8.8, color=FAINT,
            va="bottom", linespacing=1.3,
        )  # fmt: skip
    y = top + 2 * pad + side + 0.06
    for label, (reply, right) in example.replies.items():
        color = INK if right is None else RIGHT if right else WRONG
        mark = "" if right is None else "  ✓" if right else "  ✗"
        page.text(left + pad, y + 0.06, label + mark, size=8.8, color=color, va="center")
        short = len(reply) <= 20
        page.text(
            left + pad, y + 0.2, wrap(reply or "(no answer)", 45, 3), size=14 if short else 9.2,
            weight="bold" if short else "normal", color=INK, va="top", linespacing=1.25,
        )  # fmt: skip
        y += REPLY_H


def draw_bars(page, bars: list[Bar], top: float, width: float) -> None:
    step = 0.34
    zero, full = MARGIN + 2.1, width - MARGIN - 4.3
    for i, bar in enumerate(bars):
        y = top + 0.2 + i * step

        def x(share):
            return zero + share * (full - zero)

        page.text(zero - 0.15, y, bar.label, size=10.5, color=INK, ha="right", va="center")
        page.add_patch(Rectangle((zero, y - 0.1), full - zero, 0.2, facecolor="#e9e4d8"))
        color = RIGHT if bar.label.startswith("with fusion") else "#9aa3ad"
        page.add_patch(Rectangle((zero, y - 0.1), x(bar.accuracy) - zero, 0.2, facecolor=color))
        page.plot([x(bar.low), x(bar.high)], [y, y], color=INK, linewidth=1.6)
        text = f"{bar.accuracy:.0%} right"
        if bar.caption_rate is not None:
            text += f"   ·   a caption instead of an answer: {bar.caption_rate:.0%}"
        page.text(full + 0.15, y, text, size=10, color=INK, va="center")


def wrap(text: str, width: int, lines: int) -> str:
    # a dollar would start matplotlib's mathematics; the world's question marks stand apart
    text = text.replace("$", r"\$").replace(" ?", "\N{NO-BREAK SPACE}?")
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" …"))
