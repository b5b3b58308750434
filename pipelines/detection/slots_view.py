"""The slot map as a picture and HTML. No gradio, no torch: `say` translates."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipelines.ui import draw

from .slots import Shape, SlotMap, busiest, describe, fixed_share, shapes, shuffled, spread

if TYPE_CHECKING:
    from .view import Say

INK = {Shape.SMALL: "#16a34a", Shape.WIDE: "#dc2626", Shape.TALL: "#2563eb", Shape.LARGE: "#d97706"}
NAMES = {Shape.SMALL: "small", Shape.WIDE: "wide", Shape.TALL: "tall", Shape.LARGE: "large, about square"}
COLUMNS, CELL, GAP, HEAD = 10, 116, 8, 18  # of the picture, in pixels
FINE = 2  # drawn so many times larger and then made smaller, which smooths the dots


def order(found: SlotMap, threshold: float) -> np.ndarray:
    """Queries in the order of the panels."""
    return busiest(found, threshold)


def chart(found: SlotMap, threshold: float, chosen: int | None = None) -> np.ndarray:
    """A panel a query, busiest first: a dot where each of its boxes had its centre, coloured by the box's shape.

    Dots of answers are full, of boxes that came with a low score faint. Returns (H, W, 3) uint8.
    """
    queries = order(found, threshold)
    rows = -(-len(queries) // COLUMNS)
    width, height = COLUMNS * (CELL + GAP) + GAP, rows * (CELL + HEAD + GAP) + GAP
    canvas = Image.new("RGB", (width * FINE, height * FINE), "#f1f5f9")
    pen = ImageDraw.Draw(canvas, "RGBA")
    font = ImageFont.load_default(size=11 * FINE)
    kinds, spreads = shapes(found.boxes), spread(found.boxes)
    for place, query in enumerate(queries):
        x, y = _corner(place)
        text = f"#{query} · {spreads[query]:.2f}"
        pen.text(((x + 2) * FINE, (y + 2) * FINE), text, fill="#334155", font=font)
        edge = "#0f766e" if query == chosen else "#cbd5e1"
        box = [FINE * v for v in (x, y + HEAD, x + CELL, y + HEAD + CELL)]
        pen.rectangle(box, fill="#ffffff", outline=edge, width=FINE * (3 if query == chosen else 1))
        _dots(pen, (x, y + HEAD), found, int(query), kinds[:, query], threshold)
    return np.asarray(canvas.resize((width, height), Image.Resampling.LANCZOS))


def _corner(place: int) -> tuple[int, int]:
    row, column = divmod(place, COLUMNS)
    return GAP + column * (CELL + GAP), GAP + row * (CELL + HEAD + GAP)


def _dots(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], found: SlotMap, query: int, kinds: np.ndarray, threshold: float
) -> None:
    sure = found.scores[:, query] >= threshold
    for i in np.argsort(sure, kind="stable"):  # the answers on top
        cx, cy = found.boxes[i, query, :2].tolist()
        x, y = (corner[0] + cx * CELL) * FINE, (corner[1] + cy * CELL) * FINE
        r = (2.6 if sure[i] else 1.7) * FINE
        pen.ellipse((x - r, y - r, x + r, y + r), fill=INK[Shape(int(kinds[i]))] + ("ff" if sure[i] else "60"))


def panel_at(found: SlotMap, threshold: float, x: float, y: float) -> int | None:
    """The query whose panel was clicked, or None beside all panels."""
    queries = order(found, threshold)
    for place, query in enumerate(queries):
        left, top = _corner(place)
        if left <= x <= left + CELL and top <= y <= top + HEAD + CELL:
            return int(query)
    return None


def verdict(found: SlotMap, say: Say) -> str:
    """What of the boxes' places is fixed and what depends on the picture, with the control."""
    fixed, chance = fixed_share(found.boxes), fixed_share(shuffled(found.boxes))
    text = say(
        "Which query it is explains {fixed} of where the boxes lie; what the picture shows explains the other {rest}.",
        fixed=f"<b>{fixed:.0%}</b>", rest=f"<b>{1 - fixed:.0%}</b>",
    )  # fmt: skip
    control = say(
        "Control: with the boxes of each picture dealt out to the queries at random, it would be {chance}. A query's "
        "learned vector is fixed: it says where to look first and for what shape. The box itself follows the picture. "
        "Above each panel stands the spread of its dots, in sides of the picture: the median is {median}.",
        chance=f"<b>{chance:.0%}</b>", median=f"{float(np.median(spread(found.boxes))):.2f}",
    )  # fmt: skip
    count = say("{n} of {all} views", n=found.pictures, all=found.wanted)
    legend = " ".join(
        f'<span style="white-space:nowrap"><span style="color:{INK[kind]}">●</span> {say(NAMES[kind])}</span>'
        for kind in Shape
    )
    faint = say("full: an answer; faint: a box with a low score. Click a panel to learn what its query did.")
    return (
        f'<p class="gh-verdict">{text}</p><p class="gh-note">{control}</p>'
        f'<p class="gh-note">{count} · {legend} · {faint}</p>'
    )


def slot(found: SlotMap, query: int, names: Mapping[int, str], threshold: float, say: Say) -> str:
    """One slot in words and numbers."""
    told = describe(found, query, threshold)
    classes = ", ".join(f"{html.escape(names.get(k, '?'))} {n}" for k, n in told.classes[:6]) or "–"
    kinds = ", ".join(
        f"{say(NAMES[kind])} {n / found.pictures:.0%}" for kind, n in zip(Shape, told.shapes, strict=True) if n
    )
    head = say("Query {query} answered on {n} of {all} views.", query=query, n=told.answers, all=found.pictures)
    rows = [
        [say("As what"), classes],
        [say("Middle of its boxes, from the left and from the top"), f"{told.centre[0]:.0%}, {told.centre[1]:.0%}"],
        [say("Spread, in sides of the picture"), f"{told.spread:.3f}"],
        [say("Shapes"), kinds],
    ]
    return f'<p class="gh-verdict">{head}</p>{draw.table(["", ""], rows)}'
