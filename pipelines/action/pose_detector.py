"""Find people: BlazePose's detector, a single-shot detector of faces that also tells where the body is.

Bazarevsky et al. 2020, "BlazePose", section 3.2, with anchors and blended suppression of "BlazeFace" (Bazarevsky et al.
2019, section 3.3 and 4): the face is the part of a person that is seldom hidden and easily told, and two points beside
it, the hips' middle and one on the circle around the whole person, say where the rest is. The numbers are those of the
graph pose_detection_cpu that MediaPipe 0.10.14 ships. Numpy and OpenCV.

Letters: A = 2254 anchors, N detections.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from .pose_network import Network
from .pose_region import Region, between, whole

SIDE = 224
# (cells a side, anchors a cell): strides 8, 16 and three layers of 32, two anchors of one size and shape in each.
GRIDS = ((28, 2), (14, 2), (7, 6))
SURE = 0.5  # score from which something counts
OVERLAP = 0.3  # from which two boxes are one face
BOXES, SCORES = 0, 1  # the network's outputs


@dataclass(frozen=True)
class Person:
    """score: in [0.5, 1]. region: the whole person. face: (4,) x0, y0, x1, y1 in pixels of the picture."""

    score: float
    region: Region
    face: np.ndarray


@cache
def anchors() -> np.ndarray:
    """(A, 2) float32 x, y of the anchors' centres in shares of the input; their size is 1 (fixed_anchor_size)."""
    rows = []
    for cells, count in GRIDS:
        centres = (np.arange(cells, dtype=np.float32) + 0.5) / cells
        down, across = np.meshgrid(centres, centres, indexing="ij")
        rows.append(np.repeat(np.stack([across, down], axis=-1).reshape(-1, 2), count, axis=0))
    return np.concatenate(rows)


def decode(boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The network's outputs -> what is sure enough: scores (N,), and (N, 12) as x0, y0, x1, y1 of the face and four
    points x, y, all in shares of the input.

    boxes: (A, 12) centre, width and height of the face and four points, in input pixels from the anchor. scores: (A,)
    or (A, 1) before the sigmoid.
    """
    logits = np.clip(np.asarray(scores, np.float32).reshape(-1), -100, 100)
    keep = np.flatnonzero(logits > np.log(SURE / (1 - SURE)))
    found = np.array(boxes, np.float32).reshape(-1, 12)[keep] / SIDE
    centre = anchors()[keep]
    found[:, :2] += centre
    found[:, 4:] += np.tile(centre, 4)
    half = found[:, 2:4] / 2
    found[:, 2:4] = found[:, :2] + half
    found[:, :2] -= half
    return 1.0 / (1.0 + np.exp(-logits[keep])), found


def blend(scores: np.ndarray, found: np.ndarray, overlap: float = OVERLAP) -> tuple[np.ndarray, np.ndarray]:
    """One row for each face, surest first: where boxes overlap by more than this, their mean weighted by score.

    BlazeFace section 4: a mean trembles less from frame to frame than the surest box alone. (N,), (N, 12) -> the same.
    """
    order = np.argsort(-scores, kind="stable")
    kept_scores, kept = [], []
    while order.size:
        same = _overlaps(found[order[0], :4], found[order, :4]) > overlap
        same[0] = True  # a box without an area overlaps with nothing, not even itself
        group, weights = order[same], scores[order[same]]
        kept_scores.append(scores[order[0]])
        kept.append((weights[:, None] * found[group]).sum(axis=0) / weights.sum())
        order = order[~same]
    return np.array(kept_scores, np.float32), np.array(kept, np.float32).reshape(-1, 12)


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(4,), (N, 4) -> (N,): intersection over union; 0 for a box of no area."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    common = np.clip(high - low, 0, None).prod(axis=1)
    union = np.prod(box[2:] - box[:2]) + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def detect(network: Network, picture: np.ndarray) -> list[Person]:
    """People in a (H, W, 3) uint8 RGB picture, surest first; an empty list where nobody is."""
    height, width = picture.shape[:2]
    frame = whole(height, width)
    pixels = frame.crop(picture, SIDE, cv2.BORDER_CONSTANT)  # black around
    boxes, scores = network(pixels * np.float32(2 / 255) - np.float32(1), (BOXES, SCORES))
    people = []
    for score, row in zip(*blend(*decode(boxes, scores)), strict=True):
        points = frame.to_picture(row.reshape(6, 2).astype(np.float64))
        region = between(points[2], points[3])  # hips' middle and rim; the other two are of the upper body alone
        if region.usable(height, width):
            people.append(Person(float(score), region, points[:2].reshape(4)))
    return people
