"""MTCNN's cascade with everything kept: the same stages as `cascade.detect`, and what became of every candidate.

Letters: n candidates of a stage, h x w cells of a level's map. Boxes are float32 xyxy in pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from .cascade import (
    MOST,
    Level,
    admitted,
    calibrate,
    cell_squares,
    largest_first,
    look,
    overlap_smaller,
    overlap_union,
    pixel_windows,
    place,
    pyramid,
    scan,
    suppress,
    suppress_contained,
    to_squares,
)
from .config import CascadeOptions
from .contract import Detections
from .mtcnn import MTCNN
from .sampling import Integral

Look = Callable[[np.ndarray], tuple[np.ndarray, ...]]  # windows (n, 4) -> scores, offsets, and O-Net's landmarks


class Fate(IntEnum):
    """What became of a candidate in its stage."""

    KEPT = 0
    BELOW = 1  # score not above the stage's threshold
    SAME_LEVEL = 2  # overlaps a stronger candidate of the same pyramid level
    SUPPRESSED = 3  # overlaps a stronger candidate of the stage
    OUTSIDE = 4  # no pixel of its box lies in the picture
    CROWDED = 5  # the stage takes only the strongest `cascade.MOST`


@dataclass(frozen=True)
class TracedLevel:
    """One pyramid level. probability: (h, w) float32, P-Net's map. offsets: (4, h, w) float32.

    left_out: cells above the threshold that were not taken, because the level had more than `cascade.MOST`.
    """

    level: Level
    probability: np.ndarray
    offsets: np.ndarray
    left_out: int


@dataclass(frozen=True)
class Candidates:
    """All candidates of one stage. P-Net's are the cells at or above its threshold; the maps have the others.

    boxes: (n, 4) what the network looked at: a cell's square, or the square that the stage before handed on.
    windows: (n, 4) int64 x0 y0 x1 y1, its whole pixels within the picture, the last excluded.
    scores: (n,) float32; nan for one outside the picture, which no network saw.
    offsets: (n, 4) float32, the network's correction, in units of the box's side.
    calibrated: (n, 4) the corrected box: squared for the next stage, as it is for O-Net.
    parents: (n,) index in the stage before; P-Net: index of the level.
    cells: (n,) P-Net only: flat index in the level's map, else -1.
    fates: (n,) uint8 of `Fate`. by: (n,) index of the candidate that suppressed it, or -1. overlaps: (n,) with it.
    points: (n, 5, 2) float32 xy as fractions of the box, O-Net only, else (n, 0, 2).
    """

    boxes: np.ndarray
    windows: np.ndarray
    scores: np.ndarray
    offsets: np.ndarray
    calibrated: np.ndarray
    parents: np.ndarray
    cells: np.ndarray
    fates: np.ndarray
    by: np.ndarray
    overlaps: np.ndarray
    points: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def kept(self) -> np.ndarray:
        """Indices of the survivors."""
        return np.flatnonzero(self.fates == Fate.KEPT)


@dataclass(frozen=True)
class CascadeTrace:
    """A whole run. faces are `cascade.detect`'s; face_ids[i] is the index in `output` of face i."""

    image: np.ndarray
    options: CascadeOptions
    levels: tuple[TracedLevel, ...]
    proposals: Candidates
    refined: Candidates
    output: Candidates
    faces: Detections
    face_ids: np.ndarray

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        stages = (self.proposals, self.refined, self.output)
        maps = sum(level.probability.nbytes + level.offsets.nbytes for level in self.levels)
        return self.image.nbytes + maps + sum(part.nbytes for stage in stages for part in vars(stage).values())


def trace(networks: MTCNN, image: np.ndarray, options: CascadeOptions | None = None) -> CascadeTrace:
    """Run the cascade over a picture, (H, W, 3) uint8 RGB, and keep everything. ValueError as for `detect`."""
    options = options or CascadeOptions()
    integral = Integral.of(image)
    levels = pyramid(integral.height, integral.width, options)
    maps = scan(networks.pnet, integral, levels)
    return follow(
        image, options, levels, maps,
        lambda windows: look(networks.rnet, integral, windows), lambda windows: look(networks.onet, integral, windows),
    )  # fmt: skip


def follow(
    image: np.ndarray,
    options: CascadeOptions,
    levels: list[Level],
    maps: list[tuple[np.ndarray, np.ndarray]],
    look_refine: Look,
    look_output: Look,
) -> CascadeTrace:
    """The run from P-Net's maps on. The two networks are passed as functions, so that answers can be used again."""
    size = image.shape[:2]
    traced, proposals, keep = _proposals(levels, maps, options, size)
    refined, keep = _refined(proposals.calibrated[keep], keep, look_refine, options, size)
    output, keep = _output(refined.calibrated[keep], keep, look_output, options, size)
    ids = keep[largest_first(output.calibrated[keep])]
    faces = Detections(output.calibrated[ids], output.scores[ids], place(output.boxes[ids], output.points[ids]))
    return CascadeTrace(image, options, traced, proposals, refined, output, faces, ids)


# Each stage returns its candidates and the survivors' indices, strongest first: the order in which they are handed on.


def _proposals(
    levels: list[Level], maps: list[tuple[np.ndarray, np.ndarray]], options: CascadeOptions, size: tuple[int, int]
) -> tuple[tuple[TracedLevel, ...], Candidates, np.ndarray]:
    threshold = options.thresholds[0]
    traced, found, survivors, start = [], [_Ledger.empty()], [np.zeros(0, np.int64)], 0
    for k, (level, (probability, offsets)) in enumerate(zip(levels, maps, strict=True)):
        cells = admitted(probability, threshold)
        left_out = int((probability >= threshold).sum()) - len(cells)
        traced.append(TracedLevel(level, probability, offsets, left_out))
        scores = probability.reshape(-1)[cells]
        ledger = _Ledger(cell_squares(level, cells), scores, offsets.reshape(4, -1)[:, cells].T, cells, k)
        keep = suppress(ledger.boxes, scores, options.nms_level)
        ledger.strike(np.arange(len(cells)), keep, options.nms_level, Fate.SAME_LEVEL, overlap_union)
        ledger.by[ledger.by >= 0] += start
        found.append(ledger)
        survivors.append(keep + start)
        start += len(cells)
    whole = _Ledger.joined(found)
    rest = np.concatenate(survivors)
    keep = rest[suppress(whole.boxes[rest], whole.scores[rest], options.nms[0])]
    whole.strike(rest, keep, options.nms[0], Fate.SUPPRESSED, overlap_union)
    whole.fates[keep[MOST:]] = Fate.CROWDED
    calibrated = to_squares(calibrate(whole.boxes, whole.offsets, border=0))
    points = np.zeros((len(whole.boxes), 0, 2), np.float32)
    return tuple(traced), whole.candidates(size, calibrated, points), keep[:MOST]


def _refined(
    boxes: np.ndarray, parents: np.ndarray, see: Look, options: CascadeOptions, size: tuple[int, int]
) -> tuple[Candidates, np.ndarray]:
    ledger, _ = _seen(boxes, parents, see, size)
    chosen = ledger.above(options.thresholds[1])
    keep = chosen[suppress(boxes[chosen], ledger.scores[chosen], options.nms[1])]
    ledger.strike(chosen, keep, options.nms[1], Fate.SUPPRESSED, overlap_union)
    points = np.zeros((len(boxes), 0, 2), np.float32)
    return ledger.candidates(size, to_squares(calibrate(boxes, ledger.offsets)), points), keep


def _output(
    boxes: np.ndarray, parents: np.ndarray, see: Look, options: CascadeOptions, size: tuple[int, int]
) -> tuple[Candidates, np.ndarray]:
    ledger, points = _seen(boxes, parents, see, size)
    chosen = ledger.above(options.thresholds[2])
    calibrated = calibrate(boxes, ledger.offsets)
    keep = chosen[suppress_contained(calibrated[chosen], ledger.scores[chosen], options.nms[2])]
    ledger.strike(chosen, keep, options.nms[2], Fate.SUPPRESSED, overlap_smaller, calibrated)
    return ledger.candidates(size, calibrated, points[0]), keep


def _seen(boxes: np.ndarray, parents: np.ndarray, see: Look, size: tuple[int, int]) -> tuple[_Ledger, list[np.ndarray]]:
    """Show the network what lies in the picture. Returns the ledger and any outputs beyond scores and offsets."""
    windows, inside = pixel_windows(boxes, *size)
    scores, offsets, *more = see(windows[inside])
    columns = [np.zeros((len(boxes), *part.shape[1:]), np.float32) for part in (scores, offsets, *more)]
    columns[0][:] = np.nan
    for column, part in zip(columns, (scores, offsets, *more), strict=True):
        column[inside] = part
    ledger = _Ledger(boxes, columns[0], columns[1], np.full(len(boxes), -1), parents)
    ledger.fates[~inside] = Fate.OUTSIDE
    return ledger, columns[2:]


class _Ledger:
    """Columns of `Candidates` while a stage is being written down."""

    def __init__(
        self, boxes: np.ndarray, scores: np.ndarray, offsets: np.ndarray, cells: np.ndarray, parents: np.ndarray | int
    ) -> None:
        self.boxes, self.scores, self.offsets, self.cells = boxes, scores, offsets, cells
        self.parents = np.broadcast_to(np.asarray(parents, np.int64), len(boxes)).copy()
        self.fates = np.zeros(len(boxes), np.uint8)
        self.by = np.full(len(boxes), -1, np.int64)
        self.overlaps = np.zeros(len(boxes), np.float32)

    @staticmethod
    def empty() -> _Ledger:
        none = np.zeros((0, 4), np.float32)
        return _Ledger(none, none[:, 0], none, np.zeros(0, np.int64), 0)

    @staticmethod
    def joined(parts: list[_Ledger]) -> _Ledger:
        whole = _Ledger.empty()
        for name in vars(whole):
            setattr(whole, name, np.concatenate([getattr(part, name) for part in parts]))
        return whole

    def above(self, threshold: float) -> np.ndarray:
        """Indices of those seen with a score above the threshold; the others are written off as below it."""
        seen = self.fates == Fate.KEPT
        passed = seen & (self.scores > threshold)
        self.fates[seen & ~passed] = Fate.BELOW
        return np.flatnonzero(passed)

    def strike(
        self, among: np.ndarray, keep: np.ndarray, threshold: float, fate: Fate,
        overlap: Callable[[np.ndarray, np.ndarray], np.ndarray], boxes: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Write down who suppressed whom: for each of `among` not in `keep` the strongest kept one that overlaps it."""
        boxes = self.boxes if boxes is None else boxes
        left = np.setdiff1d(among, keep)
        self.fates[left] = fate
        for k in keep:  # strongest first, which is the order in which suppression itself goes
            if not len(left):
                break
            shared = overlap(boxes[k], boxes[left])
            hit = shared > threshold
            self.by[left[hit]], self.overlaps[left[hit]] = k, shared[hit]
            left = left[~hit]

    def candidates(self, size: tuple[int, int], calibrated: np.ndarray, points: np.ndarray) -> Candidates:
        windows, _ = pixel_windows(self.boxes, *size)
        return Candidates(
            self.boxes, windows, self.scores, self.offsets, calibrated, self.parents, self.cells, self.fates, self.by,
            self.overlaps, points,
        )  # fmt: skip
