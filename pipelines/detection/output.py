"""What both networks return, and what they can be asked to record. torch only."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

NEVER = -1e4  # a logit whose probability is 0 in every precision, and still a number


@dataclass
class Output:
    """What every decoder layer says, first layer first.

    logits (L, B, Q, K or K + 1). boxes (L, B, Q, 4) cxcywh in [0, 1] of the picture without its padding. masks
    (B, Q, h, w): logits of the last layer, or None without a mask head.
    """

    logits: Tensor
    boxes: Tensor
    masks: Tensor | None = None


@dataclass
class Record:
    """Filled by a forward pass that is given one, a list entry for each decoder layer.

    self_attention: (B, H, Q, Q). cross_attention: (B, H, Q, h, w) on the finest grid of features, padding included.
    """

    self_attention: list[Tensor] = field(default_factory=list)
    cross_attention: list[Tensor] = field(default_factory=list)
