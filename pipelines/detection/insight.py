"""What happens inside a detector, as plain records: the life of each query through the decoder, what an ablation did.

Letters: L decoder layers, H heads, Q queries, n objects, h x w the attention's grid. Boxes are xyxy in [0, 1] of the
picture unless a docstring says otherwise. numpy only.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from .contract import Prediction, Trace
from .postprocess import class_scores, overlaps, suppress, to_pixels

SAME = 0.5  # two boxes are about one object where they overlap (IoU) by at least this


# --- the life of a query ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Life:
    """Every query at every decoder layer, first to last.

    classes: (L, Q) int64, the likeliest class. scores: (L, Q) float32, its score. boxes: (L, Q, 4) float32.
    overlaps: (L, Q) float32, IoU with the query's own last box. flips: (L, Q) bool, True where the class is not that
    of the layer before; never at the first.
    """

    classes: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    overlaps: np.ndarray
    flips: np.ndarray

    @property
    def layers(self) -> int:
        return len(self.classes)


def likeliest(prediction: Prediction, known: Collection[int]) -> tuple[np.ndarray, np.ndarray]:
    """Each query's likeliest class, (Q,) int64, and its score, (Q,) float32.

    known: class indices that stand for something: COCO's numbering has gaps.
    """
    scores = np.nan_to_num(class_scores(prediction))
    columns = np.array([k for k in sorted(known) if k < scores.shape[1]], np.int64)
    best = scores[:, columns].argmax(axis=1)
    return columns[best], scores[np.arange(len(scores)), columns[best]]


def life(trace: Trace, known: Collection[int]) -> Life:
    """The life of all queries. known: as for `likeliest`."""
    classes, scores, boxes = [], [], []
    for logits, centred in zip(trace.logits, trace.boxes, strict=True):
        named, found = likeliest(Prediction(logits, centred, trace.scoring), known)
        classes.append(named)
        scores.append(found)
        boxes.append(to_pixels(centred, (1, 1)))
    last = boxes[-1]
    shared = [np.diagonal(overlaps(one, last)) for one in boxes]
    stacked = np.stack(classes)
    flips = np.zeros(stacked.shape, bool)
    flips[1:] = stacked[1:] != stacked[:-1]
    return Life(stacked, np.stack(scores), np.stack(boxes), np.stack(shared), flips)


def answering(told: Life, layer: int, threshold: float) -> np.ndarray:
    """Queries whose score at a layer is at least the threshold, surest first: (n,) int64."""
    scores = told.scores[layer]
    order = np.argsort(-scores, kind="stable")
    return order[scores[order] >= threshold]


def doubles(told: Life, layer: int, threshold: float) -> int:
    """Answers of a layer on an object that a surer answer of the same class has already (IoU above `SAME`)."""
    found = answering(told, layer, threshold)
    kept = suppress(told.boxes[layer][found], told.scores[layer][found], told.classes[layer][found], SAME)
    return len(found) - len(kept)


def at_point(told: Life, x: float, y: float, threshold: float) -> int:
    """The query whose last box fits a point of the picture best; x and y in [0, 1].

    Queries that answer come before those that do not, boxes that have the point inside before those that have not;
    among equals that box wins whose centre is nearest to the point in units of its own size.
    """
    boxes, scores = told.boxes[-1], told.scores[-1]
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    size = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-6)
    away = (np.abs(middle - np.array([x, y], np.float32)) / size).max(axis=1)
    return int(np.lexsort((away, away > 0.5, scores < threshold))[0])


# --- attention -------------------------------------------------------------------------------------------------------


def share_inside(maps: np.ndarray, box: np.ndarray) -> np.ndarray:
    """How much of each attention map (..., h, w) lies in a box (4,): (...) float in [0, 1]; 0 of an empty map.

    A cell that the box's edge cuts counts by the part within.
    """
    h, w = maps.shape[-2:]
    total = maps.sum(axis=(-2, -1))
    inside = (maps * _covered(h, box[1], box[3])[:, None] * _covered(w, box[0], box[2])).sum(axis=(-2, -1))
    return np.where(total > 0, inside / np.where(total > 0, total, 1), 0.0)


def in_common(a: np.ndarray, b: np.ndarray) -> float:
    """How much two attention maps (h, w) coincide, each scaled to a sum of 1: 1 where they are equal, 0 where apart."""
    if a.sum() <= 0 or b.sum() <= 0:
        return 0.0
    return float(np.minimum(a / a.sum(), b / b.sum()).sum())


def _covered(cells: int, low: float, high: float) -> np.ndarray:
    """(cells,): the part of each cell of [0, 1] that lies between low and high."""
    edges = np.arange(cells + 1) / cells
    return np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * cells


def box_area(box: np.ndarray) -> float:
    """Width times height of one box."""
    return float(max(box[2] - box[0], 0) * max(box[3] - box[1], 0))


@dataclass(frozen=True)
class Heard:
    """One query that another listens to in self-attention. weight: of 1 in all, mean of the heads."""

    query: int
    weight: float


def heard(trace: Trace, layer: int, query: int, top: int = 5) -> tuple[Heard, ...]:
    """Whom a query listens to most at a layer, itself included, most first; none if self-attention was taken out."""
    if layer >= len(trace.self_attention):
        return ()
    weights = trace.self_attention[layer, :, query].mean(axis=0)
    order = np.argsort(-weights, kind="stable")[:top]
    return tuple(Heard(int(q), float(weights[q])) for q in order if weights[q] > 0)


# --- what an ablation did --------------------------------------------------------------------------------------------


class Outcome(IntEnum):
    """What a found box is, held against boxes that should have been found."""

    HIT = 0  # the class and the place of a wanted object
    DOUBLE = 1  # the same of an object that a surer box has already
    CHANGED = 2  # the place of an object that nobody else has, with another class
    FALSE = 3  # nothing wanted is there


@dataclass(frozen=True)
class Reckoning:
    """Found boxes held against wanted ones. outcomes: (n,) int64 of `Outcome`, by found box. matched: (n,) int64, the
    wanted box it is about, or -1. missed: indices of the wanted boxes that nobody found, under any class.
    overlap: mean IoU of the hits, 0 without any.
    """

    outcomes: np.ndarray
    matched: np.ndarray
    missed: tuple[int, ...]
    overlap: float

    def count(self, outcome: Outcome) -> int:
        return int((self.outcomes == outcome).sum())


@dataclass(frozen=True)
class Named:
    """Boxes (n, 4) xyxy in any one unit, their class names, and their scores (n,); truth has scores of 1."""

    boxes: np.ndarray
    labels: tuple[str, ...]
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


def reckon(found: Named, wanted: Named, least: float = SAME) -> Reckoning:
    """Decide what every found box is. least: IoU from which a found box is about a wanted one.

    First, surest box first, each takes the free wanted box of its class that it overlaps most. What is left is a double
    where it overlaps a wanted box of its class, else the changed class of a free wanted box, else false.
    """
    shared = overlaps(found.boxes, wanted.boxes)
    same = np.array([[a == b for b in wanted.labels] for a in found.labels], bool).reshape(shared.shape)
    close = shared >= least
    outcomes = np.full(len(found), int(Outcome.FALSE), np.int64)
    matched = np.full(len(found), -1, np.int64)
    free = np.ones(len(wanted), bool)
    order = np.argsort(-found.scores, kind="stable")
    for i in order:
        if _take(i, shared, close & same & free, Outcome.HIT, outcomes, matched):
            free[matched[i]] = False
    for i in order[matched[order] < 0]:
        if not _take(i, shared, close & same, Outcome.DOUBLE, outcomes, matched) and _take(
            i, shared, close & free, Outcome.CHANGED, outcomes, matched
        ):
            free[matched[i]] = False
    hits = np.flatnonzero(outcomes == Outcome.HIT)
    mean = float(shared[hits, matched[hits]].mean()) if len(hits) else 0.0
    return Reckoning(outcomes, matched, tuple(np.flatnonzero(free).tolist()), mean)


def _take(
    i: int, shared: np.ndarray, allowed: np.ndarray, outcome: Outcome, outcomes: np.ndarray, matched: np.ndarray
) -> bool:
    """Give found box i the allowed wanted box that it overlaps most, if there is one."""
    if not allowed[i].any():
        return False
    matched[i] = int(np.where(allowed[i], shared[i], -1).argmax())
    outcomes[i] = int(outcome)
    return True
