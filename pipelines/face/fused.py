"""Convolution, bias, residual sum and ReLU as one step: what the fast inference forms of the face networks are made of.

On a CPU with oneDNN the four are one kernel and the weight is kept in the layout that the kernel wants: as separate
operators, batch norm, ReLU and the residual sum take a third of InceptionResnetV1's time, and repacking 90 MB of
weights at each call takes a third of what is left at batch 1. Anywhere else the same sum runs as plain PyTorch.

Shapes: B batch, C input channels, K output channels, H x W height and width. Activations are channels_last.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@cache
def onednn_fusion() -> bool:
    """Whether this build of torch has oneDNN's fused convolution and it works on this processor (one tiny trial)."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        image, weight, bias = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1), torch.zeros(1)
        step = FusedConv(weight, bias, onednn=True)
        total = step.add(image, torch.ones(1, 1, 2, 2))
        return bool((step(image) == 1).all() and (total == 2).all())
    except (AttributeError, RuntimeError, TypeError):  # these operators are torch.compile's: no promise binds them
        return False


class FusedConv:
    """`conv(x) + bias`, optionally `+ other`, optionally ReLU. Inference only, bound to the device of `weight`.

    weight: (K, C, kernel height, kernel width) float32. bias: (K,). stride, padding: (vertical, horizontal).
    onednn: None takes the fused kernel where it is usable, False the plain operators (the tests compare both).
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] | str = (0, 0),
        onednn: bool | None = None,
    ) -> None:
        if isinstance(padding, str):
            raise ValueError("padding by name is not supported; give two numbers")
        weight, bias = weight.detach(), bias.detach()
        if onednn is None:
            onednn = weight.device.type == "cpu" and weight.dtype == torch.float32 and onednn_fusion()
        self.onednn = onednn
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.bias = bias.contiguous()
        self.stride, self.padding = list(stride), list(padding)

    def _packed(self, x: Tensor) -> Tensor:
        # The best layout depends on the input's size, so the weight is packed on the first call and the plain one
        # dropped. Two threads at once both pack the plain one and one result is kept: either is right.
        weight = self.weight
        if not weight.is_mkldnn:
            weight = torch.ops.mkldnn._reorder_convolution_weight(
                weight, self.padding, self.stride, [1, 1], 1, list(x.shape)
            )
            self.weight = weight
        return weight

    def __call__(self, x: Tensor, relu: bool = True) -> Tensor:
        """(B, C, H, W) -> (B, K, H', W')."""
        if self.onednn:
            return torch.ops.mkldnn._convolution_pointwise(
                x, self._packed(x), self.bias, self.padding, self.stride, [1, 1], 1, "relu" if relu else "none", [], ""
            )
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        return y.relu_() if relu else y

    def add(self, x: Tensor, other: Tensor, relu: bool = True) -> Tensor:
        """The convolution of `x` plus `other` (B, K, H', W'), which is overwritten with the result and returned."""
        if self.onednn:
            return torch.ops.mkldnn._convolution_pointwise_.binary(
                other, x, self._packed(x), self.bias, self.padding, self.stride, [1, 1], 1,
                "add", 1.0, "relu" if relu else None, [], "",
            )  # fmt: skip
        other += F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        return other.relu_() if relu else other


def scaled(conv: nn.Conv2d, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that equals `gamma * conv(x) + beta` (gamma and beta one per channel).

    Computed in float64: rounding once instead of twice keeps the folded form within 1e-6 of the readable one.
    """
    weight = conv.weight.detach().double() * gamma.detach().double()[:, None, None, None]
    bias = beta.detach().double()
    if conv.bias is not None:
        bias = bias + gamma.detach().double() * conv.bias.detach().double()
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)


def batch_norm_affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(gamma, beta), one per channel: what a batch norm does to its input once its running statistics are fixed."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without running statistics can't be folded")
    gamma = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return gamma, norm.bias.double() - gamma * norm.running_mean.double()
