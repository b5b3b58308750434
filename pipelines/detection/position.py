"""Where a cell of the feature map lies, as numbers that attention can compare. torch only.

Carion et al. 2020, section A.4: sines and cosines of the row and of the column, as in "Attention Is All You Need", with
both coordinates running from 0 to 2 pi over the picture, padding left out. So a prediction is relative to the picture
and not to the canvas that it was padded to.

Letters: B batch, H x W the canvas in pixels, h x w the feature grid, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 10_000.0
EPSILON = 1e-6  # of the authors: keeps an all-padded row from dividing by zero


def grid_padding(padding: Tensor | None, size: tuple[int, int]) -> Tensor | None:
    """(B, H, W) bool, True where padded -> (B, h, w) bool for a feature map of `size`: the nearest pixel's value."""
    if padding is None:
        return None
    return F.interpolate(padding[None].float(), size=size)[0].bool()


def sine_positions(
    padding: Tensor | None, size: tuple[int, int], width: int, device: torch.device, place: float = 1.0
) -> Tensor:
    """Position encodings of a feature grid, the row's in the first half of the width and the column's in the second.

    padding: (B, h, w) bool, True where padded, or None. place: of a cell's own coordinate within it, from 0 to 1: DETR
    takes its far edge, Deformable DETR its middle. Returns (B, h * w, D) float32, with B = 1 without padding.
    """
    inside = torch.ones(1, *size, device=device) if padding is None else (~padding).float()
    rows, columns = inside.cumsum(1), inside.cumsum(2)
    rows = (rows - 1 + place) / (rows[:, -1:, :] + EPSILON) * 2 * math.pi
    columns = (columns - 1 + place) / (columns[:, :, -1:] + EPSILON) * 2 * math.pi
    pairs = torch.arange(width // 2, device=device) // 2  # a sine and a cosine share a frequency
    wavelength = TEMPERATURE ** (2 * pairs / (width // 2))
    encoded = [_waves(coordinate[..., None] / wavelength) for coordinate in (rows, columns)]
    return torch.cat(encoded, dim=-1).flatten(1, 2)


def _waves(angles: Tensor) -> Tensor:
    # Even places hold sines, odd ones cosines.
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)
