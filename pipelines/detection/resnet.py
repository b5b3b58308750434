"""ResNet with frozen batch norms: the backbone of DETR. He et al. 2015, "Deep Residual Learning for Image Recognition".

The 3x3 convolution of a bottleneck carries the stride ("v1.5"), as in the weights that DETR started from. Parameter
names are torchvision's, which the published files use: conv1, bn1, layer1.0.conv1, layer1.0.downsample.0.

Shapes: B batch, C channels, H x W the picture, h x w a feature map.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .config import ResNetConfig
from .norm import FrozenBatchNorm2d


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), FrozenBatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (18 and 34 layers)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        if dilation != 1:
            raise ValueError("only bottleneck blocks are dilated")
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = FrozenBatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = FrozenBatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, outputs, h / stride, w / stride), rounded up."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1 down to a quarter of the width, 3x3, 1x1 up again, around a shortcut (50 layers and more)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        width = outputs // 4
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = FrozenBatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = FrozenBatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = FrozenBatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, outputs, h / stride, w / stride), rounded up."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    """Pictures -> the feature maps of the four stages. `fused.FusedBackbone` is the fast form."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv2d(3, config.stem, 7, 2, 3, bias=False)
        self.bn1 = FrozenBatchNorm2d(config.stem)
        inputs = (config.stem, *config.widths)
        self.layer1 = _stage(config, 0, inputs[0], stride=1)
        self.layer2 = _stage(config, 1, inputs[1], stride=2)
        self.layer3 = _stage(config, 2, inputs[2], stride=2)
        self.layer4 = _stage(config, 3, inputs[3], stride=1 if config.dilation else 2)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised -> four maps (B, C, h, w) at strides 4, 8, 16 and 32 (dilated: 16), rounded up."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(pixels))), 3, 2, 1)
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return features


def _stage(config: ResNetConfig, index: int, inputs: int, stride: int) -> nn.Sequential:
    block = Bottleneck if config.bottleneck else BasicBlock
    outputs = config.widths[index]
    # The first block of a dilated stage still reads neighbours, as torchvision has it.
    dilation = 2 if index == 3 and config.dilation else 1
    rest = [block(outputs, outputs, 1, dilation) for _ in range(config.depths[index] - 1)]
    return nn.Sequential(block(inputs, outputs, stride), *rest)
