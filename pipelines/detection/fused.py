"""The fast inference forms of the networks: frozen batch norms inside the convolutions, and these fused. torch only.

`fuse` gives a network of the same class that answers as the readable one does but for rounding. It shares all but the
backbone and packed linear maps with the network that it was made from, and is bound to its device. Not for training.
The transformer needs no other form than these maps, and them only where torch's own are slow (see `common.fused`).

A backbone here is a list of steps that take and give feature maps: tensors, or what another kind of step works on
(`quantised.py`).

Shapes: B batch, C channels, H x W the picture, h x w a feature map.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.common.fused import FusedConv, batch_norm_affine, pack_linears, scaled

from .deformable import DeformableDetr
from .detr import Detr
from .mobilenet import ConvNorm, InvertedResidual, MobileNetV2
from .norm import FrozenBatchNorm2d
from .resnet import BasicBlock, Bottleneck, ResNet

Network = TypeVar("Network", Detr, DeformableDetr)


class Step(Protocol):
    """A convolution with its bias; see `FusedConv`."""

    def __call__(self, x: Any, relu: bool = True) -> Any: ...

    def add(self, x: Any, other: Any, relu: bool = True) -> Any: ...


@dataclass(frozen=True)
class Block:
    """A residual block of any kind: `first` one after the other, then `last`, plus the shortcut.

    residual: whether anything is added; the input itself where there is no shortcut, and then it is overwritten.
    relu: whether the sum goes through ReLU.
    """

    first: tuple[Step, ...]
    last: Step
    shortcut: Step | None
    residual: bool
    relu: bool

    @property
    def overwrites(self) -> bool:
        return self.residual and self.shortcut is None

    def __call__(self, x: Any) -> Any:
        y = x
        for step in self.first:
            y = step(y)
        if not self.residual:
            return self.last(y, self.relu)
        return self.last.add(y, x if self.shortcut is None else self.shortcut(x, False), self.relu)


class FusedBackbone(nn.Module):
    """The fast form of a ResNet or a MobileNetV2: same input, same maps, which are channels_last.

    levels: the stages whose maps are returned. pooled: whether a max-pool follows the stem.
    """

    def __init__(self, network: ResNet | MobileNetV2, onednn: bool | None = None) -> None:
        super().__init__()
        self.stem: Step
        self.levels: tuple[int, ...] = (0, 1, 2, 3)
        self.pooled = isinstance(network, ResNet)
        if isinstance(network, ResNet):
            self.stem = _folded(network.conv1, network.bn1, onednn)
            layers = (network.layer1, network.layer2, network.layer3, network.layer4)
            self.stages = [[_residual(block, onednn) for block in layer] for layer in layers]
        else:
            self.levels = network.levels
            self.stem = _conv_norm(network.stem, onednn)
            self.stages = [[_inverted(block, onednn) for block in _blocks(stage)] for stage in network.stages]
        if any(self.stages[level + 1][0].overwrites for level in self.levels if level + 1 < len(self.stages)):
            raise ValueError("a block would overwrite a map that is returned")

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised -> the maps (B, C, h, w) that the readable form gives."""
        x = self.stem(self.enter(pixels))
        if self.pooled:
            x = self.pool(x)
        features = []
        for level, blocks in enumerate(self.stages):
            for block in blocks:
                x = block(x)
            if level in self.levels:
                features.append(self.leave(x))
        return features

    def enter(self, pixels: Tensor) -> Any:
        """What the stem takes."""
        return pixels.contiguous(memory_format=torch.channels_last)

    def pool(self, x: Any) -> Any:
        """3 x 3, stride 2."""
        return F.max_pool2d(x, 3, 2, 1)

    def leave(self, x: Any) -> Tensor:
        """What the rest of the network takes."""
        return x

    def rebuild(self, change: Callable[[Any], Step]) -> None:
        """Put change(step) in place of every step, in the order in which they run first."""
        self.stem = change(self.stem)
        self.stages = [[_rebuilt(block, change) for block in blocks] for blocks in self.stages]


def fuse(network: Network, onednn: bool | None = None) -> Network:
    """The fast form of a network. onednn: as for `FusedConv` and `pack_linears`."""
    backbone = FusedBackbone(network.backbone, onednn)
    if isinstance(network, Detr) and not network.config.panoptic:
        backbone.levels = backbone.levels[-1:]  # only masks need the finer maps
    return pack_linears(with_backbone(network, backbone), onednn)


def with_backbone(network: Network, backbone: nn.Module) -> Network:
    """A network that shares all but its backbone with the given one."""
    other = copy.copy(network)
    other._modules = {**network._modules, "backbone": backbone}
    return other


def cast(network: Detr, dtype: torch.dtype) -> Detr:
    """A copy of a fast form in 16 bits.

    The heads stay in float32, which costs nothing: in bfloat16 a box could only end at every fourth pixel of a
    thousand.
    """
    backbone = copy.copy(network.backbone)
    assert isinstance(backbone, FusedBackbone)
    backbone.rebuild(lambda step: step.to(dtype))
    other = copy.deepcopy(network, {id(network.backbone): backbone}).to(dtype)
    other.class_head.float(), other.box_head.float()
    return other


def _rebuilt(block: Block, change: Callable[[Any], Step]) -> Block:
    first = tuple(change(step) for step in block.first)
    shortcut = None if block.shortcut is None else change(block.shortcut)
    return replace(block, first=first, shortcut=shortcut, last=change(block.last))


def _folded(conv: nn.Module, norm: nn.Module, onednn: bool | None, ceiling: float | None = None) -> FusedConv:
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenBatchNorm2d)
    weight, bias = scaled(conv, *batch_norm_affine(norm))
    return FusedConv(weight, bias, conv.stride, conv.padding, onednn, conv.dilation, conv.groups, ceiling)


def _conv_norm(layer: ConvNorm, onednn: bool | None) -> FusedConv:
    return _folded(layer.conv, layer.norm, onednn, None if layer.linear else 6.0)


def _residual(block: nn.Module, onednn: bool | None) -> Block:
    assert isinstance(block, (BasicBlock, Bottleneck))
    pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
    if isinstance(block, Bottleneck):
        pairs.append((block.conv3, block.bn3))
    *first, last = [_folded(conv, norm, onednn) for conv, norm in pairs]
    shortcut = None
    if isinstance(block.downsample, nn.Sequential):
        shortcut = _folded(block.downsample[0], block.downsample[1], onednn)
    return Block(tuple(first), last, shortcut, residual=True, relu=True)


def _blocks(stage: nn.Module) -> Iterable[nn.Module]:
    assert isinstance(stage, nn.Sequential)
    return stage


def _inverted(block: nn.Module, onednn: bool | None) -> Block:
    assert isinstance(block, InvertedResidual)
    parts = (block.expand, block.depthwise, block.project)
    *first, last = [_conv_norm(part, onednn) for part in parts if part is not None]
    return Block(tuple(first), last, None, block.residual, relu=False)
