"""The slot map: where each query has looked over a set of pictures (Carion et al. 2020, figure 7). numpy only.

Letters: P pictures, Q queries. Boxes are cxcywh in [0, 1] of their picture.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

CORNER = 0.7  # of each side of a picture that a corner crop keeps
SMALL = 1 / 12  # of the picture's area: boxes below are small
LONG = 1.4  # a box is wide or tall where one side is so many times the other
KEPT = 4  # slot maps in memory: 4 of 100 queries over 60 pictures are half a megabyte


class Shape(IntEnum):
    """The kinds of boxes that the paper's figure tells apart, and large ones that are about square."""

    SMALL = 0
    WIDE = 1
    TALL = 2
    LARGE = 3


@dataclass(frozen=True)
class SlotMap:
    """Boxes of every query on every picture so far.

    boxes: (P, Q, 4) float32. scores: (P, Q) float32 and classes: (P, Q) int64, the likeliest class. wanted: pictures
    that there will be when the map is done.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    wanted: int

    @property
    def pictures(self) -> int:
        return len(self.boxes)

    @property
    def done(self) -> bool:
        return self.pictures >= self.wanted


def views(image: np.ndarray) -> list[np.ndarray]:
    """A picture, its mirror image and its four corners, so that the same things are seen elsewhere: (H, W, 3) uint8."""
    height, width = image.shape[:2]
    h, w = max(1, round(CORNER * height)), max(1, round(CORNER * width))
    crops = [image[y : y + h, x : x + w] for y in (0, height - h) for x in (0, width - w)]
    return [np.ascontiguousarray(one) for one in (image, image[:, ::-1], *crops)]


def shapes(boxes: np.ndarray) -> np.ndarray:
    """(..., 4) boxes -> (...) uint8 of `Shape`. Sides are measured in units of the picture's own."""
    w, h = boxes[..., 2], boxes[..., 3]
    kinds = np.full(w.shape, Shape.LARGE, np.uint8)
    kinds[w > LONG * h] = Shape.WIDE
    kinds[h > LONG * w] = Shape.TALL
    kinds[w * h < SMALL] = Shape.SMALL
    return kinds


def spread(boxes: np.ndarray) -> np.ndarray:
    """(P, Q, 4) -> (Q,): root mean square distance of a query's centres from their mean, in sides of the picture."""
    centres = boxes[..., :2]
    return np.sqrt(((centres - centres.mean(axis=0)) ** 2).sum(axis=-1).mean(axis=0))


def fixed_share(boxes: np.ndarray) -> float:
    """How much of the variance of all centres is between the queries' own mean places, in [0, 1].

    1: a query looks at one place whatever the picture shows. Near 1 / P: it has no place of its own.
    """
    centres = boxes[..., :2].astype(np.float64)
    middle = centres.mean(axis=(0, 1))
    total = ((centres - middle) ** 2).sum(axis=-1).mean()
    between = ((centres.mean(axis=0) - middle) ** 2).sum(axis=-1).mean()
    return float(between / total) if total > 0 else 0.0


def shuffled(boxes: np.ndarray, seed: int = 0) -> np.ndarray:
    """The control: the same boxes, dealt out to the queries at random within each picture."""
    draw = np.random.default_rng(seed)
    return np.stack([one[draw.permutation(len(one))] for one in boxes])


@dataclass(frozen=True)
class Slot:
    """What one query did over the set. answers: pictures on which its score reached the threshold; classes: how often
    it answered with which class, most first. centre: (2,) mean of its centres. shapes: pictures by `Shape`."""

    query: int
    answers: int
    classes: tuple[tuple[int, int], ...]
    centre: np.ndarray
    spread: float
    shapes: tuple[int, int, int, int]


def describe(found: SlotMap, query: int, threshold: float) -> Slot:
    """One query's habits."""
    boxes = found.boxes[:, query]
    sure = found.scores[:, query] >= threshold
    counted = Counter(found.classes[sure, query].tolist()).most_common()
    kinds = np.bincount(shapes(boxes), minlength=len(Shape))
    return Slot(
        query, int(sure.sum()), tuple(counted), boxes[:, :2].mean(axis=0), float(spread(boxes[:, None])[0]),
        tuple(kinds.tolist()),
    )  # fmt: skip


def busiest(found: SlotMap, threshold: float) -> np.ndarray:
    """Queries, those that answered on most pictures first; of equals the surer on the whole: (Q,) int64."""
    return np.lexsort((-found.scores.mean(axis=0), -(found.scores >= threshold).sum(axis=0)))


class Cache:
    """The last few slot maps, by weights; whole ones only."""

    def __init__(self, kept: int = KEPT) -> None:
        self.kept = kept
        self._lock = threading.Lock()
        self._maps: OrderedDict[str, SlotMap] = OrderedDict()

    def get(self, key: str) -> SlotMap | None:
        with self._lock:
            if key in self._maps:
                self._maps.move_to_end(key)
            return self._maps.get(key)

    def put(self, key: str, found: SlotMap) -> None:
        if not found.done:
            return
        with self._lock:
            self._maps[key] = found
            self._maps.move_to_end(key)
            while len(self._maps) > self.kept:
                self._maps.popitem(last=False)
