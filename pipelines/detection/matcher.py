"""Who predicts what: the assignment of queries to objects with the least total cost (Carion et al. 2020, section 3.1).

Shapes: Q queries, K classes, n objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .boxes import giou, to_corners
from .config import LossWeights, Scoring


@dataclass(frozen=True)
class Costs:
    """(..., Q, n) each: what it would cost that a query answers for an object. The parts are not yet weighted."""

    classification: Tensor
    l1: Tensor
    giou: Tensor
    total: Tensor


def costs(
    logits: Tensor, boxes: Tensor, classes: Tensor, targets: Tensor, weights: LossWeights, scoring: Scoring
) -> Costs:
    """logits (..., Q, K or K + 1) and boxes (..., Q, 4) cxcywh against classes (n,) and targets (n, 4) cxcywh.

    softmax: the classification cost is minus the class's probability. sigmoid: the focal loss if the query said yes
    less that if it said no (Zhu et al. 2021).
    """
    if scoring == "softmax":
        classification = -logits.softmax(-1)[..., classes]
    else:
        p = logits[..., classes].sigmoid()
        yes = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
        no = 0.75 * p**2 * -(1 - p + 1e-8).log()
        classification = yes - no
    l1 = (boxes[..., :, None, :] - targets).abs().sum(-1)
    overlap = -giou(to_corners(boxes)[..., :, None, :], to_corners(targets))
    total = weights.classification * classification + weights.l1 * l1 + weights.giou * overlap
    return Costs(classification, l1, overlap, total)


def assign(total: Tensor) -> tuple[Tensor, Tensor]:
    """(Q, n) costs -> query and object indices of the min(Q, n) pairs with the least sum, by query.

    A cost that is no number (a network that diverged) counts as very large.
    """
    table = np.nan_to_num(total.detach().float().cpu().numpy(), nan=1e9, posinf=1e9, neginf=-1e9)
    rows, columns = linear_sum_assignment(table)
    return torch.from_numpy(rows), torch.from_numpy(columns)
