"""What the networks are trained to do. torch only.

Wang et al. 2021, section 3.4: cross-entropy of the current chunk plus `FUTURE_WEIGHT` times that of the future ones.

Letters: B batch, F future chunks, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FUTURE_WEIGHT = 0.5


@dataclass(frozen=True)
class Loss:
    """Scalars in nats; total is what is minimised."""

    total: Tensor
    current: Tensor
    future: Tensor


def loss(
    logits: tuple[Tensor, Tensor], current: Tensor, future: Tensor, ambiguous: int | None = None, smoothing: float = 0.0
) -> Loss:
    """logits: (B, C) and (B, F, C), as the networks return them.

    current (B,) and future (B, F): int64 class numbers, or (B, C) and (B, F, C) weights of the classes (the authors'
    targets, of which some chunks have several). Negative numbers, and weights that are all 0, are not counted.
    ambiguous: a class that takes no part, neither in the softmax nor with the chunks that are marked so (21 of
    THUMOS14). smoothing: of the targets.
    """
    now, later = logits
    parts = (
        cross_entropy(now, current, ambiguous, smoothing),
        cross_entropy(later.flatten(0, 1), future.flatten(0, 1), ambiguous, smoothing),
    )
    return Loss(parts[0] + FUTURE_WEIGHT * parts[1], *parts)


def cross_entropy(logits: Tensor, targets: Tensor, ambiguous: int | None = None, smoothing: float = 0.0) -> Tensor:
    """Mean over the rows that count of - sum_c target_c log softmax(logits)_c; 0 where none counts.

    logits (N, C); targets (N,) int64 or (N, C).
    """
    classes = logits.shape[1]
    if targets.ndim == 1:
        counted = targets >= 0
        wanted = F.one_hot(targets.clamp(min=0), classes).to(logits.dtype)
    else:
        wanted = targets.to(logits.dtype)
        counted = wanted.sum(1) > 0
    if ambiguous is not None:
        counted = counted & (wanted[:, ambiguous] != 1)
        kept = [k for k in range(classes) if k != ambiguous]
        logits, wanted = logits[:, kept], wanted[:, kept]
    if smoothing:
        wanted = (1 - smoothing) * wanted + smoothing * wanted.sum(1, keepdim=True) / wanted.shape[1]
    rows = -(wanted * logits.log_softmax(1)).sum(1)
    return torch.where(counted, rows, 0.0).sum() / counted.sum().clamp(min=1)
