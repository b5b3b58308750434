"""The Hungarian desk as a picture and HTML tables. No gradio, no torch: `say` translates."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipelines.ui import draw

from .config import LossWeights
from .desk import PARTS, Settled, Truth, shown_queries
from .inside_view import dimmed, line, pixels, stroke

if TYPE_CHECKING:
    from .view import Say

TITLES = {"classification": "Classification", "l1": "L1", "giou": "GIoU"}
GREEDY = "#facc15"
COLUMNS = 10  # truth boxes whose costs are shown


def picture(
    image: np.ndarray, truth: Truth, settled: Settled, boxes: np.ndarray, corner: tuple[float, float] | None
) -> np.ndarray:
    """Truth boxes, thick; the boxes of their queries, thin; a line from each to its own, dashed where greedy would
    have drawn another. boxes: (Q, 4) xyxy in [0, 1]. corner: of a box that is being drawn, in pixels."""
    canvas, width = dimmed(image, 0.7), stroke(image)
    thin = max(1, width // 2)
    placed = pixels(boxes, image)
    ink = [draw.colour(i) for i in range(len(truth))]
    for i in range(len(truth)):
        query, other = int(settled.assigned[i]), int(settled.greedy[i])
        if query >= 0:
            canvas = draw.boxes(canvas, placed[query], colours=[ink[i]], width=thin)
            canvas = line(canvas, _middle(truth.boxes[i]), _middle(placed[query]), "#ffffff", width)
        if other >= 0 and other != query:
            canvas = line(canvas, _middle(truth.boxes[i]), _middle(placed[other]), GREEDY, width, dash=4.0 * width)
    names = [f"{i + 1} {name}" for i, name in enumerate(truth.labels)]
    canvas = draw.boxes(canvas, truth.boxes, names, ink, width=width + 2)
    return _ends(canvas, truth, settled, placed, corner, 1.6 * width)


def _ends(
    image: np.ndarray, truth: Truth, settled: Settled, placed: np.ndarray, corner: tuple[float, float] | None, r: float
) -> np.ndarray:
    """A square in the middle of each truth box, a dot with its number in the middle of its query's, and a cross at a
    corner that is being drawn."""
    canvas = Image.fromarray(image)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=max(11, round(4 * r)))
    for i in range(len(truth)):
        x, y = _middle(truth.boxes[i])
        pen.rectangle((x - r, y - r, x + r, y + r), fill=draw.colour(i), outline="#ffffff")
        query = int(settled.assigned[i])
        if query >= 0:
            x, y = _middle(placed[query])
            pen.ellipse((x - r, y - r, x + r, y + r), fill=draw.colour(i), outline="#ffffff")
            at = (x + 2 * r, y + r)
            pen.text(
                at, f"#{query}", fill="#ffffff", font=font, stroke_width=max(1, round(r / 2)), stroke_fill="#0f172a"
            )
    if corner is not None:
        (x, y), reach, width = corner, 6 * r, max(2, round(r))
        pen.line((x - reach, y, x + reach, y), fill=GREEDY, width=width)
        pen.line((x, y - reach, x, y + reach), fill=GREEDY, width=width)
    return np.asarray(canvas)


def _middle(box: np.ndarray) -> tuple[float, float]:
    return float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2


# --- numbers ---------------------------------------------------------------------------------------------------------


def summary(settled: Settled, truth: Truth, say: Say) -> str:
    """The loss and its parts, and what greedy would have cost."""
    parts = [(say(TITLES[name]), float(settled.losses[:, k].sum())) for k, name in enumerate(PARTS)]
    parts += [(say("Queries without an object"), settled.silence), (say("Loss of this layer"), settled.loss)]
    last = len(parts) - 1
    cells = "".join(
        f"<div{' style=' + chr(34) + 'outline:2px solid #14b8a6' + chr(34) if i == last else ''}>"
        f"<b>{value:.3f}</b><span>{name}</span></div>"
        for i, (name, value) in enumerate(parts)
    )
    return f'<div class="gh-funnel">{cells}</div>{_against_greedy(settled, truth, say)}'


def _against_greedy(settled: Settled, truth: Truth, say: Say) -> str:
    if not len(truth):
        text = say("There is no truth yet, so every query ought to say “nothing”. Draw a box, or take the detections.")
        return f'<p class="gh-verdict">{text}</p>'
    best, other = settled.price(settled.assigned), settled.price(settled.greedy)
    if not len(settled.disagreements):
        text = say(
            "The assignment costs {best}. Control: taking the cheapest free pair again and again finds the same.",
            best=f"{best:.3f}",
        )
    else:
        which = ", ".join(str(i + 1) for i in settled.disagreements[:8])
        text = say(
            "The assignment costs {best}. Control: taking the cheapest free pair again and again costs {more} more; it "
            "gives another query to box {which} (yellow, dashed).",
            best=f"{best:.3f}", more=f"<b>{other - best:.3f}</b>", which=which,
        )  # fmt: skip
    return f'<p class="gh-verdict">{text}</p>'


def notes(lines: Sequence[str], say: Say, most: int = 6) -> str:
    """Sentences on what was left out, which may quote what the visitor typed."""
    shown = "".join(f"<li>{html.escape(text)}</li>" for text in lines[:most])
    more = f"<li>{say('and {n} more', n=len(lines) - most)}</li>" if len(lines) > most else ""
    return f'<ul class="gh-note gh-no">{shown}{more}</ul>' if lines else ""


def pairs(settled: Settled, truth: Truth, names: Sequence[str], say: Say) -> str:
    """One row a truth box: its query, what that query says, and what the pair pays."""
    rows = []
    for i, (label, query) in enumerate(zip(truth.labels, settled.assigned, strict=True)):
        name = f'<b style="color:{draw.colour(i)}">{i + 1}</b> {html.escape(label)}'
        badge = f'<span style="white-space:nowrap">{name}</span>'
        if query < 0:
            rows.append([badge, say("no query is left"), *["–"] * 4])
            continue
        other = settled.greedy[i]
        greedy = "" if other == query else f' <span class="gh-no">({say("greedy: #{q}", q=other)})</span>'
        losses = settled.losses[i]
        numbers = [*(f"{v:.3f}" for v in losses), f"<b>{losses.sum():.3f}</b>"]
        rows.append([badge, f"#{query} {html.escape(names[query])}{greedy}", *numbers])
    titles = [say(t) for t in ("Truth", "Query, and what it says", "Classification", "L1", "GIoU", "Loss of the pair")]
    return draw.table(titles, rows) if rows else ""


def matrices(settled: Settled, truth: Truth, names: Sequence[str], weights: LossWeights, say: Say) -> str:
    """The cost matrix and its three weighted parts, queries down, truth across; cheaper is greener, a frame marks the
    assignment, a dashed one greedy's choice."""
    if not len(truth):
        return ""
    queries = shown_queries(settled)
    tables = [(say("Total cost"), settled.total)]
    for name in PARTS:
        weight = getattr(weights, name)
        tables.append((f"{say(TITLES[name])} × {weight:g}", settled.costs[name]))
    blocks = "".join(_matrix(title, cost, queries, settled, truth, names) for title, cost in tables)
    left = len(settled.total) - len(queries)
    rest = say(
        "Rows: the queries that were assigned, then those that would come cheapest; {n} more are not shown. Columns: "
        "the truth boxes. The total is the sum of the three others, which stand here with their weights.",
        n=left,
    )  # fmt: skip
    more = ""
    if len(truth) > COLUMNS:
        more = " " + say("Only the first {n} boxes have a column.", n=COLUMNS)
    side = 250 if len(truth) <= 2 else 440  # so that four stand in a row, or two
    layout = f"display:grid;grid-template-columns:repeat(auto-fit,minmax(min({side}px,100%),1fr));gap:1rem"
    return f'<div style="{layout}">{blocks}</div><p class="gh-note">{rest}{more}</p>'


def _matrix(
    title: str, cost: np.ndarray, queries: Sequence[int], settled: Settled, truth: Truth, names: Sequence[str]
) -> str:
    columns = range(min(len(truth), COLUMNS))
    part = cost[list(queries)][:, list(columns)]
    low, high = float(part.min()), float(part.max())
    head = "".join(
        f'<th style="color:{draw.colour(i)};opacity:1;text-align:center!important">{i + 1}</th>' for i in columns
    )
    rows = []
    for query in queries:
        cells = "".join(_cell(float(cost[query, i]), low, high, query, i, settled) for i in columns)
        rows.append(
            f'<tr><td style="white-space:nowrap;padding:.1rem .3rem!important">#{query} '
            f'<span style="opacity:.6">{html.escape(names[query])}</span></td>{cells}</tr>'
        )
    return (
        f'<div style="overflow-x:auto"><h4 style="margin:.2rem 0">{html.escape(title)}</h4>'
        '<table class="gh-table" style="font-size:.8rem">'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(value: float, low: float, high: float, query: int, wanted: int, settled: Settled) -> str:
    good = 1 - (value - low) / (high - low) if high > low else 0.0
    frame = ""
    if settled.assigned[wanted] == query:
        frame = "outline:2px solid currentColor;outline-offset:-2px;font-weight:700;"
    elif settled.greedy[wanted] == query:
        frame = f"outline:2px dashed {GREEDY};outline-offset:-2px;"
    green = f"background:rgba(20,184,166,{0.75 * good**2:.2f});"
    text = f"{round(value, 2) + 0.0:.2f}"  # no minus before a zero
    return f'<td style="{frame}{green}text-align:center!important;padding:.1rem .3rem!important">{text}</td>'
