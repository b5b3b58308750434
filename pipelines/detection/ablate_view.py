"""A whole network beside one with parts taken out, as pictures and HTML. No gradio, no torch: `say` translates."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from pipelines.ui import draw

from .inside_view import dimmed, stroke
from .insight import Named, Outcome, Reckoning

if TYPE_CHECKING:
    from .view import Say

INK = {Outcome.HIT: "#14b8a6", Outcome.DOUBLE: "#f59e0b", Outcome.CHANGED: "#a855f7", Outcome.FALSE: "#ef4444"}
MISSED = "#e2e8f0"
FAULTS = {"Doubles", "Missed", "False alarms", "Changed classes"}


def picture(image: np.ndarray, found: Named, wanted: Named, told: Reckoning) -> np.ndarray:
    """Every found box coloured by what it is, and what was missed as a dashed box."""
    canvas, width = dimmed(image, 0.75), stroke(image)
    for i in told.missed:
        canvas = _dashed(canvas, wanted.boxes[i], width)
    order = np.argsort(found.scores, kind="stable")  # the surest on top
    labels = [f"{found.labels[i]} {found.scores[i]:.2f}" for i in order]
    colours = [INK[Outcome(int(told.outcomes[i]))] for i in order]
    return draw.boxes(canvas, found.boxes[order], labels, colours, width=width)


def _dashed(image: np.ndarray, box: np.ndarray, width: int) -> np.ndarray:
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    x1, y1, x2, y2 = (float(v) for v in box)
    dash = 5.0 * width
    for start, end in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x1, y2), (x2, y2)), ((x1, y1), (x1, y2))):
        a, b = np.array(start), np.array(end)
        length = max(float(np.hypot(*(b - a))), 1e-6)
        for low in np.arange(0, length, 2 * dash):
            pen.line((*(a + (b - a) * low / length), *(a + (b - a) * min(low + dash, length) / length)), MISSED, width)
    return np.asarray(canvas)


def table(whole: tuple[Named, Reckoning], cut: tuple[Named, Reckoning], against: str, say: Say) -> str:
    """The counts of both runs and their difference. against: what they were counted against, in words."""
    columns = [_counts(found, told) for found, told in (whole, cut)]
    rows = []
    for name in columns[0]:
        before, after = columns[0][name], columns[1][name]
        if before is None or after is None:  # nothing is correct, so that it has no overlap
            rows.append([say(name), *("–" if v is None else f"{v:.2f}" for v in (before, after)), ""])
            continue
        digits = 2 if isinstance(before, float) else 0
        change, mark = after - before, ""
        if change and name != "Boxes found":
            mark = "gh-no" if (change > 0) == (name in FAULTS) else "gh-yes"
        text = f'<b class="{mark}">{change:+.{digits}f}</b>' if change else "0"
        rows.append([f"{_dot(name)} {say(name)}", f"{before:.{digits}f}", f"<b>{after:.{digits}f}</b>", text])
    headers = ["", say("Whole network"), say("With parts taken out"), say("Difference")]
    note = say("Counted against {what}, from an overlap (IoU) of 0.5 on.", what=html.escape(against))
    return f'{draw.table(headers, rows)}<p class="gh-note">{note}</p>'


def _counts(found: Named, told: Reckoning) -> dict[str, int | float | None]:
    return {
        "Boxes found": len(found),
        "Correct": told.count(Outcome.HIT),
        "Doubles": told.count(Outcome.DOUBLE),
        "Changed classes": told.count(Outcome.CHANGED),
        "False alarms": told.count(Outcome.FALSE),
        "Missed": len(told.missed),
        "Overlap of the correct ones": told.overlap if told.count(Outcome.HIT) else None,
    }


def _dot(name: str) -> str:
    kinds = {"Correct": Outcome.HIT, "Doubles": Outcome.DOUBLE, "Changed classes": Outcome.CHANGED,
             "False alarms": Outcome.FALSE}  # fmt: skip
    if name == "Missed":
        return '<span style="opacity:.8">▢</span>'
    return f'<span style="color:{INK[kinds[name]]}">■</span>' if name in kinds else ""


def verdict(whole: tuple[Named, Reckoning], cut: tuple[Named, Reckoning], parts: str, say: Say) -> str:
    """One sentence on what the ablation did."""
    if not parts:
        text = say("Nothing is taken out: both sides are the same run. Take something out on the left.")
    else:
        a, b = whole[1], cut[1]
        text = say(
            "Without {parts}: doubles {doubles}, missed {missed}, false alarms {false}, changed classes {changed}.",
            parts=html.escape(parts), doubles=f"{b.count(Outcome.DOUBLE) - a.count(Outcome.DOUBLE):+d}",
            missed=f"{len(b.missed) - len(a.missed):+d}", false=f"{b.count(Outcome.FALSE) - a.count(Outcome.FALSE):+d}",
            changed=f"{b.count(Outcome.CHANGED) - a.count(Outcome.CHANGED):+d}",
        )  # fmt: skip
    return f'<p class="gh-verdict">{text}</p>'
