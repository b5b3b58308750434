"""Linear maps of few rows on a processor, with the weight kept as a kernel wants it. torch only.

Eight rows through a 1024 x 1024 map take 0.45 ms of one core packed for oneDNN and 0.75 ms by torch's own `linear`,
which lays the matrix out anew at every call; 65 rows take 1.2 against 1.35. GELU and a sum inside the kernel cost
nothing. In 8 bits the two take 0.17 and 0.55.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.common.device import processor_flags


@cache
def onednn_linear() -> bool:
    """Whether this build of torch has oneDNN's fused linear map and it works on this processor (one tiny trial)."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        one = Packed(torch.ones(2, 2), torch.ones(2), onednn=True)
        x = torch.ones(1, 2)
        return bool((one(x) == 3).all() and (one.add(x, x) == 4).all() and (one.gelu(-x) < 0).all())
    except (AttributeError, RuntimeError, TypeError):  # these operators are torch.compile's: no promise binds them
        return False


@cache
def bytes_linear() -> bool:
    """Whether this build of torch multiplies bytes in linear maps and this processor has instructions for it.

    One tiny trial, and VNNI: without it the sums of two products overflow 16 bits.
    """
    if not processor_flags() & {"avx512_vnni", "avx_vnni"}:
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


class Packed:
    """`x @ weight.T + bias`, inference only.

    weight: (K, D) float32, copied if it is packed. bias: (K,) or None. onednn: None takes the packed kernel where it is
    usable, False the plain operators (the tests compare both).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, onednn: bool | None = None) -> None:
        weight = weight.detach()
        if onednn is None:
            onednn = weight.device.type == "cpu" and weight.dtype == torch.float32 and onednn_linear()
        self.onednn = onednn
        self.bias = None if bias is None else bias.detach()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()) if onednn else weight

    def __call__(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, K)."""
        if self.onednn:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """The map, then GELU: (N, D) -> (N, K)."""
        if self.onednn:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "gelu", [], "none")
        return F.gelu(F.linear(x, self.weight, self.bias))

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        """The map plus `other` (N, K), which is not changed: (N, D) -> (N, K)."""
        if self.onednn:
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "add")
        return F.linear(x, self.weight, self.bias) + other


class PackedBytes:
    """The same in 8 bits, on a processor: a quarter of the memory to read, and up to four products in the time of one.

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
