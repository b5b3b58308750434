"""How well the action of every chunk is told: average precision, and the same at an even share of the class.

Per-frame average precision as of THUMOS14 (Shou et al. 2017), calibrated as De Geest et al. (ECCV 2016, "Online action
detection", section 4): a class that is rare has low precision by its rarity alone, so positives count w times, with w
the number of negatives over that of positives.

Letters: N chunks, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FrameScores:
    """Scores in [0, 1]. ap, calibrated: of every class but the background, nan where no chunk has it. mean_ap,
    mean_calibrated: over the classes that some chunk has, nan if there are none. chunks: that were judged."""

    ap: dict[str, float]
    calibrated: dict[str, float]
    mean_ap: float
    mean_calibrated: float
    chunks: int


def average_precision(scores: np.ndarray, positive: np.ndarray, calibrated: bool = False) -> float:
    """Mean over the positives of the precision at each one's rank; nan without positives.

    scores (N,) float, positive (N,) bool. Equal scores have no order: they are taken together, so that a constant
    scores its share of positives (calibrated: 0.5). calibrated: precision is w TP / (w TP + FP).
    ValueError: a score that is not finite, or shapes that differ.
    """
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive, bool)
    if scores.shape != positive.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and positives {positive.shape} must be two rows of the same length")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    count = int(positive.sum())
    if count == 0:
        return math.nan
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # the last place of each score
    true = hits[ends].astype(np.float64)
    false = ends + 1 - true
    weight = (len(scores) - count) / count if calibrated else 1.0
    if weight == 0.0:  # every chunk is positive
        return 1.0
    precision = weight * true / (weight * true + false)
    return float((np.diff(true, prepend=0.0) * precision).sum() / count)


def frame_scores(
    probabilities: np.ndarray, targets: np.ndarray, labels: Sequence[str], ambiguous: int | None = None
) -> FrameScores:
    """Score every chunk of a data set at once.

    probabilities (N, C) float. targets: (N,) class numbers, or (N, C) where 1 means that the chunk has the class.
    labels: C names, background first, which is not scored. ambiguous: a class that is not scored either, and whose
    chunks are left out: those that are marked with it first of all (the authors' rule).
    """
    classes = len(labels)
    probabilities, targets = np.asarray(probabilities), np.asarray(targets)
    if targets.ndim == 1:
        targets = np.eye(classes)[targets.astype(np.int64)] if len(targets) else np.zeros((0, classes))
    if probabilities.shape != targets.shape or targets.shape[1:] != (classes,):
        raise ValueError(f"probabilities {probabilities.shape} and targets {targets.shape} of {classes} classes")
    judged = np.ones(len(targets), bool) if ambiguous is None else targets.argmax(1) != ambiguous
    probabilities, has = probabilities[judged], targets[judged] == 1
    scored = [k for k in range(1, classes) if k != ambiguous]
    ap = {labels[k]: average_precision(probabilities[:, k], has[:, k]) for k in scored}
    calibrated = {labels[k]: average_precision(probabilities[:, k], has[:, k], calibrated=True) for k in scored}
    return FrameScores(ap, calibrated, _mean(ap), _mean(calibrated), int(judged.sum()))


def _mean(values: dict[str, float]) -> float:
    there = [value for value in values.values() if not math.isnan(value)]
    return float(np.mean(there)) if there else math.nan
