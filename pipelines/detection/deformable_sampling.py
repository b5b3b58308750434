"""Multi-scale sampling of deformable attention (Zhu et al. 2021, equation 3), and where it looked.

Shapes: B batch, Q queries, H heads, D numbers a head, S cells of all levels, V levels, P points a level.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = list[tuple[int, int]]  # height and width of each level


def sample(values: Tensor, shapes: Shapes, places: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples.

    values (B, S, H, D), the levels one after another, rows first. places (B, Q, H, V, P, 2) xy in [0, 1], outside reads
    zero. weights (B, Q, H, V, P). Returns (B, Q, H * D).
    """
    B, Q, H, _, P, _ = places.shape
    total = values.new_zeros(B * H, values.shape[-1], Q)
    levels = values.split([h * w for h, w in shapes], 1)
    for v, ((h, w), level) in enumerate(zip(shapes, levels, strict=True)):
        maps = level.permute(0, 2, 3, 1).reshape(B * H, -1, h, w)
        grid = (2 * places[:, :, :, v] - 1).transpose(1, 2).reshape(B * H, Q, P, 2)
        samples = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        total = total + (samples * weights[:, :, :, v].transpose(1, 2).reshape(B * H, 1, Q, P)).sum(-1)
    return total.view(B, -1, Q).transpose(1, 2)


def corners(shapes: Shapes, places: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The four cells around each place with their share: cells and shares, both (B, Q, H, V, P, 4).

    Cells count over all levels; a corner outside its level has share zero.
    """
    sizes = places.new_tensor([[w, h] for h, w in shapes])  # (V, 2)
    starts = [0]
    for h, w in shapes[:-1]:
        starts.append(starts[-1] + h * w)
    at = places * sizes[:, None] - 0.5
    low = at.floor().detach()
    part = at - low
    x = torch.stack((low[..., 0], low[..., 0] + 1), -1)  # (..., 2)
    y = torch.stack((low[..., 1], low[..., 1] + 1), -1)
    share_x = torch.stack((1 - part[..., 0], part[..., 0]), -1)
    share_y = torch.stack((1 - part[..., 1], part[..., 1]), -1)
    wide, high = sizes[:, 0, None, None], sizes[:, 1, None, None]
    share_x = share_x * ((x >= 0) & (x < wide))
    share_y = share_y * ((y >= 0) & (y < high))
    x, y = torch.minimum(x.clamp(min=0), wide - 1), torch.minimum(y.clamp(min=0), high - 1)
    start = places.new_tensor(starts)[:, None, None, None]
    cells = start + y[..., :, None] * wide[..., None] + x[..., None, :]
    shares = weights[..., None, None] * share_y[..., :, None] * share_x[..., None, :]
    return cells.flatten(-2).long(), shares.flatten(-2)


def spread(shapes: Shapes, places: Tensor, weights: Tensor) -> Tensor:
    """Where the samples fell, as maps over the first (finest) level: (B, H, Q, h, w), each at most 1 in sum.

    Every sample leaves its weight on the four cells of the finest level around it; what fell outside is lost.
    """
    B, Q, H, V, P, _ = places.shape
    h, w = shapes[0]
    flat = places.reshape(B, Q, H, 1, V * P, 2)
    cells, shares = corners(shapes[:1], flat, weights.reshape(B, Q, H, 1, V * P))
    maps = places.new_zeros(B, Q, H, h * w)
    maps.scatter_add_(-1, cells.view(B, Q, H, -1), shares.view(B, Q, H, -1))
    return maps.view(B, Q, H, h, w).transpose(1, 2)
