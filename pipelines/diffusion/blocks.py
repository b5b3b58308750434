"""The convolutional blocks that the U-Net and the autoencoder share.

Shapes: B batch, C channels in, D channels out, H and W the height and width, E the width of the time embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions around a skip, pre-activated; a time embedding, if any, is added between them.

    The block of Ho et al. 2020 (appendix B), which is He et al. 2016's pre-activation block with group normalisation.
    """

    def __init__(self, c_in: int, c_out: int, time_width: int | None, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_width, c_out) if time_width is not None else None
        self.norm2 = nn.GroupNorm(groups, c_out, eps=eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W); emb: (B, E), already activated -> (B, D, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))  # (B, D, H, W)
        if self.time_emb_proj is not None and emb is not None:
            h = h + self.time_emb_proj(emb)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Halves the side with a strided convolution. The autoencoder pads right and below only, the U-Net on all sides."""

    def __init__(self, channels: int, symmetric: bool) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if symmetric else 0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the side by repeating pixels, or reaches a given size, then smooths with a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W), or the given (height, width) where an odd side was halved on the way down."""
        if size is None:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
