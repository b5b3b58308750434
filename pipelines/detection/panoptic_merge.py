"""Masks that overlap -> one map in which every pixel belongs to one segment or none. numpy only.

Carion et al. 2020, section 4.4: every pixel goes to the mask that claims it most; masks of the same stuff are one
segment; segments of a few pixels are dropped. The claims and the overlap rule are transformers'
`post_process_panoptic_segmentation`; dropping what is small, and sharing out its pixels, is the authors'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .contract import Prediction, Segment
from .labels import Category
from .postprocess import mask_probability

MASK_THRESHOLD = 0.5
OVERLAP = 0.8  # least share of a mask that must be left when stronger masks have taken theirs
SMALL = 4  # pixels; segments up to this size are dropped


def merge(
    prediction: Prediction, size: tuple[int, int], categories: Mapping[int, Category], threshold: float = 0.5
) -> tuple[np.ndarray, tuple[Segment, ...]]:
    """(height, width) int32 map of segment ids, 0 where none, and the segments with ids from 1 in order of queries.

    prediction: with masks, scored by softmax. categories: class index -> category; other classes are left out.
    threshold: least score of a query that takes part. A segment of merged stuff has the score of its surest part.
    ValueError: the prediction has no masks.
    """
    if prediction.masks is None:
        raise ValueError("these weights have no mask head")
    scores, labels = _whole(prediction)
    known = np.isin(labels, list(categories))  # "no object" is never a category
    kept = [int(q) for q in np.flatnonzero(known & (scores > threshold))]
    while True:
        winner, areas, claimed = _compete(prediction.masks, kept, scores, size)
        solid = [i for i in range(len(kept)) if areas[i] > 0 and claimed[i] > 0 and areas[i] / claimed[i] > OVERLAP]
        groups = _group(solid, [int(labels[q]) for q in kept], categories)
        small = {i for members in groups for i in members if sum(areas[j] for j in members) <= SMALL}
        if not small:
            break
        kept = [q for i, q in enumerate(kept) if i not in small]
    ids = np.zeros(len(kept) + 1, np.int32)  # the last entry is that of pixels without a winner
    segments = []
    for number, members in enumerate(groups, start=1):
        ids[members] = number
        category = categories[int(labels[kept[members[0]]])]
        sureness = max(float(scores[kept[i]]) for i in members)
        area = int(sum(areas[i] for i in members))
        segments.append(Segment(number, category.name, category.id, category.thing, sureness, area))
    return ids[winner], tuple(segments)


def _whole(prediction: Prediction) -> tuple[np.ndarray, np.ndarray]:
    """Score and class of each query where "no object", the last class, may win: (Q,), (Q,)."""
    logits = prediction.logits.astype(np.float32)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    return shares.max(axis=1), shares.argmax(axis=1)


def _compete(
    masks: np.ndarray, kept: Sequence[int], scores: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every pixel to the mask with the largest probability times score, one mask in memory at a time.

    Returns (height, width) int32 positions in `kept`, -1 without any; the pixels each won; the pixels each claimed.
    """
    winner, most = np.full(size, -1, np.int32), np.full(size, -1, np.float32)
    claimed = np.zeros(len(kept), np.int64)
    for i, query in enumerate(kept):
        claim = mask_probability(masks[query], size) * scores[query]
        claimed[i] = np.count_nonzero(claim >= MASK_THRESHOLD)
        stronger = claim > most
        winner[stronger], most[stronger] = i, claim[stronger]
    won = np.bincount(winner[winner >= 0], minlength=len(kept))
    return winner, won, claimed


def _group(solid: Sequence[int], classes: Sequence[int], categories: Mapping[int, Category]) -> list[list[int]]:
    """Positions that make one segment: each thing by itself, all of one kind of stuff together."""
    groups: list[list[int]] = []
    stuff: dict[int, list[int]] = {}
    for i in solid:
        if categories[classes[i]].thing:
            groups.append([i])
        elif classes[i] in stuff:
            stuff[classes[i]].append(i)
        else:
            groups.append(stuff.setdefault(classes[i], [i]))
    return groups
