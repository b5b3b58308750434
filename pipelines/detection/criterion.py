"""The set loss: every object is answered for by one query, every other query must say "nothing" (Carion et al. 2020).

Shapes: L decoder layers, B batch, Q queries, K classes, n objects of a picture, N objects of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import giou, overlaps, to_corners
from .config import LossWeights, Scoring
from .matcher import assign, costs
from .output import Output


@dataclass(frozen=True)
class Target:
    """The objects of one picture: classes (n,) int64, boxes (n, 4) cxcywh in [0, 1]."""

    classes: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class Pairs:
    """What was matched in a batch, one entry an object: picture, query, class, and the box wanted (N, 4)."""

    picture: Tensor
    query: Tensor
    classes: Tensor
    boxes: Tensor


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, targets: Sequence[Target], weights: LossWeights, scoring: Scoring) -> Pairs:
    """The best assignment in each picture of a batch: logits (B, Q, K or K + 1), boxes (B, Q, 4)."""
    counts = [len(target.classes) for target in targets]
    classes = torch.cat([target.classes for target in targets])
    wanted = torch.cat([target.boxes for target in targets])
    # Every picture against the objects of all: a few wasted products cost less than a loop.
    total = costs(logits, boxes, classes, wanted, weights, scoring).total.cpu().split(counts, -1)
    picture, query, chosen, start = [], [], [], 0
    for b, count in enumerate(counts):
        rows, columns = assign(total[b][b])
        picture.append(torch.full_like(rows, b))
        query.append(rows)
        chosen.append(columns + start)
        start += count
    index = torch.cat(chosen).to(classes.device)
    return Pairs(torch.cat(picture), torch.cat(query), classes[index], wanted[index])


def cross_entropy(logits: Tensor, pairs: Pairs, no_object: float) -> Tensor:
    """Mean over the queries, with "no object", the last of the K + 1 classes, at a smaller weight (section 4)."""
    B, Q, classes = logits.shape
    wanted = torch.full((B, Q), classes - 1, dtype=torch.int64, device=logits.device)
    wanted[pairs.picture, pairs.query] = pairs.classes
    weight = logits.new_ones(classes)
    weight[-1] = no_object
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weight)


def focal(logits: Tensor, pairs: Pairs, quality: Tensor, count: float) -> Tensor:
    """Every class by itself, easy negatives count little (Lin et al. 2017); (B, Q, K) logits.

    quality (N,) in [0, 1] is what a matched query should say: 1 in the papers, its box's overlap with the object if
    scores are to rank boxes (Zhang et al. 2021, "VarifocalNet").
    """
    wanted = torch.zeros_like(logits)
    wanted[pairs.picture, pairs.query, pairs.classes] = quality.to(logits.dtype)
    p = logits.detach().sigmoid()
    weight = torch.where(wanted > 0, wanted, 0.75 * p**2)
    return (F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * weight).sum() / count


def set_loss(output: Output, targets: Sequence[Target], weights: LossWeights, scoring: Scoring) -> dict[str, Tensor]:
    """The weighted parts, summed over the decoder layers: each layer is matched and taught by itself ("auxiliary")."""
    count = float(max(1, sum(len(target.classes) for target in targets)))
    parts = {name: output.boxes.new_zeros(()) for name in ("classification", "l1", "giou")}
    for logits, boxes in zip(output.logits, output.boxes, strict=True):
        pairs = match(logits, boxes, targets, weights, scoring)
        found = boxes[pairs.picture, pairs.query]
        corners, wanted = to_corners(found), to_corners(pairs.boxes)
        if scoring == "softmax":
            classification = cross_entropy(logits, pairs, weights.no_object)
        else:
            quality = overlaps(corners.detach(), wanted)[0]
            classification = focal(logits, pairs, quality, count)
        parts["classification"] = parts["classification"] + weights.classification * classification
        parts["l1"] = parts["l1"] + weights.l1 * (found - pairs.boxes).abs().sum() / count
        parts["giou"] = parts["giou"] + weights.giou * (1 - giou(corners, wanted)).sum() / count
    return parts
