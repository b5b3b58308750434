"""What happens inside the cascade, as plain records: why no face was found at a point, how many candidates each stage
left, and which faces would come and go if a threshold moved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .cascade import MOST, cell_squares, look, overlap_union
from .config import CascadeOptions
from .contract import Detections
from .mtcnn import MTCNN, ONet, RNet
from .sampling import Integral
from .trace import Candidates, CascadeTrace, Fate, follow

STAGES = ("P-Net", "R-Net", "O-Net")
REACH = 0.3  # a candidate is about a point that lies within this part of its side from its centre
SAME_FACE = 0.5  # two runs found the same face where the boxes' intersection over union is at least this


@dataclass(frozen=True)
class CellRecord:
    """The likeliest cell over the point on one pyramid level.

    side: of its square in pixels of the picture, the size of face that this level looks for. box: (4,) that square.
    """

    level: int
    scale: float
    side: float
    probability: float
    threshold: float
    box: np.ndarray

    @property
    def passed(self) -> bool:
        return self.probability >= self.threshold


@dataclass(frozen=True)
class CandidateRecord:
    """One candidate about the point.

    stage: of STAGES. index: in that stage of the trace. reason: what removed it, or that it stayed, in words.
    """

    stage: str
    index: int
    box: np.ndarray
    calibrated: np.ndarray
    score: float
    fate: Fate
    reason: str


@dataclass(frozen=True)
class Explanation:
    """face: index in trace.faces of the face at the point, or None. verdict: one sentence.

    cells: one record a level, finest first. candidates: strongest first within each stage.
    """

    x: float
    y: float
    face: int | None
    verdict: str
    cells: tuple[CellRecord, ...]
    candidates: tuple[CandidateRecord, ...]


@dataclass(frozen=True)
class StageCount:
    """Candidates of one stage. entered = below + outside + same_level + suppressed + crowded + kept.

    For P-Net every cell of every level enters, and crowded counts the cells that a full level left out.
    """

    stage: str
    entered: int
    below: int
    outside: int
    same_level: int
    suppressed: int
    crowded: int
    kept: int


@dataclass(frozen=True)
class WhatIf:
    """The run with other thresholds. gained: indices in trace.faces; lost: indices in the old run's faces.

    looked_again: crops that a network had to be shown; the rest was known from the old run.
    """

    trace: CascadeTrace
    gained: tuple[int, ...]
    lost: tuple[int, ...]
    looked_again: int

    @property
    def faces(self) -> Detections:
        return self.trace.faces


def explain_point(trace: CascadeTrace, x: float, y: float) -> Explanation:
    """Why there is, or is not, a face at (x, y) in pixels of the picture."""
    cells = tuple(_cells_at(trace, x, y))
    records = tuple(
        record
        for name, stage in zip(STAGES, (trace.proposals, trace.refined, trace.output), strict=True)
        for record in _records(trace, name, stage, x, y)
    )
    boxes = trace.faces.boxes
    inside = np.flatnonzero((boxes[:, 0] <= x) & (x <= boxes[:, 2]) & (boxes[:, 1] <= y) & (y <= boxes[:, 3]))
    # Of faces that share the point, the one whose centre is nearest in units of its own side.
    face = min(inside.tolist(), key=lambda i: _off_centre(boxes[i : i + 1], x, y)[0], default=None)
    return Explanation(x, y, face, _verdict(trace, x, y, face, cells, records), cells, records)


def _off_centre(boxes: np.ndarray, x: float, y: float, size: tuple[int, int] | None = None) -> np.ndarray:
    """Distance of the point from each box's centre, the larger of the two directions, in units of its longer side.

    size: height and width of the picture. A point so near to its border that no box of this side could have it in its
    middle counts as the nearest point that one could.
    """
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    side = np.maximum((boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True), 1e-6)
    point = np.array([[x, y]], np.float32)
    if size is not None:
        low = side / 2
        point = np.clip(point, low, np.maximum(np.array(size[::-1]) - low, low))
    return np.abs(centre - point).max(1) / side[:, 0]


def _about(trace: CascadeTrace, boxes: np.ndarray, x: float, y: float) -> np.ndarray:
    return np.flatnonzero(_off_centre(boxes, x, y, trace.image.shape[:2]) <= REACH)


def _cells_at(trace: CascadeTrace, x: float, y: float) -> Iterable[CellRecord]:
    for k, traced in enumerate(trace.levels):
        squares = cell_squares(traced.level, np.arange(traced.probability.size))
        over = _about(trace, squares, x, y)
        if not len(over):  # outside the picture
            continue
        best = over[traced.probability.reshape(-1)[over].argmax()]
        box = squares[best]
        yield CellRecord(
            k, traced.level.scale, float(box[2] - box[0]), float(traced.probability.reshape(-1)[best]),
            trace.options.thresholds[0], box,
        )  # fmt: skip


def _records(trace: CascadeTrace, name: str, stage: Candidates, x: float, y: float) -> list[CandidateRecord]:
    about = _about(trace, stage.boxes, x, y)
    about = about[np.argsort(-np.nan_to_num(stage.scores[about], nan=-1.0), kind="stable")]
    return [
        CandidateRecord(
            name, int(i), stage.boxes[i], stage.calibrated[i], float(stage.scores[i]), Fate(stage.fates[i]),
            _reason(trace.options, name, stage, i),
        )
        for i in about
    ]  # fmt: skip


def _reason(options: CascadeOptions, name: str, stage: Candidates, i: int) -> str:
    fate, score, by = Fate(stage.fates[i]), stage.scores[i], stage.by[i]
    k = STAGES.index(name)
    if fate is Fate.KEPT:
        return f"kept: score {score:.3f}" + ("" if name == "O-Net" else f", goes on to {STAGES[k + 1]}")
    if fate is Fate.BELOW:
        return f"score {score:.3f} is not above the threshold {options.thresholds[k]:.2f}"
    if fate is Fate.OUTSIDE:
        return "no pixel of its box lies in the picture"
    if fate is Fate.CROWDED:
        return f"score {score:.3f} is not among the {MOST} strongest that a stage takes"
    where, limit = (" of its level", options.nms_level) if fate is Fate.SAME_LEVEL else ("", options.nms[k])
    stronger = f"candidate {by}{where} with score {stage.scores[by]:.3f}"
    return f"overlaps {stage.overlaps[i]:.2f} (more than {limit:.2f}) with {stronger}, so score {score:.3f} gives way"


def _verdict(
    trace: CascadeTrace, x: float, y: float, face: int | None, cells: tuple[CellRecord, ...],
    records: tuple[CandidateRecord, ...],
) -> str:  # fmt: skip
    height, width = trace.image.shape[:2]
    if not (0 <= x < width and 0 <= y < height):
        return "This point lies outside the picture."
    if face is not None:
        return f"A face was found here: number {face + 1} by size, with score {trace.faces.scores[face]:.3f}."
    if not cells:
        return f"The picture is smaller than the smallest face that is searched for, {trace.options.min_face} pixels."
    if not records:
        return _cell_verdict(max(cells, key=lambda cell: cell.probability))
    # How far did any candidate come? The last stage reached tells why the place came to nothing.
    last = max(STAGES.index(record.stage) for record in records)
    reached = [record for record in records if record.stage == STAGES[last]]
    kept = [record for record in reached if record.fate is Fate.KEPT]
    best = (kept or reached)[0]
    side = f"{max(float(best.box[2] - best.box[0]), 1.0):.0f} pixels"
    if kept:
        return f"A candidate of about {side} passed {best.stage} here, and its correction then moved the box elsewhere."
    return f"The best candidate here, about {side} wide, ended at {best.stage}: {best.reason}."


def _cell_verdict(best: CellRecord) -> str:
    if best.passed:
        return (
            f"Too many cells of this level are above the threshold: the {MOST} strongest went on, without this place."
        )
    return (
        f"P-Net saw no face here at any size: its best is {best.probability:.2f}, for a face of about {best.side:.0f} "
        f"pixels, and {best.threshold:.2f} is needed."
    )


def replay(trace: CascadeTrace) -> tuple[StageCount, ...]:
    """How many candidates entered each stage, and what became of them."""
    counts = []
    for name, stage in zip(STAGES, (trace.proposals, trace.refined, trace.output), strict=True):
        number = {fate: int((stage.fates == fate).sum()) for fate in Fate}
        entered, below, crowded = len(stage), number[Fate.BELOW], number[Fate.CROWDED]
        if name == "P-Net":
            left_out = sum(traced.left_out for traced in trace.levels)
            entered = sum(traced.probability.size for traced in trace.levels)
            below, crowded = entered - len(stage) - left_out, crowded + left_out
        counts.append(
            StageCount(
                name, entered, below, number[Fate.OUTSIDE], number[Fate.SAME_LEVEL], number[Fate.SUPPRESSED], crowded,
                number[Fate.KEPT],
            )
        )  # fmt: skip
    return tuple(counts)


def what_if(networks: MTCNN, trace: CascadeTrace, thresholds: tuple[float, float, float]) -> WhatIf:
    """The run of `trace` with other thresholds, as if it had been run afresh.

    P-Net is not run at all: its maps hold every cell, whatever the threshold. R-Net and O-Net look only at crops that
    they have not seen in `trace`, so that a slider can call this on every move.
    """
    options = replace(trace.options, thresholds=thresholds)
    picture = _Picture(trace.image)
    refine = _Memory(networks.rnet, picture, trace.refined, points=False)
    output = _Memory(networks.onet, picture, trace.output, points=True)
    levels = [traced.level for traced in trace.levels]
    maps = [(traced.probability, traced.offsets) for traced in trace.levels]
    new = follow(trace.image, options, levels, maps, refine, output)
    gained = _unmatched(new.faces.boxes, trace.faces.boxes)
    lost = _unmatched(trace.faces.boxes, new.faces.boxes)
    return WhatIf(new, gained, lost, refine.looked + output.looked)


def _unmatched(boxes: np.ndarray, others: np.ndarray) -> tuple[int, ...]:
    return tuple(i for i, box in enumerate(boxes) if not (overlap_union(box, others) >= SAME_FACE).any())


class _Picture:
    def __init__(self, image: np.ndarray) -> None:
        self.image = image

    @cached_property
    def integral(self) -> Integral:  # made only if some crop is new
        return Integral.of(self.image)


class _Memory:
    """A network that looks only at windows that it has not answered for before. A `trace.Look`."""

    def __init__(self, network: RNet | ONet, picture: _Picture, known: Candidates, points: bool) -> None:
        seen = np.flatnonzero(known.fates != Fate.OUTSIDE)
        self.network, self.picture, self.looked = network, picture, 0
        self.rows = {known.windows[i].tobytes(): i for i in seen}
        self.answers = (known.scores, known.offsets, known.points) if points else (known.scores, known.offsets)

    def __call__(self, windows: np.ndarray) -> tuple[np.ndarray, ...]:
        rows = np.array([self.rows.get(window.tobytes(), -1) for window in windows], np.int64)
        new = rows < 0
        outputs = [np.empty((len(windows), *answer.shape[1:]), np.float32) for answer in self.answers]
        for output, answer in zip(outputs, self.answers, strict=True):
            output[~new] = answer[rows[~new]]
        if new.any():
            self.looked += int(new.sum())
            fresh = look(self.network, self.picture.integral, windows[new])
            for output, answer in zip(outputs, fresh, strict=True):
                output[new] = answer
        return tuple(outputs)
