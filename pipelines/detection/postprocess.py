"""From a network's raw prediction of one picture to objects: scores, boxes in pixels, suppression, masks. numpy only.

Letters: Q queries, K classes, n objects, H and W of the picture, h and w of the mask head's grid. Every function takes
zero objects.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import cv2
import numpy as np

from .contract import Prediction

TOP = 100  # objects of one picture at most, as transformers keeps of sigmoid scores and as COCO scores


@dataclass(frozen=True)
class Objects:
    """boxes: (n, 4) float32 xyxy pixels within the picture. scores: (n,) float32. classes: (n,) int64 indices of the
    class head's outputs. queries: (n,) int64. Best first."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    queries: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, kept: np.ndarray) -> Objects:
        """Those of an index array or a bool mask."""
        return Objects(self.boxes[kept], self.scores[kept], self.classes[kept], self.queries[kept])


def objects(
    prediction: Prediction, size: tuple[int, int], threshold: float = 0.5, classes: Collection[int] | None = None,
    nms: float | None = None, top: int = TOP,
) -> Objects:  # fmt: skip
    """The objects of a prediction on a picture of (height, width).

    threshold: least score. classes: indices of the classes to keep, None for all. nms: overlap above which the weaker
    of two boxes of a class goes. Boxes without area in the picture, and scores or boxes that are not finite, go too.
    """
    scores, labels, queries = best(prediction, top)
    found = Objects(to_pixels(prediction.boxes[queries], size), scores, labels, queries)
    with np.errstate(invalid="ignore"):
        areas = (found.boxes[:, 2] - found.boxes[:, 0]) * (found.boxes[:, 3] - found.boxes[:, 1])
        keep = (found.scores >= threshold) & (areas > 0)
    if classes is not None:
        keep &= np.isin(found.classes, list(classes))
    found = found.take(keep)
    return found if nms is None else found.take(suppress(found.boxes, found.scores, found.classes, nms))


def best(prediction: Prediction, top: int = TOP) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """scores (n,) float32, class indices (n,) and queries (n,) int64, best first.

    softmax: each query's best class, "no object" left out of the choice but not of the sum. sigmoid: the best of all
    pairs of query and class, so that a query may stand for two classes (Zhu et al. 2021, as transformers does).
    """
    scores = class_scores(prediction)
    if prediction.scoring == "softmax":
        labels, queries = scores.argmax(axis=1), np.arange(len(scores))
        values = scores[queries, labels]
    else:
        values = scores.reshape(-1)
        queries, labels = np.divmod(np.arange(values.size), scores.shape[1])
    order = np.argsort(-values, kind="stable")[:top]  # puts what is not a number last
    return values[order], labels[order].astype(np.int64), queries[order].astype(np.int64)


def class_scores(prediction: Prediction) -> np.ndarray:
    """(Q, K) float32 in [0, 1]: the score of every class for every query, "no object" left out."""
    logits = prediction.logits.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if prediction.scoring == "sigmoid":
            return 1 / (1 + np.exp(-logits))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (powers / powers.sum(axis=1, keepdims=True))[:, :-1]


def to_pixels(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, 4) cxcywh in [0, 1] -> (n, 4) float32 xyxy in pixels of a (height, width) picture, clipped to it."""
    height, width = size
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    scale = np.array([width, height, width, height], np.float32)
    corners = np.concatenate([centre - half, centre + half], axis=1).astype(np.float32) * scale
    return np.clip(corners, 0, scale)


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) float32 intersection over union of (n, 4) and (m, 4) xyxy boxes; 0 where both have no area."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0).astype(np.float32)


def suppress(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, overlap: float) -> np.ndarray:
    """Indices that greedy non-maximum suppression keeps, class by class, best first: (m,) int64."""
    order = np.argsort(-scores, kind="stable")
    close = (overlaps(boxes, boxes) > overlap) & (classes[:, None] == classes[None])
    gone = np.zeros(len(boxes), bool)
    kept = []
    for i in order:
        if not gone[i]:
            kept.append(i)
            gone |= close[i]
    return np.array(kept, np.int64)


def masks(prediction: Prediction, queries: np.ndarray, size: tuple[int, int], threshold: float = 0.5) -> np.ndarray:
    """(n, height, width) bool of these queries. ValueError: the prediction has no masks."""
    if prediction.masks is None:
        raise ValueError("these weights have no mask head")
    found = np.zeros((len(queries), *size), bool)
    for i, query in enumerate(queries):
        found[i] = mask_probability(prediction.masks[query], size) >= threshold
    return found


def mask_probability(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) logits -> (height, width) float32 probabilities, bilinear between the centres of pixels.

    The sigmoid comes first and the scaling after it, as in transformers.
    """
    height, width = size
    with np.errstate(over="ignore"):
        probability = 1 / (1 + np.exp(-logits.astype(np.float32)))
    return cv2.resize(probability, (width, height), interpolation=cv2.INTER_LINEAR)
