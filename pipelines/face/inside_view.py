"""The cascade's insides as pictures and HTML. No gradio; `say` translates, as in view.py."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import cv2
import numpy as np

from pipelines.ui import draw

from .config import MTCNNConfig
from .view import Say

if TYPE_CHECKING:
    from .insight import Explanation, WhatIf
    from .trace import Candidates, CascadeTrace

# By codes: gradio's page translates any text that is a key of the translations, the values of a Radio too.
VIEWS = {
    "pyramid": "Pyramid level", "pnet_map": "P-Net map", "after_pnet": "After P-Net", "after_rnet": "After R-Net",
    "after_onet": "After O-Net",
}  # fmt: skip
KEPT, GONE, NEW = "#14b8a6", "#ef4444", "#22c55e"
CELL, STRIDE = MTCNNConfig.cell, MTCNNConfig.stride  # of P-Net's map, in pixels of a level


def picture(trace: CascadeTrace, view: str, level: int) -> np.ndarray:
    """What one view shows, at the picture's own size, so that a click on it is a point of the picture."""
    image = trace.image
    if view in ("pyramid", "pnet_map") and trace.levels:
        level = min(max(level, 0), len(trace.levels) - 1)
        return _level(trace, level) if view == "pyramid" else _map(trace, level)
    if view in ("after_pnet", "after_rnet"):
        return _candidates(image, trace.proposals if view == "after_pnet" else trace.refined)
    labels = [f"{i + 1}: {score:.3f}" for i, score in enumerate(trace.faces.scores)]
    return draw.boxes(image, trace.faces.boxes, labels, points=trace.faces.landmarks)


def _level(trace: CascadeTrace, index: int) -> np.ndarray:
    """The picture as P-Net gets it at this level, its pixels enlarged again, with one field of view drawn in."""
    height, width = trace.image.shape[:2]
    level = trace.levels[index].level
    small = cv2.resize(trace.image, (level.width, level.height), interpolation=cv2.INTER_AREA)
    shown = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)
    half = CELL / level.scale / 2
    box = np.array([[width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half]])
    return draw.boxes(shown, box, [f"{2 * half:.0f} px"])


def _map(trace: CascadeTrace, index: int) -> np.ndarray:
    """Each cell's probability spread over the middle of what the cell sees."""
    height, width = trace.image.shape[:2]
    traced = trace.levels[index]
    rows, columns = traced.probability.shape
    stride = STRIDE / traced.level.scale
    # Cell (r, c) sees pixels from stride * c to stride * c + CELL / scale: its middle is half of CELL in.
    offset = CELL / 2 / traced.level.scale - stride / 2
    x = np.clip(((np.arange(width) - offset) / stride).astype(int), 0, columns - 1)
    y = np.clip(((np.arange(height) - offset) / stride).astype(int), 0, rows - 1)
    return draw.overlay(trace.image, traced.probability[np.ix_(y, x)])


def _candidates(image: np.ndarray, stage: Candidates) -> np.ndarray:
    """The survivors of a stage, as the stage corrected them, the likelier the warmer."""
    kept = stage.kept
    ink = ["#{:02x}{:02x}{:02x}".format(*draw.heat(np.array([[0.25 + 0.7 * s]]))[0, 0]) for s in stage.scores[kept]]
    return draw.boxes(image, stage.calibrated[kept], colours=ink, width=max(1, max(image.shape[:2]) // 500))


def changes(outcome: WhatIf, base: CascadeTrace) -> np.ndarray:
    """The faces of a what-if run: kept, gained and lost ones in different colours."""
    faces = outcome.faces
    gone = base.faces.boxes[list(outcome.lost)]
    boxes = np.concatenate([faces.boxes, gone]) if len(gone) else faces.boxes
    ink = [NEW if i in outcome.gained else KEPT for i in range(len(faces))] + [GONE] * len(gone)
    signs = ["+" if i in outcome.gained else "" for i in range(len(faces))] + ["−"] * len(gone)
    return draw.boxes(base.image, boxes, [s.replace("−", "-") for s in signs], colours=ink)


def funnel(trace: CascadeTrace, say: Say) -> str:
    """How many candidates each stage let through."""
    from .insight import replay

    cells = []
    for count in replay(trace):
        gone = [
            (count.below, say("below the threshold")),
            (count.same_level + count.suppressed, say("overlap a stronger one")),
            (count.outside, say("outside the picture")),
            (count.crowded, say("past the limit")),
        ]
        lines = "<br>".join(f"{n:,} {text}" for n, text in gone if n)
        left = say("{kept} of {entered} left", kept=f"{count.kept:,}", entered=f"{count.entered:,}")
        cells.append(f"<div><b>{count.stage}</b><span>{left}<br>{lines}</span></div>")
    levels = say("{n} sizes", n=len(trace.levels))
    smallest = say("faces from {n} pixels", n=trace.options.min_face)
    head = f"<div><b>{say('Pyramid')}</b><span>{levels}<br>{smallest}</span></div>"
    return f'<div class="gh-funnel">{head}{"".join(cells)}</div>'


def what_changed(outcome: WhatIf, say: Say) -> str:
    """One sentence on what the moved thresholds did."""
    text = say(
        "{faces} face(s) with these thresholds: {gained} gained (green), {lost} lost (red). "
        "{crops} new crop(s) were looked at.",
        faces=len(outcome.faces), gained=len(outcome.gained), lost=len(outcome.lost), crops=outcome.looked_again,
    )  # fmt: skip
    return f'<p class="gh-verdict">{text}</p>'


def pointed(trace: CascadeTrace, told: Explanation) -> np.ndarray:
    """The picture with the clicked point and the candidates about it."""
    near = [record for record in told.candidates if record.stage != "P-Net"] or list(told.candidates)
    boxes = np.stack([r.box for r in near[:12]]) if near else np.zeros((0, 4))
    ink = [KEPT if r.fate == 0 else GONE for r in near[:12]]
    shown = draw.boxes(trace.image, boxes, colours=ink, width=max(1, max(trace.image.shape[:2]) // 500))
    reach = max(3.0, max(trace.image.shape[:2]) / 160)
    cross = np.array([[told.x - reach, told.y - reach, told.x + reach, told.y + reach]])
    return draw.boxes(shown, cross, colours=["#facc15"])


def explanation(told: Explanation, say: Say, rows: int = 6) -> str:
    """The verdict, the best cell of every pyramid level, and the candidates about the point, stage by stage."""
    parts = [f'<p class="gh-verdict">{html.escape(told.verdict)}</p>']
    stages = dict.fromkeys(record.stage for record in told.candidates)
    for stage in stages:
        records = [record for record in told.candidates if record.stage == stage]
        lines = [
            [f"{r.index}", f"{max(r.box[2] - r.box[0], 0):.0f} px", f"{r.score:.3f}", html.escape(r.reason)]
            for r in sorted(records, key=lambda r: (r.fate != 0, -np.nan_to_num(r.score, nan=-1)))[:rows]
        ]
        more = say("and {n} more", n=len(records) - rows) if len(records) > rows else ""
        headers = [say(t) for t in ("Candidate", "Size", "Score", "What became of it")]
        parts.append(f"<h4>{stage}: {len(records)}</h4>{draw.table(headers, lines)}<p class='gh-note'>{more}</p>")
    cells = [
        [
            f"{c.side:.0f} px",
            f"{c.probability:.3f}",
            say("passed") if c.passed else say("below {t}", t=f"{c.threshold:.2f}"),
        ]
        for c in told.cells
    ]
    if cells:
        headers = [say(t) for t in ("Face size of the level", "Best probability here", "")]
        parts.append(f"<h4>{say('P-Net, every level')}</h4>{draw.table(headers, cells)}")
    return "".join(parts)
