"""Linear maps of few rows on a processor in 8 bits, and maps for each head. torch only; for float32 see `FusedLinear`.

Eight rows through a 1024 x 1024 map take 0.45 ms of a Xeon's core packed in float32, and 0.17 in 8 bits; 65 rows 1.2
and 0.55.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.common.device import BYTE_PRODUCTS, processor_flags


@cache
def bytes_linear() -> bool:
    """Whether this build of torch multiplies bytes in linear maps and this processor has instructions for it.

    One tiny trial, and VNNI: without it the sums of two products overflow 16 bits.
    """
    if not processor_flags() & BYTE_PRODUCTS:
        return False
    try:
        found = PackedBytes(torch.eye(2), torch.ones(2))(torch.tensor([[1.0, -1.0]]))
        return bool(torch.allclose(found, torch.tensor([[2.0, 0.0]]), atol=0.02))
    except (AttributeError, RuntimeError, TypeError):
        return False


class Map(Protocol):
    """A linear map of few rows."""

    def __call__(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, K)."""

    def gelu(self, x: Tensor) -> Tensor:
        """The map, then GELU: (N, D) -> (N, K)."""

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        """The map plus `other` (N, K), which is not changed: (N, D) -> (N, K)."""


class PackedBytes:
    """`FusedLinear` in 8 bits: a quarter of the memory to read, and up to four products in the time of one.

    Weights are rounded per output to 255 steps, the rows that come in together to 255 steps of their range at each
    call (Jacob et al. 2018). Each map is off by about 1 % of its output.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        weight = weight.detach()
        scales = weight.abs().amax(1).clamp(min=1e-12).double() / 127
        values = (weight / scales[:, None]).round().to(torch.int8)
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch means to replace this type of tensor one day: see bytes_linear
            quantised = torch._make_per_channel_quantized_tensor(values, scales, zeros, 0)
            self._packed = torch.ops.quantized.linear_prepack(quantised, None if bias is None else bias.detach())

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic(x, self._packed)

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(self(x))

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        return self(x).add_(other)


class Heads:
    """A map for each head, (H, N, D) -> (H, N, K).

    weight: (H, K, D). bias: (H, K) or None. reduced: in 8 bits.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, reduced: bool = False) -> None:
        self.weight = weight.detach().contiguous()
        self.bias = None if bias is None else bias.detach()[:, None]
        self._bytes: list[PackedBytes] = []
        if reduced:
            biases = [None] * len(weight) if bias is None else list(bias)
            self._bytes = [PackedBytes(each, one) for each, one in zip(self.weight, biases, strict=True)]
            self.weight = self.weight[:0]

    def __call__(self, x: Tensor) -> Tensor:
        if self._bytes:
            return torch.stack([one(each.contiguous()) for one, each in zip(self._bytes, x, strict=True)])
        if self.bias is None:
            return torch.bmm(x, self.weight.transpose(1, 2))
        return torch.baddbmm(self.bias, x, self.weight.transpose(1, 2))
