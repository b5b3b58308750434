"""Boxes: from centre form to corners and back, overlap, generalised overlap.

Boxes are (..., 4) in any unit. cxcywh: centre, width and height. xyxy: left, top, right, bottom.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_corners(cxcywh: Tensor) -> Tensor:
    """cxcywh -> xyxy."""
    centre, half = cxcywh[..., :2], cxcywh[..., 2:] / 2
    return torch.cat((centre - half, centre + half), -1)


def area(xyxy: Tensor) -> Tensor:
    """(...,): width times height, never negative."""
    return (xyxy[..., 2:] - xyxy[..., :2]).clamp(min=0).prod(-1)


def overlaps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and the area of the union of xyxy boxes that broadcast against each other; no area, no overlap."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    common = (high - low).clamp(min=0).prod(-1)
    union = area(a) + area(b) - common
    return common / union.clamp(min=1e-9), union


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019) of xyxy boxes that broadcast: in [-1, 1], also useful without overlap.

    IoU less the share of the smallest common box that neither covers.
    """
    iou, union = overlaps(a, b)
    low = torch.minimum(a[..., :2], b[..., :2])
    high = torch.maximum(a[..., 2:], b[..., 2:])
    hull = (high - low).clamp(min=0).prod(-1)
    return iou - (hull - union) / hull.clamp(min=1e-9)
