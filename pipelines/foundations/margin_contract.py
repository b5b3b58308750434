"""What a training under a margin hands to the page: numpy and Python types only.

C classes, D feature dimensions, N test pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .config import MarginRecipe

TESTED = 497  # pictures, the last of scikit-learn's 1797; most are by writers who wrote none of the others


@dataclass(frozen=True)
class Moment:
    """What a training has come to. features (N, D), labels (N,) of all test pictures; weights (C, D), bias (C,) or None
    of the loss; accuracy of the known digits; known, unknown: equal error rates, NaN where there are no pairs; centres
    (C, D): of center loss alone."""

    recipe: MarginRecipe
    step: int
    losses: list[float]
    features: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    bias: np.ndarray | None
    accuracy: float
    known: float
    unknown: float
    centres: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return self.features.nbytes + self.labels.nbytes + self.weights.nbytes + 8 * len(self.losses)


@dataclass(frozen=True)
class Probe:
    """One picture under a loss. angles (C,) to the weights, in degrees; plain, told: logits (C,) without and with the
    margin; loss in nats; gradient, unmoved (D,): of the loss for the feature, with the margin and without."""

    label: int
    angles: np.ndarray
    plain: np.ndarray
    told: np.ndarray
    loss: float
    gradient: np.ndarray
    unmoved: np.ndarray
