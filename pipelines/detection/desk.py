"""The Hungarian desk: truth boxes against queries, as training matches and scores them.

Costs and losses are those of matcher.py and criterion.py, imported when they are needed. Letters: Q queries, n truth
boxes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.common.errors import UserError

from .config import LossWeights, Scoring
from .labels import categories, same

PARTS = ("classification", "l1", "giou")
MOST = 100  # truth boxes: more than any network here has queries for
HEAVIEST = 100.0  # weight of a part of the cost


# --- the truth -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """boxes: (n, 4) float32 xyxy in pixels of the picture, within it and of some area. labels: n names, as the weights'
    label file has them. classes: (n,) int64, their indices. notes: what was left out or changed, and why."""

    boxes: np.ndarray
    labels: tuple[str, ...]
    classes: np.ndarray
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.boxes)


def read_rows(rows: Sequence[Sequence[Any]], size: tuple[int, int], key: str) -> Truth:
    """Rows of label, x1, y1, x2, y2 in pixels, as a visitor leaves them, on a picture of (height, width).

    key: of the label file. Corners may stand in any order; VOC's and COCO's names for one thing are both understood.
    Rows that cannot be used are left out, boxes that reach beyond the picture cut off at its edge: the notes say which.
    """
    known = {same(category.name): (index, category.name) for index, category in categories(key).items()}
    boxes: list[np.ndarray] = []
    labels: list[str] = []
    classes: list[int] = []
    notes: list[str] = []
    for number, row in enumerate(rows, start=1):
        cells = [*row[:5], *[None] * (5 - len(row[:5]))]
        if all(_empty(cell) for cell in cells[:5]):
            continue
        if len(boxes) == MOST:
            notes.append(f"Only the first {MOST} boxes are used.")
            break
        found, note = _row(cells, size, known)
        if note:
            notes.append(f"Row {number}: {note}")
        if found is not None:
            box, (index, name) = found
            boxes.append(box)
            labels.append(name)
            classes.append(index)
    stacked = np.array(boxes, np.float32).reshape(-1, 4)
    return Truth(stacked, tuple(labels), np.array(classes, np.int64), tuple(notes))


def _empty(cell: Any) -> bool:
    return (
        cell is None or (isinstance(cell, float) and math.isnan(cell)) or (isinstance(cell, str) and not cell.strip())
    )


def _row(
    cells: Sequence[Any], size: tuple[int, int], known: Mapping[str, tuple[int, str]]
) -> tuple[tuple[np.ndarray, tuple[int, str]] | None, str]:
    """One row as its box and class, or None; and what was wrong with it."""
    label = "" if _empty(cells[0]) else str(cells[0])
    if same(label) not in known:
        what = f"“{label.strip()[:40]}” is no class of these weights" if label.strip() else "it has no class"
        return None, f"{what}; it was left out."
    numbers = [_number(cell) for cell in cells[1:5]]
    if None in numbers:
        return None, "a box needs four numbers: left, top, right, bottom; it was left out."
    x1, y1, x2, y2 = (float(v) for v in numbers if v is not None)
    given = np.array([min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)])
    if given[2] <= given[0] or given[3] <= given[1]:
        return None, "the box has no area; it was left out."
    height, width = size
    box = np.clip(given, 0, [width, height, width, height])
    if box[2] - box[0] < 1e-3 or box[3] - box[1] < 1e-3:
        return None, "the box lies outside the picture; it was left out."
    cut = np.abs(box - given).max() > 0.01  # how files round
    return (box, known[same(label)]), "the box was cut off at the picture's edge." if cut else ""


def _number(cell: Any) -> float | None:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if abs(value) < 1e9 else None  # nan is not below anything


def to_rows(boxes: np.ndarray, labels: Sequence[str]) -> list[list[Any]]:
    """(n, 4) xyxy pixels and names as rows of the table."""
    return [[name, *(round(float(v), 1) for v in box)] for name, box in zip(labels, boxes, strict=True)]


# --- the assignment --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settled:
    """What the desk says of one layer's prediction against the truth.

    costs: (Q, n) float32 for each of PARTS, weighted; total: (Q, n), their sum. assigned: (n,) int64, the query of
    each truth box in the assignment that costs least in all, or -1 where there are more boxes than queries. greedy:
    (n,) likewise, if always the cheapest free pair were taken. losses: (n, 3) float32, what training would have each
    pair pay, for PARTS, weighted and divided by n; 0 where there is none. silence: what all other queries would pay for
    not saying "nothing".
    """

    costs: Mapping[str, np.ndarray]
    total: np.ndarray
    assigned: np.ndarray
    greedy: np.ndarray
    losses: np.ndarray
    silence: float

    @property
    def loss(self) -> float:
        """The set loss of this layer."""
        return float(self.losses.sum()) + self.silence

    def price(self, queries: np.ndarray) -> float:
        """Total cost of an assignment, (n,) queries or -1."""
        chosen = np.flatnonzero(queries >= 0)
        return float(self.total[queries[chosen], chosen].sum())

    @property
    def disagreements(self) -> np.ndarray:
        """Truth boxes that greedy would give to another query: (k,) int64."""
        return np.flatnonzero(self.assigned != self.greedy)


def settle(
    logits: np.ndarray, boxes: np.ndarray, scoring: Scoring, classes: np.ndarray, targets: np.ndarray,
    weights: LossWeights,
) -> Settled:  # fmt: skip
    """Match one layer's queries, logits (Q, K or K + 1) and boxes (Q, 4) cxcywh in [0, 1], with the truth: classes (n,)
    and targets (n, 4) cxcywh. UserError: a weight is no number from 0 to 100."""
    import torch

    from .matcher import assign
    from .matcher import costs as matching_costs

    check_weights(weights)
    with torch.no_grad():
        said, placed = torch.from_numpy(logits).float(), torch.from_numpy(boxes).float()
        named = torch.from_numpy(np.asarray(classes, np.int64))
        wanted = torch.from_numpy(np.asarray(targets, np.float32)).reshape(-1, 4)
        found = matching_costs(said, placed, named, wanted, weights, scoring)
        rows, columns = (index.numpy() for index in assign(found.total))
        assigned = np.full(len(named), -1, np.int64)
        assigned[columns] = rows
        losses, silence = _losses(said, placed, scoring, named, wanted, assigned, weights)
    costs = {name: (getattr(weights, name) * getattr(found, name)).numpy() for name in PARTS}
    total = found.total.numpy()
    return Settled(costs, total, assigned, greedy(total), losses, silence)


def check_weights(weights: LossWeights) -> None:
    """UserError unless every weight is a number that makes sense."""
    for value in (weights.classification, weights.l1, weights.giou, weights.no_object):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= HEAVIEST:
            raise UserError(f"The weights must be numbers from 0 to {HEAVIEST:.0f}.")


def greedy(total: np.ndarray) -> np.ndarray:
    """The control: take the cheapest pair, then the cheapest of what is left: (Q, n) -> (n,) queries or -1."""
    taken = np.full(total.shape[1], -1, np.int64)
    used = np.zeros(len(total), bool)
    for flat in np.argsort(total, axis=None, kind="stable"):
        query, wanted = divmod(int(flat), total.shape[1])
        if not used[query] and taken[wanted] < 0:
            used[query], taken[wanted] = True, query
    return taken


def _losses(
    logits: Any, boxes: Any, scoring: Scoring, classes: Any, targets: Any, assigned: np.ndarray, weights: LossWeights
) -> tuple[np.ndarray, float]:
    """The set loss of criterion.py, taken apart: (n, 3) by pair, and what the unmatched queries pay.

    Its functions sum or average over queries, and are asked here about one pair after another, then about the rest.
    """
    from .boxes import giou, overlaps, to_corners

    count, matched = float(max(1, len(classes))), int((assigned >= 0).sum())
    rest = np.setdiff1d(np.arange(len(logits)), assigned)
    # The cross-entropy is a weighted mean over the queries: these are the shares of one pair and of the rest in it.
    whole = matched + weights.no_object * len(rest)
    shares = (1 / max(whole, 1e-12), weights.no_object * len(rest) / max(whole, 1e-12))
    losses = np.zeros((len(classes), len(PARTS)), np.float32)
    for wanted, query in enumerate(assigned):
        if query < 0:
            continue
        corners, goal = to_corners(boxes[query]), to_corners(targets[wanted])
        said = _said(
            logits[[query]], scoring, classes[[wanted]], overlaps(corners, goal)[0][None], count, shares[0], weights
        )
        losses[wanted] = (
            said,
            weights.l1 * float((boxes[query] - targets[wanted]).abs().sum()) / count,
            weights.giou * float(1 - giou(corners, goal)) / count,
        )
    silence = _said(logits[rest], scoring, classes[:0], boxes[:0, 0], count, shares[1], weights)
    return losses, silence


def _said(
    logits: Any, scoring: Scoring, classes: Any, quality: Any, count: float, share: float, weights: LossWeights
) -> float:
    """What some queries pay for what they say: logits (q, K or K + 1). The first of them answer for `classes` (m,), and
    ought to be as sure as their boxes are good, `quality` (m,); the others ought to say "nothing"."""
    import torch

    from .criterion import Pairs, cross_entropy, focal

    if not len(logits) or (scoring == "softmax" and not share):
        return 0.0
    index = torch.arange(len(classes))
    pairs = Pairs(torch.zeros_like(index), index, classes, quality.new_zeros(len(classes), 4))
    if scoring == "sigmoid":
        return weights.classification * float(focal(logits[None], pairs, quality, count))
    return weights.classification * float(cross_entropy(logits[None], pairs, weights.no_object)) * share


def shown_queries(settled: Settled, most: int = 12) -> list[int]:
    """Queries worth a row of the table: all that were assigned, in the order of the truth, then greedy's, then those
    that would come cheapest."""
    named = [int(q) for q in (*settled.assigned, *settled.greedy) if q >= 0]
    cheapest = settled.total.min(axis=1) if settled.total.shape[1] else np.zeros(len(settled.total))
    others = [int(q) for q in np.argsort(cheapest, kind="stable")]
    needed = list(dict.fromkeys(named))
    return list(dict.fromkeys([*needed, *others]))[: max(most, len(needed))]
