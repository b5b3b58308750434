"""Error rates of face verification from lists of similarities. numpy only, no picture and no network.

A pair is accepted as one person when its similarity is at or above the threshold. A genuine pair shows one person, an
impostor pair two. FAR: the share of impostor pairs accepted; FRR: the share of genuine pairs rejected.

Shapes: G genuine pairs, M impostor pairs, N pairs of both kinds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rates:
    """far, frr in [0, 1] at `threshold`."""

    threshold: float
    far: float
    frr: float


@dataclass(frozen=True)
class TenFold:
    """accuracy: mean over the folds, std: between them; threshold: mean of the folds' choices."""

    accuracy: float
    std: float
    threshold: float


def rates(genuine: np.ndarray, impostor: np.ndarray, threshold: float) -> Rates:
    """genuine: (G,), impostor: (M,), similarities; neither may be empty."""
    genuine, impostor = _checked(genuine), _checked(impostor)
    return Rates(float(threshold), float((impostor >= threshold).mean()), float((genuine < threshold).mean()))


def roc(genuine: np.ndarray, impostor: np.ndarray) -> list[Rates]:
    """The rates at every similarity that occurs, rising, and above all of them: where the curve can change."""
    genuine, impostor = np.sort(_checked(genuine)), np.sort(_checked(impostor))
    steps = np.unique(np.concatenate([genuine, impostor]))
    steps = np.append(steps, np.nextafter(steps[-1], np.inf))
    far = 1 - np.searchsorted(impostor, steps, side="left") / len(impostor)
    frr = np.searchsorted(genuine, steps, side="left") / len(genuine)
    return [Rates(float(t), float(a), float(r)) for t, a, r in zip(steps, far, frr, strict=True)]


def equal_error_rate(genuine: np.ndarray, impostor: np.ndarray) -> tuple[float, float]:
    """(rate, threshold) where FAR and FRR are closest; the rate is the mean of the two."""
    best = min(roc(genuine, impostor), key=lambda point: (abs(point.far - point.frr), point.far + point.frr))
    return (best.far + best.frr) / 2, best.threshold


def threshold_for_far(impostor: np.ndarray, far: float) -> float:
    """The lowest threshold at which at most this share of the impostor pairs is accepted."""
    scores = np.sort(_checked(impostor))[::-1]
    allowed = int(np.floor(far * len(scores) + 1e-9))
    # Just above the first pair that must be refused: pairs of the same similarity fall together.
    return -np.inf if allowed >= len(scores) else float(np.nextafter(scores[allowed], np.inf))


def best_threshold(similarity: np.ndarray, same: np.ndarray) -> float:
    """The threshold with the most right verdicts, in the middle of the gap where that is reached first.

    similarity: (N,), same: (N,) bool.
    """
    order = np.argsort(similarity, kind="stable")
    scores, labels = _checked(similarity)[order], np.asarray(same, bool)[order]
    # Threshold before position i: the genuine from i on and the impostors before i are right.
    right = np.concatenate([[0], np.cumsum(~labels)]) + np.concatenate([np.cumsum(labels[::-1])[::-1], [0]])
    distinct = np.concatenate([[True], scores[1:] > scores[:-1], [True]])
    place = int(np.argmax(np.where(distinct, right, -1)))
    if place == 0:
        return float(scores[0])
    if place == len(scores):
        return float(np.nextafter(scores[-1], np.inf))
    return float((scores[place - 1] + scores[place]) / 2)


def ten_fold(similarity: np.ndarray, same: np.ndarray, folds: int = 10) -> TenFold:
    """LFW's protocol (Huang et al. 2007): each tenth is judged with the threshold that is best on the other nine.

    similarity: (N,), same: (N,) bool, in the order of pairs.txt, whose folds are consecutive.
    """
    parts = np.array_split(np.arange(len(similarity)), folds)
    similarity, same = _checked(similarity), np.asarray(same, bool)
    accuracies, thresholds = [], []
    for part in parts:
        others = np.setdiff1d(np.arange(len(similarity)), part)
        threshold = best_threshold(similarity[others], same[others])
        accuracies.append(((similarity[part] >= threshold) == same[part]).mean())
        thresholds.append(threshold)
    return TenFold(float(np.mean(accuracies)), float(np.std(accuracies)), float(np.mean(thresholds)))


def _checked(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
        raise ValueError("a list of pairs must hold at least one similarity, and finite ones only")
    return scores
