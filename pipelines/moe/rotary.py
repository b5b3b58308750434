"""Rotary positions (Su et al. 2021), in the layout of the published files: channel i turns with channel i + d/2.

Letters: T positions, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotation(positions: Tensor, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine (T, d) float32 of the angles at `positions` (T,); the halves repeat."""
    frequencies = base ** (-torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32) / head_width)
    angles = positions.to(torch.float32)[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """x (..., T, d), turned."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine
