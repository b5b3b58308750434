"""A second, dense head for training only: every cell of the encoder learns to name and box the object it lies in.

One query an object is a thin signal for the encoder; many cells an object is a thick one (Zong et al. 2023, "Co-DETR").
Cells are chosen by how well they already score and box an object, as in Feng et al. 2021, "TOOD".

Shapes: B batch, S cells, D width, K classes, n objects (most of a picture of the batch).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .boxes import giou, overlaps, to_corners
from .criterion import Target
from .deformable import Memory

CHOSEN = 9  # cells an object
REACH = 4.0  # distances are predicted in units of this many cells


class DenseHead(nn.Module):
    """Class logits and a box for every cell of the encoder's output."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.classes = nn.Linear(width, classes)
        self.hidden = nn.Linear(width, width)
        self.distances = nn.Linear(width, 4)
        nn.init.constant_(self.classes.bias, -4.6)
        nn.init.zeros_(self.distances.weight)
        nn.init.constant_(self.distances.bias, -0.5)

    def forward(self, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, S, K), boxes (B, S, 4) xyxy in [0, 1], and the cells' centres (S, 2)."""
        centres, unit = _cells(memory)
        reach = F.softplus(self.distances(F.relu(self.hidden(memory.cells)))) * REACH * unit.repeat(1, 2)
        boxes = torch.cat((centres - reach[..., :2], centres + reach[..., 2:]), -1)
        return self.classes(memory.cells), boxes, centres


def _cells(memory: Memory) -> tuple[Tensor, Tensor]:
    """Centre and size of every cell, (S, 2) each, as shares of the canvas."""
    centres, units = [], []
    for h, w in memory.shapes:
        y, x = (torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w
        centres.append(torch.stack((x.expand(h, w), y[:, None].expand(h, w)), -1).view(-1, 2))
        units.append(torch.tensor([[1 / w, 1 / h]]).expand(h * w, 2))
    return torch.cat(centres).to(memory.cells.device), torch.cat(units).to(memory.cells.device)


def dense_loss(logits: Tensor, boxes: Tensor, centres: Tensor, targets: Sequence[Target]) -> Tensor:
    """Classification towards the quality of the chosen cells, and generalised IoU of their boxes."""
    wanted = torch.zeros_like(logits)
    regression, total = logits.new_zeros(()), 0.0
    for b, target in enumerate(targets):
        if not len(target.classes):
            continue
        cells, objects, quality = _choose(logits[b].detach(), boxes[b].detach(), centres, target)
        wanted[b, cells, target.classes[objects]] = quality
        corners = to_corners(target.boxes[objects])
        regression = regression + ((1 - giou(boxes[b, cells], corners)) * quality).sum()
        total += float(quality.sum())
    p = logits.detach().sigmoid()
    weight = torch.where(wanted > 0, wanted, 0.75 * p**2)
    classification = (F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * weight).sum()
    return (classification + 2.0 * regression) / max(total, 1.0)


def _choose(logits: Tensor, boxes: Tensor, centres: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor]:
    """Cells, the object of each, and what each should score, for one picture: at most CHOSEN cells an object, each cell
    for the object that it boxes best."""
    corners = to_corners(target.boxes)
    iou = overlaps(corners[:, None], boxes[None])[0]  # (n, S)
    inside = ((centres > corners[:, None, :2]) & (centres < corners[:, None, 2:])).all(-1)
    middle = (centres - target.boxes[:, None, :2]).norm(dim=-1)
    inside |= middle == middle.amin(1, keepdim=True)  # an object smaller than a cell has the nearest one
    fit = logits.sigmoid().T[target.classes].sqrt() * (iou + 1e-3) ** 3 * inside
    best, cells = fit.topk(min(CHOSEN, fit.shape[1]), 1)
    table = torch.zeros_like(fit).scatter_(1, cells, best)
    keep, owner = table.max(0)
    cells = (keep > 0).nonzero()[:, 0]
    objects = owner[cells]
    share = table[objects, cells] / best[objects, 0].clamp(min=1e-9)  # the best cell should score what it overlaps
    return cells, objects, share * iou.amax(1)[objects].clamp(min=0.1)
