"""MTCNN's cascade: image pyramid, P-Net, R-Net, O-Net (Zhang et al. 2016, section II.A), as pure functions.

Letters: H x W the picture, n candidates, k of them chosen. Boxes are float32 xyxy in pixels of the picture. The
conventions that the paper leaves open (where a cell's square is rounded down, where a box's side counts one pixel more)
are those of the authors' Matlab code as facenet-pytorch has them, since the published weights were fitted to them.

`detect` is the fast path. `trace.trace` goes through the same stages and keeps everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import nms

from .config import CascadeOptions, MTCNNConfig
from .contract import Detections
from .mtcnn import MTCNN, ONet, PNet, RNet, normalise
from .sampling import Integral
from .workers import spread

# At most so many candidates of one level, and of one stage, go on: the strongest. A picture of 200 faces has up to 5600
# cells a level above the default threshold, a photo a few hundred; a threshold of 0 would send on every cell, 190,000.
MOST = 1 << 13
# P-Net's two halves take strips of so many pixels and cells, R-Net and O-Net batches of so many pixels: the largest
# tensor is then 1 to 2 MB, which stays in a core's cache and is not given back to the system after every operation.
STEM_PIXELS = 1 << 15
HEADS_CELLS = 1 << 14
CROP_PIXELS = 1 << 14
_CELLS = MTCNNConfig()


@dataclass(frozen=True)
class Level:
    """One level of the pyramid. scale: its pixels per pixel of the picture. height, width: its size in pixels."""

    scale: float
    height: int
    width: int

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of P-Net's map: 3 x 3 convolution, pool by 2 that keeps half squares, two more of 3 x 3."""
        return (self.height - 1) // 2 - 4, (self.width - 1) // 2 - 4


def detect(networks: MTCNN, image: np.ndarray, options: CascadeOptions | None = None) -> Detections:
    """Faces of a picture, largest first.

    image: (H, W, 3) uint8 RGB of any size, any strides. ValueError for anything else.
    """
    options = options or CascadeOptions()
    integral = Integral.of(image)
    boxes = _propose(networks, integral, options)
    boxes = _refine(networks, integral, boxes, options)
    return _output(networks, integral, boxes, options)


def _propose(networks: MTCNN, integral: Integral, options: CascadeOptions) -> np.ndarray:
    """P-Net over the pyramid -> (n, 4) square boxes."""
    levels = pyramid(integral.height, integral.width, options)

    def propose(level: Level, probability: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        cells = admitted(probability, options.thresholds[0])
        boxes, scores = cell_squares(level, cells), probability.reshape(-1)[cells]
        keep = suppress(boxes, scores, options.nms_level)
        return np.column_stack([boxes, scores, offsets.reshape(4, -1)[:, cells].T])[keep]

    found = [propose(level, *maps) for level, maps in zip(levels, scan(networks.pnet, integral, levels), strict=True)]
    boxes, scores, offsets = np.split(np.concatenate([np.zeros((0, 9), np.float32), *found]), [4, 5], axis=1)
    keep = suppress(boxes, scores[:, 0], options.nms[0])[:MOST]
    return to_squares(calibrate(boxes[keep], offsets[keep], border=0))


def _refine(networks: MTCNN, integral: Integral, boxes: np.ndarray, options: CascadeOptions) -> np.ndarray:
    """R-Net on the proposals -> the survivors' square boxes."""
    windows, inside = pixel_windows(boxes, integral.height, integral.width)
    boxes = boxes[inside]
    scores, offsets = look(networks.rnet, integral, windows[inside])
    chosen = np.flatnonzero(scores > options.thresholds[1])
    keep = chosen[suppress(boxes[chosen], scores[chosen], options.nms[1])]
    return to_squares(calibrate(boxes[keep], offsets[keep]))


def _output(networks: MTCNN, integral: Integral, boxes: np.ndarray, options: CascadeOptions) -> Detections:
    """O-Net on what R-Net left -> the faces."""
    windows, inside = pixel_windows(boxes, integral.height, integral.width)
    boxes = boxes[inside]
    scores, offsets, points = look(networks.onet, integral, windows[inside])
    chosen = np.flatnonzero(scores > options.thresholds[2])
    landmarks = place(boxes[chosen], points[chosen])
    boxes, scores = calibrate(boxes[chosen], offsets[chosen]), scores[chosen]
    keep = suppress_contained(boxes, scores, options.nms[2])
    keep = keep[largest_first(boxes[keep])]
    return Detections(boxes[keep], scores[keep], landmarks[keep])


def pyramid(height: int, width: int, options: CascadeOptions) -> list[Level]:
    """Levels from the finest, on which the smallest face fills one cell, to the last that one cell fits into.

    Empty for a picture smaller than the smallest face. ValueError: an option with which there is no end of levels.
    """
    if not 0 < options.factor < 1 or options.min_face < 1:
        raise ValueError(f"no pyramid with factor {options.factor} and smallest face {options.min_face}")
    levels = []
    scale = _CELLS.cell / options.min_face
    side = min(height, width) * scale
    while side >= _CELLS.cell:
        levels.append(Level(scale, int(height * scale + 1), int(width * scale + 1)))
        scale *= options.factor
        side *= options.factor
    return levels


def scan(pnet: PNet, integral: Integral, levels: list[Level]) -> list[tuple[np.ndarray, np.ndarray]]:
    """P-Net's maps of each level: face probability (h, w) and box offsets (4, h, w), float32.

    Done in strips, and in two passes, so that little is computed twice where strips meet.
    """
    device = pnet.conv1.weight.device
    # An odd row or column at the end makes half a square in the pool, which counts.
    pooled = [torch.empty((level.height - 1) // 2, (level.width - 1) // 2, 10) for level in levels]
    maps = [(np.empty(level.cells, np.float32), np.empty((4, *level.cells), np.float32)) for level in levels]

    @torch.inference_mode()
    def stem(task: tuple[int, int, int]) -> None:
        k, first, last = task
        level = levels[k]
        pixels = integral.resized(level.height, level.width, 2 * first, min(2 * last + 2, level.height))
        pooled[k][first:last] = pnet.stem(normalise(torch.from_numpy(pixels).to(device)))

    @torch.inference_mode()
    def heads(task: tuple[int, int, int]) -> None:
        k, first, last = task
        probability, offsets = pnet.heads(pooled[k][first : last + 4].to(device))
        maps[k][0][first:last] = probability.cpu().numpy()
        maps[k][1][:, first:last] = offsets.cpu().numpy()

    tasks = enumerate(levels)
    spread(stem, [(k, *r) for k, level in tasks for r in _strips(len(pooled[k]), 2 * level.width, STEM_PIXELS)])
    tasks = enumerate(levels)
    spread(heads, [(k, *r) for k, level in tasks for r in _strips(*level.cells, HEADS_CELLS)])
    return maps


def _strips(height: int, width: int, most: int) -> Iterator[tuple[int, int]]:
    rows = max(1, most // width)
    for first in range(0, height, rows):
        yield first, min(first + rows, height)


def admitted(probability: np.ndarray, threshold: float, most: int = MOST) -> np.ndarray:
    """Flat indices of the cells at or above the threshold, in reading order; of more than `most` the strongest."""
    flat = probability.reshape(-1)
    cells = np.flatnonzero(flat >= threshold)
    if len(cells) > most:
        cells = np.sort(cells[np.argsort(-flat[cells], kind="stable")[:most]])
    return cells


def cell_squares(level: Level, cells: np.ndarray) -> np.ndarray:
    """The square of the picture behind each cell, (k, 4), rounded down to whole pixels."""
    row, column = np.divmod(cells, level.cells[1])
    corner = np.stack([column, row], 1).astype(np.float32) * np.float32(_CELLS.stride)
    scale = np.float32(level.scale)
    # The authors count pixels from 1, and their facenet port from 0 on one side: hence + 1 and + 12.
    return np.floor(np.concatenate([corner + 1, corner + _CELLS.cell], 1) / scale)


def calibrate(boxes: np.ndarray, offsets: np.ndarray, border: int = 1) -> np.ndarray:
    """Move each edge by its offset times the box's side, in which R-Net and O-Net count one pixel more (`border`)."""
    sides = boxes[:, 2:] - boxes[:, :2] + np.float32(border)
    return boxes + offsets * np.concatenate([sides, sides], 1)


def to_squares(boxes: np.ndarray) -> np.ndarray:
    """The square of the longer side around each box's centre."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longest = sides.max(1, keepdims=True)
    corner = boxes[:, :2] + sides * np.float32(0.5) - longest * np.float32(0.5)
    return np.concatenate([corner, corner + longest], 1)


def pixel_windows(boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The whole pixels of each box that lie in the picture, (n, 4) int64 x0 y0 x1 y1 without the last, and which are
    not empty, (n,) bool. A box of which nothing is left shows the next network nothing, and is dropped by the caller.
    """
    # Pixels are counted from 1 here as well: a box from 1 to 24 is the first 24 pixels.
    whole = np.trunc(boxes).astype(np.int64)
    start = np.maximum(whole[:, :2], 1) - 1
    end = np.minimum(whole[:, 2:], (width, height))
    return np.concatenate([start, end], 1), (end > start).all(1)


def look(network: RNet | ONet, integral: Integral, windows: np.ndarray) -> tuple[np.ndarray, ...]:
    """The network's outputs for the windows, concatenated: probability (n,), offsets (n, 4)[, landmarks (n, 5, 2)]."""
    device = network.conv1.weight.device

    @torch.inference_mode()
    def batch(part: np.ndarray) -> list[np.ndarray]:
        crops = torch.from_numpy(integral.crops(part, network.side))
        return [output.cpu().numpy() for output in network(normalise(crops.to(device)).permute(0, 3, 1, 2))]

    # A batch at least, however empty: the outputs for no crops have the right shapes.
    size = CROP_PIXELS // network.side**2
    outputs = spread(batch, [windows[k : k + size] for k in range(0, max(1, len(windows)), size)])
    return tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True))


def place(boxes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Landmarks as fractions of a box, (n, 5, 2) xy, to pixels of the picture. The box is the one O-Net looked at."""
    sides = boxes[:, None, 2:] - boxes[:, None, :2] + np.float32(1)
    return sides * points + boxes[:, None, :2] - np.float32(1)


def suppress(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Greedy non-maximum suppression: indices that stay, strongest first; overlap is intersection over union."""
    return nms(torch.from_numpy(boxes), torch.from_numpy(np.ascontiguousarray(scores)), threshold).numpy()


def suppress_contained(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """The last suppression: overlap is intersection over the smaller box, so that a part of a face goes as well."""
    order = np.argsort(scores)[::-1]
    keep = []
    while len(order):
        best, order = order[0], order[1:]
        keep.append(best)
        order = order[overlap_smaller(boxes[best], boxes[order]) <= threshold]
    return np.array(keep, np.int64)


def intersection(box: np.ndarray, others: np.ndarray, border: int = 0) -> np.ndarray:
    """Area that `box` (4,) shares with each of `others` (n, 4)."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]) + np.float32(border)
    return np.maximum(sides, 0).prod(1)


def overlap_union(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union, (n,), as torchvision's nms counts it."""
    shared = intersection(box, others)
    return shared / ((box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - shared)


def overlap_smaller(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over the smaller box, (n,). Sides count one pixel more, as in the authors' code."""
    areas = (others[:, 2:] - others[:, :2] + np.float32(1)).prod(1)
    return intersection(box, others, border=1) / np.minimum((box[2:] - box[:2] + np.float32(1)).prod(), areas)


def largest_first(boxes: np.ndarray) -> np.ndarray:
    """Order of the boxes by area. In float64, as facenet-pytorch sorts them."""
    wide = boxes.astype(np.float64)
    return np.argsort(-(wide[:, 2] - wide[:, 0]) * (wide[:, 3] - wide[:, 1]), kind="stable")
