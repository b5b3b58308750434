"""Convolution, bias, residual sum and ReLU as one step, linear maps, attention: what the fast inference forms of the
networks are made of.

On a CPU with oneDNN the first four are one kernel and the weight is kept in the layout that the kernel wants: as
separate operators, batch norm, ReLU and the residual sum take a third of InceptionResnetV1's time, and repacking 90 MB
of weights at each call takes a third of what is left at batch 1. Anywhere else the same sum runs as plain PyTorch.

torch gives plain matrix products to another library, MKL, which on some processors that are not Intel's reaches less
than half of oneDNN's speed (110 against 240 GFLOP/s a core on an EPYC with AVX-512), and its fused attention does not
use bfloat16's instructions. So linear maps and attention take oneDNN where a trial says that it is faster here.

Shapes: B batch, C input channels, K output channels, H x W height and width. Activations are channels_last. Of
attention: A heads, N queries, M keys, D width of a head.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]
Network = TypeVar("Network", bound=nn.Module)


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


@cache
def onednn_products(dtype: torch.dtype) -> bool:
    """Whether this build of torch has oneDNN's linear map and it is right on this processor (one tiny trial)."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        weight, bias = torch.ones((4, 8), dtype=dtype), torch.ones(4, dtype=dtype)
        step = FusedLinear(weight, bias, onednn=True)
        x = torch.ones((2, 8), dtype=dtype)
        return bool((step(x) == 9).all() and (step.times(x, step(x)) == 81).all() and (step.gelu(-x / 4) < -0.1).all())
    except (AttributeError, RuntimeError, TypeError):  # torch.compile's operators, as above
        return False


@cache
def onednn_linear(dtype: torch.dtype) -> bool:
    """Whether oneDNN's linear map is faster here than torch's own: in float32 by a trial of some milliseconds; in
    bfloat16 torch's own is oneDNN's, too, but lays the weight out anew at every call."""
    if dtype != torch.float32 or not onednn_products(dtype):
        return onednn_products(dtype)
    x, weight, bias = (torch.ones(shape, dtype=dtype) for shape in ((1024, 512), (512, 512), (512,)))
    packed = FusedLinear(weight, bias, onednn=True)
    return faster(lambda: packed(x), lambda: F.linear(x, weight, bias))


@cache
def onednn_attention(dtype: torch.dtype) -> bool:
    """Whether attention in oneDNN's products is faster here than torch's fused one: in float32 where its linear maps
    are, else by a trial of a fifth of a second."""
    if dtype == torch.float32 or not onednn_products(dtype):
        return onednn_linear(dtype)
    q = torch.ones((2, 8, 1024, 80), dtype=dtype)  # as at the second finest size of a picture of 512 pixels
    return faster(lambda: _attend(q, q, q), lambda: F.scaled_dot_product_attention(q, q, q))


def faster(candidate: Callable[[], object], usual: Callable[[], object], rounds: int = 8, margin: float = 1.25) -> bool:
    """Whether the one takes clearly less time than the other: in turn, and the best of each, so that whatever else the
    machine does falls on both. The margin is wide, so that the answer on one machine is always the same, and with it
    the last bit of what is computed: a saved run is drawn again to the bit."""
    calls, best = (candidate, usual), [float("inf")] * 2
    for _ in range(rounds):
        for k, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[k] = min(best[k], time.perf_counter() - start)
    return best[0] * margin < best[1]


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


class FusedLinear:
    """`x @ weight.T + bias`, optionally through GELU, plus or times another tensor. Inference only, as `FusedConv`.

    weight: (K, C), whose type the input must have. bias: (K,), or None. onednn: None takes oneDNN where it is faster
    with many rows, False the plain operators. Of few rows a packed weight is faster wherever `onednn_products`: eight
    rows through a 1024 x 1024 map took 0.45 ms of a Xeon's core, and 0.75 by torch's own, which lays the matrix out
    anew at every call; 65 rows 1.2 against 1.35.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, onednn: bool | None = None) -> None:
        weight = weight.detach().contiguous()
        if onednn is None:
            known = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
            onednn = known and onednn_linear(weight.dtype)
        self.onednn = onednn
        self.bias = None if bias is None else bias.detach().contiguous()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if onednn else weight

    @property
    def weight(self) -> Tensor:
        """(K, C) in plain memory order."""
        return self._weight.to_dense() if self._weight.is_mkldnn else self._weight

    def __call__(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., K)."""
        if self.onednn:
            return torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, "none", [], "")
        return F.linear(x, self._weight, self.bias)

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedLinear:
        return FusedLinear(self.weight.clone(), None if self.bias is None else self.bias.clone(), self.onednn)

    def gelu(self, x: Tensor) -> Tensor:
        """The map, then GELU."""
        if self.onednn:
            return torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, "gelu", [], "none")
        return F.gelu(F.linear(x, self._weight, self.bias))

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        """The map plus `other` (..., K), which is not changed."""
        if self.onednn:
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight, self.bias, "add")
        return F.linear(x, self._weight, self.bias).add_(other)

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The map times `other` (..., K), which is not changed."""
        if self.onednn:
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight, self.bias, "mul")
        return F.linear(x, self._weight, self.bias).mul_(other)


class PackedLinear(nn.Module):
    """`nn.Linear` by a `FusedLinear`, its weight in the kernel's order and nowhere else. In a state dict it is as it
    was."""

    def __init__(self, linear: nn.Linear, onednn: bool | None = None) -> None:
        super().__init__()
        self.step = FusedLinear(linear.weight, linear.bias, onednn)

    @property
    def weight(self) -> Tensor:
        """(K, C) in plain memory order."""
        return self.step.weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., K)."""
        return self.step(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        super()._apply(fn, recurse)
        bias = None if self.step.bias is None else fn(self.step.bias)
        self.step = FusedLinear(fn(self.step.weight), bias, None if self.step.onednn else False)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.step.weight
        if self.step.bias is not None:
            destination[f"{prefix}bias"] = self.step.bias


def pack_linears(network: Network, onednn: bool | None = None) -> Network:
    """A network whose linear maps are packed, and that shares all else with the given one, which stays as it is.

    onednn: None packs where it is faster (see `onednn_linear`), and gives the network itself elsewhere.
    """
    first = next(network.parameters())
    if onednn is None:
        onednn = first.device.type == "cpu" and first.dtype == torch.float32 and onednn_linear(first.dtype)
    return _packed(network) if onednn else network


def _packed(module: Any) -> Any:
    if isinstance(module, nn.Linear):
        return PackedLinear(module, onednn=True)
    children = {name: child and _packed(child) for name, child in module._modules.items()}
    if all(children[name] is child for name, child in module._modules.items()):
        return module
    other = copy.copy(module)
    other._modules = children
    return other


SCORES_BYTES = 1 << 22  # of attention's scores at once: they stay in the caches


def attend(q: Tensor, k: Tensor, v: Tensor, onednn: bool | None = None) -> Tensor:
    """Softmax attention without a mask. q (B, A, N, D), k and v (B, A, M, D) -> (B, A, N, D). onednn: as for
    `FusedLinear`."""
    if onednn is None:
        known = q.device.type == "cpu" and q.dtype in (torch.float32, torch.bfloat16)
        # with few keys there is little to win, and few rows would make many small products
        onednn = known and min(q.shape[2], k.shape[2]) >= 128 and onednn_attention(q.dtype)
    return _attend(q, k, v) if onednn else F.scaled_dot_product_attention(q, k, v)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By rows of queries, one head at a time: two of oneDNN's linear maps, whose weights are keys and values."""
    linear = torch.ops.mkldnn._linear_pointwise
    batch, heads, length, width = q.shape
    rows = max(64, SCORES_BYTES // (k.shape[2] * q.element_size()))
    mixed = q.new_empty((batch, length, heads, width))  # so that the heads can be joined without a copy
    for b in range(batch):
        for a in range(heads):
            keys, values = (k[b, a] * width**-0.5).contiguous(), v[b, a].T.contiguous()
            for start in range(0, length, rows):
                scores = linear(q[b, a, start : start + rows].contiguous(), keys, None, "none", [], "")
                mixed[b, start : start + rows, a] = linear(scores.softmax(dim=-1), values, None, "none", [], "")
    return mixed.transpose(1, 2)


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
