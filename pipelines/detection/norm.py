"""Batch norm as a detector uses it: frozen, and folded into its convolution where nothing is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipelines.common.fused import batch_norm_affine, scaled


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and scale are constants: x * a + b for each channel. (B, C, H, W) in and out."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


@torch.no_grad()
def folded(conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> nn.Conv2d:
    """One convolution with a bias that computes norm(conv(x))."""
    weight, bias = scaled(conv, *batch_norm_affine(norm))
    joined = nn.utils.skip_init(
        nn.Conv2d, conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
        conv.groups, device=weight.device, dtype=weight.dtype,
    )  # fmt: skip
    joined.weight, joined.bias = nn.Parameter(weight), nn.Parameter(bias)
    return joined
