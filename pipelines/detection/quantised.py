"""A backbone in 8 bits: bytes in and out of every convolution, whole-number products. torch only.

A processor of 2019 or later multiplies four times as many bytes as float32 numbers at a time (Intel's VNNI), and a
map takes a quarter of the memory. Weights are scaled per output channel and maps per tensor, by what the maps of a few
pictures hold, which is measured once (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference"). The transformer stays in float32.

oneDNN's whole-number convolutions are torch.compile's operators, which no promise binds: `usable` tries one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from pipelines.common.fused import FusedConv

from .config import IMAGENET_MEAN, IMAGENET_STD
from .fused import FusedBackbone, Step

SAMPLES = 100_000  # numbers of a map that the choice of its scale looks at
CUTS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)  # parts of a map's range that its bytes may stand for


class Grid(NamedTuple):
    """What a byte b stands for: (b - zero) * scale."""

    scale: float
    zero: int


class Bytes(NamedTuple):
    """A map in 8 bits. values: (B, C, h, w) uint8, channels_last."""

    values: Tensor
    grid: Grid


def grid(low: float, high: float) -> Grid:
    """Bytes spread over [low, high], which holds 0 so that 0 has a byte of its own."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / 255, 1e-12)
    return Grid(scale, round(-low / scale))


def to_bytes(x: Tensor, g: Grid) -> Tensor:
    """The nearest bytes, of the same shape and memory order."""
    return (x * (1 / g.scale)).add_(g.zero + 0.5).clamp_(0, 255.5).to(torch.uint8)


def to_numbers(x: Tensor, g: Grid) -> Tensor:
    """float32 numbers that bytes stand for."""
    x = x.float()
    return (x.sub_(g.zero) if g.zero else x).mul_(g.scale)


def best_grid(x: Tensor) -> Grid:
    """The grid with the least squared error on these numbers: a few large ones may be cut off for a finer step."""
    low, high = float(x.min()), float(x.max())
    grids = [grid(low * cut, high * cut) for cut in CUTS]
    errors = [float((to_numbers(to_bytes(x, g), g) - x).square().mean()) for g in grids]
    return grids[errors.index(min(errors))]


def sample(x: Tensor) -> Tensor:
    """Some numbers of a map (B, C, h, w), of all its channels alike, and the largest and the smallest of all."""
    step = max(1, x.numel() // SAMPLES)
    while math.gcd(step, x.shape[1]) > 1:  # or it would meet the same few channels again and again
        step += 1
    return torch.cat([x.permute(0, 2, 3, 1).flatten()[::step], torch.stack(x.aminmax())])


class Meter:
    """A step that notes what runs through it: the mean of each channel that comes in, and some numbers that go out."""

    def __init__(self, step: FusedConv) -> None:
        self.step = step
        self.means: list[Tensor] = []
        self.seen: list[Tensor] = []

    def __call__(self, x: Tensor, relu: bool = True) -> Tensor:
        self.means.append(x.mean((0, 2, 3)))
        return self._noted(self.step(x, relu))

    def add(self, x: Tensor, other: Tensor, relu: bool = True) -> Tensor:
        self.means.append(x.mean((0, 2, 3)))
        return self._noted(self.step.add(x, other, relu))

    def _noted(self, y: Tensor) -> Tensor:
        self.seen.append(sample(y))
        return y

    def quantised(self) -> QuantisedConv:
        """The step in 8 bits, made for what was seen."""
        return QuantisedConv(self.step, best_grid(torch.cat(self.seen)), torch.stack(self.means).mean(0))


class QuantisedConv:
    """A FusedConv on bytes. The grid of its output says where its ReLU is: it starts at 0 and ends at 255 steps.

    means: (C,), of the input's channels. Rounded weights shift the mean of what comes out, by as much as the mean
    input makes of the roundings; the bias takes that back (Nagel et al. 2019, "Data-Free Quantization", section 4.2).
    It took the error of the bundled MobileNet's maps from 30 % to 18 %.
    """

    def __init__(self, step: FusedConv, output: Grid, means: Tensor) -> None:
        weight = step.weight.float()
        self.scales = weight.abs().amax((1, 2, 3)).clamp(min=1e-12) / 127
        scales = self.scales[:, None, None, None]
        self.weight = (weight / scales).round().to(torch.int8)
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        roundings = (self.weight * scales - weight).sum((2, 3)).view(step.groups, -1, weight.shape[1])
        shift = (roundings * means.view(step.groups, 1, -1)).sum(-1).flatten()
        self.bias = step.bias.float() - shift
        self.shape = (step.stride, step.padding, step.dilation, step.groups)
        self.output = output
        self._packed: Tensor | None = None

    def _arguments(self, x: Bytes) -> tuple[object, ...]:
        if self._packed is None:  # any size packs alike, but not none: some layers would take thirty times as long
            sizes = [1, x.values.shape[1], 32, 32]
            self._packed = torch.ops.onednn.qconv_prepack(self.weight, self.scales, *x.grid, *self.shape, sizes)
        return x.values, *x.grid, self._packed, self.scales, self.zeros

    def __call__(self, x: Bytes, relu: bool = True) -> Bytes:
        values = torch.ops.onednn.qconv2d_pointwise(
            *self._arguments(x), self.bias, *self.shape, *self.output, torch.uint8, "none", [], ""
        )
        return Bytes(values, self.output)

    def add(self, x: Bytes, other: Bytes, relu: bool = True) -> Bytes:
        values = torch.ops.onednn.qconv2d_pointwise.binary(
            *self._arguments(x), other.values, self.bias, *self.shape, *self.output, torch.uint8, *other.grid,
            "sum", 1.0, "none", [], "",
        )  # fmt: skip
        return Bytes(values, self.output)


class QuantisedBackbone(FusedBackbone):
    """Made by `quantise`."""

    def enter(self, pixels: Tensor) -> Bytes:
        low = min(-m / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True))
        high = max((1 - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True))
        g = grid(low, high)
        return Bytes(to_bytes(pixels.contiguous(memory_format=torch.channels_last), g), g)

    def pool(self, x: Bytes) -> Bytes:
        # torch has no max-pool of bytes: the largest of every three rows, then of every three columns.
        return x._replace(values=_largest(_largest(x.values, 2), 3))

    def leave(self, x: Bytes) -> Tensor:
        return to_numbers(*x)


def quantise(backbone: FusedBackbone, pictures: Sequence[Tensor]) -> QuantisedBackbone:
    """A copy of a fast backbone in 8 bits. pictures: (1, 3, H, W) normalised, at least one, of what it will see."""
    meters: list[Meter] = []
    metered, small = copy.copy(backbone), copy.copy(backbone)

    def meter(step: FusedConv) -> Step:
        meters.append(Meter(step))
        return meters[-1]

    metered.rebuild(meter)
    for picture in pictures:
        metered(picture)
    waiting = iter(meters)
    small.rebuild(lambda step: next(waiting).quantised())
    small.__class__ = QuantisedBackbone  # the same parts, but maps are bytes from here on
    assert isinstance(small, QuantisedBackbone)
    return small


@cache
def usable() -> bool:
    """Whether this build of torch has these operators and they work on this processor (one tiny trial)."""
    try:
        step = QuantisedConv(
            FusedConv(torch.full((1, 1, 1, 1), 2.0), torch.ones(1), onednn=False), Grid(1.0, 0), torch.ones(1)
        )
        x = Bytes(torch.full((1, 1, 1, 1), 7, dtype=torch.uint8), Grid(1.0, 2))
        other = Bytes(torch.full((1, 1, 1, 1), 5, dtype=torch.uint8), Grid(2.0, 1))
        return step(x).values.item() == 11 and step.add(x, other).values.item() == 19
    except (AttributeError, RuntimeError, TypeError):
        return False


def _largest(x: Tensor, axis: int) -> Tensor:
    """The largest of places 2k - 1, 2k and 2k + 1 along an axis, for every 2k."""
    even, odd = (x.movedim(axis, 0)[start::2].movedim(0, axis) for start in (0, 1))
    out = even.clone(memory_format=torch.channels_last)
    for start, length in ((0, odd.shape[axis]), (1, out.shape[axis] - 1)):
        part = out.narrow(axis, start, length)
        torch.maximum(part, odd.narrow(axis, 0, length), out=part)
    return out
