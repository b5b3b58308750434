"""Convolution, bias, residual sum and ReLU as one step: what the fast inference forms of the networks are made of.

On a CPU with oneDNN the four are one kernel and the weight is kept in the layout that the kernel wants: as separate
operators, batch norm, ReLU and the residual sum take a third of InceptionResnetV1's time, and repacking 90 MB of
weights at each call takes a third of what is left at batch 1. Anywhere else the same sum runs as plain PyTorch.

Shapes: B batch, C input channels, K output channels, H x W height and width. Activations are channels_last.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]


@cache
def onednn_fusion(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this build of torch has oneDNN's fused convolution and it works on this processor (one tiny trial)."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        image, weight, bias = (torch.ones(shape, dtype=dtype) for shape in ((1, 1, 2, 2), (1, 1, 1, 1), (1,)))
        step = FusedConv(weight, bias, onednn=True)
        total = step.add(image, torch.ones_like(image))
        return bool((step(image) == 2).all() and (total == 3).all())
    except (AttributeError, RuntimeError, TypeError):  # these operators are torch.compile's: no promise binds them
        return False


class FusedConv:
    """`conv(x) + bias`, optionally `+ other`, optionally ReLU. Inference only, bound to the device of `weight`.

    weight: (K, C / groups, kernel height, kernel width), float32 or 16-bit, whose type the input must have. bias: (K,).
    stride, padding, dilation: (vertical, horizontal). ceiling: where ReLU ends, 6 for ReLU6.
    onednn: None takes the fused kernel where it is usable, False the plain operators (the tests compare both).
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] | str = (0, 0),
        onednn: bool | None = None,
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
        ceiling: float | None = None,
    ) -> None:
        if isinstance(padding, str):
            raise ValueError("padding by name is not supported; give two numbers")
        weight, bias = weight.detach(), bias.detach()
        if onednn is None:
            known = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
            onednn = known and onednn_fusion(weight.dtype)
        self.onednn, self.groups, self.ceiling = onednn, groups, ceiling
        self.bias = bias.contiguous()
        self.stride, self.padding, self.dilation = list(stride), list(padding), list(dilation)
        self._weight: tuple[Tensor, Size | None] = (weight.contiguous(memory_format=torch.channels_last), None)

    @property
    def weight(self) -> Tensor:
        """(K, C / groups, kernel height, kernel width) in plain memory order."""
        weight = self._weight[0]
        return weight.to_dense() if weight.is_mkldnn else weight

    def to(self, dtype: torch.dtype) -> FusedConv:
        """The same with other numbers."""
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        onednn = None if self.onednn else False
        return FusedConv(weight, bias, self.stride, self.padding, onednn, self.dilation, self.groups, self.ceiling)

    def _packed(self, x: Tensor) -> Tensor:
        # The best layout depends on the input's size, and a kernel that meets another one repacks the weight at every
        # call, some of them slowly (six times the convolution). So it is packed for the latest size, and only this
        # copy is kept. Two threads at once may both pack: either result is right, and one is kept.
        weight, size = self._weight
        wanted = (x.shape[2], x.shape[3])
        if size != wanted:
            plain = self.weight.contiguous(memory_format=torch.channels_last)
            weight = torch.ops.mkldnn._reorder_convolution_weight(
                plain, self.padding, self.stride, self.dilation, self.groups, list(x.shape)
            )
            self._weight = (weight, wanted)
        return weight

    def __call__(self, x: Tensor, relu: bool = True) -> Tensor:
        """(B, C, H, W) -> (B, K, H', W')."""
        if self.onednn:
            name, numbers = ("relu", []) if self.ceiling is None else ("hardtanh", [0.0, self.ceiling])
            return torch.ops.mkldnn._convolution_pointwise(
                x, self._packed(x), self.bias, self.padding, self.stride, self.dilation, self.groups,
                name if relu else "none", numbers if relu else [], "",
            )  # fmt: skip
        y = self._plain(x)
        return self._rectified(y) if relu else y

    def add(self, x: Tensor, other: Tensor, relu: bool = True) -> Tensor:
        """The convolution of `x` plus `other` (B, K, H', W'), which is overwritten with the result and returned.

        With a ceiling, ReLU is not offered here: oneDNN's sum has no such end.
        """
        if relu and self.ceiling is not None:
            raise ValueError("a sum with a ceiling is not supported")
        if self.onednn:
            return torch.ops.mkldnn._convolution_pointwise_.binary(
                other, x, self._packed(x), self.bias, self.padding, self.stride, self.dilation, self.groups,
                "add", 1.0, "relu" if relu else None, [], "",
            )  # fmt: skip
        other += self._plain(x)
        return other.relu_() if relu else other

    def _plain(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self._weight[0], self.bias, self.stride, self.padding, self.dilation, self.groups)

    def _rectified(self, y: Tensor) -> Tensor:
        return y.relu_() if self.ceiling is None else y.clamp_(0.0, self.ceiling)


def scaled(conv: nn.Conv2d, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that equals `gamma * conv(x) + beta` (gamma and beta one per channel).

    Computed in float64: rounding once instead of twice keeps the folded form within 1e-6 of the readable one.
    """
    weight = conv.weight.detach().double() * gamma.detach().double()[:, None, None, None]
    bias = beta.detach().double()
    if conv.bias is not None:
        bias = bias + gamma.detach().double() * conv.bias.detach().double()
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)


class Norm(Protocol):
    """A batch norm's numbers, one per channel, as torch names them."""

    eps: float

    @property
    def weight(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor: ...
    @property
    def running_mean(self) -> Tensor | None: ...
    @property
    def running_var(self) -> Tensor | None: ...


def batch_norm_affine(norm: Norm) -> tuple[Tensor, Tensor]:
    """(gamma, beta), one per channel: what a batch norm does to its input once its running statistics are fixed."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without running statistics can't be folded")
    gamma = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return gamma, norm.bias.double() - gamma * norm.running_mean.double()
