"""A mask for every object query. torch only.

Carion et al. 2020, section 5: where each query looks, head by head, on the encoded picture; then a small convolutional
pyramid that sharpens these maps with the backbone's finer features.

Letters: B batch, Q queries, H heads, D width, C channels, h x w the feature grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QUERIES_AT_ONCE = 20  # 100 queries at once on an 800 x 1333 picture would need gigabytes; a slice stays in the caches


class MaskAttention(nn.Module):
    """Attention weights without values. Heads and cells share one softmax: all maps of a query sum to 1 together."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)

    def forward(self, slots: Tensor, memory: Tensor, hidden: Tensor | None = None) -> Tensor:
        """slots (B, Q, D), memory (B, S, D) -> (B, Q, H, S). hidden: (B, S) bool, True where padded."""
        query = self.query(slots).unflatten(2, (self.heads, -1))  # (B, Q, H, D / H)
        key = self.key(memory).unflatten(2, (self.heads, -1))  # (B, S, H, D / H)
        scores = (query * query.shape[-1] ** -0.5).transpose(1, 2) @ key.permute(0, 2, 3, 1)  # (B, H, Q, S)
        scores = scores.transpose(1, 2)
        if hidden is not None:
            scores = scores.masked_fill(hidden[:, None, None, :], float("-inf"))
        return scores.flatten(2).softmax(-1).view_as(scores)


class MaskHead(nn.Module):
    """Three upsampling steps by two, each with a finer map of the backbone added."""

    def __init__(self, width: int, heads: int, backbone: Sequence[int]) -> None:
        """backbone: channels of the maps at strides 4, 8 and 16 (or those of a dilated network)."""
        super().__init__()
        self.width = width
        sizes = [width + heads, width + heads, width // 2, width // 4, width // 8, width // 16]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes))
        # Groups of the authors' head: 8, or what divides the channels of a tiny one.
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(8, size), size) for size in sizes[1:])
        finer = zip(reversed(backbone), sizes[2:5], strict=True)
        self.adapters = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in finer)
        self.out = nn.Conv2d(sizes[5], 1, 3, padding=1)

    def forward(self, projected: Tensor, maps: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Mask logits (B, Q, height, width), on the grid of the finest feature map.

        projected: (B, D, h, w) what the encoder was given. maps: (B, Q, H, h, w) of MaskAttention. features: the
        backbone's maps at strides 4, 8 and 16.
        """
        first = self.convs[0]
        assert isinstance(first, nn.Conv2d)
        weight, bias = first.weight, first.bias
        # The first convolution reads the picture's channels and then the maps. The picture's part is the same for all
        # queries, so it is computed once: 97 % of the work of the largest convolution. The adapters likewise.
        shared = F.conv2d(projected, weight[:, : self.width], bias, padding=1)
        finer = [adapter(feature) for adapter, feature in zip(self.adapters, reversed(features), strict=True)]
        masks = []
        for b in range(len(maps)):  # one picture and a few queries at a time: no norm here looks across them
            for part in maps[b].split(QUERIES_AT_ONCE):
                x = shared[b] + F.conv2d(part, weight[:, self.width :], padding=1)
                masks.append(self._sharpen(x, [feature[b] for feature in finer]))
        return torch.cat(masks).unflatten(0, maps.shape[:2])

    def _sharpen(self, x: Tensor, finer: Sequence[Tensor]) -> Tensor:
        """x (n, C, h, w) behind the first convolution -> (n, height, width)."""
        x = F.relu(self.norms[0](x))
        x = F.relu(self.norms[1](self.convs[1](x)))
        for feature, conv, norm in zip(finer, self.convs[2:], self.norms[2:], strict=True):
            x = feature + F.interpolate(x, size=feature.shape[-2:])  # nearest
            x = F.relu(norm(conv(x)))
        return self.out(x)[:, 0]
