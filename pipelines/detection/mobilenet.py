"""MobileNetV2 (Sandler et al. 2018) as a backbone: inverted residuals, frozen batch norm.

Shapes: B batch, C channels, H and W pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .config import MobileNetV2Config
from .norm import FrozenBatchNorm2d


class ConvNorm(nn.Module):
    """Convolution, frozen batch norm, and ReLU6 unless `linear`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, linear: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm: nn.Module = FrozenBatchNorm2d(outputs)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)) if self.conv.kernel_size != (1, 1) or self.conv.bias is None else self.pointwise(x)
        return x if self.linear else F.relu6(x, inplace=True)

    def pointwise(self, x: Tensor) -> Tensor:
        """A folded 1x1 convolution as one matrix product, which torch's convolution on one core is half as fast as."""
        rows = F.linear(x.permute(0, 2, 3, 1), self.conv.weight.flatten(1), self.conv.bias)
        return rows.permute(0, 3, 1, 2)


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter each channel by itself, narrow again without a nonlinearity (section 3.3)."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int):
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvNorm(inputs, hidden, 1) if expansion > 1 else None
        self.depthwise = ConvNorm(hidden, hidden, 3, stride, groups=hidden)
        self.project = ConvNorm(hidden, outputs, 1, linear=True)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """(B, 3, H, W) normalised pixels -> features of the stages in `config.levels`, each (B, C, H / s, W / s).

    channels: C of each of these. Sides that are no multiple of the stride are rounded up.
    """

    def __init__(self, config: MobileNetV2Config):
        super().__init__()
        self.levels = config.levels
        self.stem = ConvNorm(3, config.stem, 3, stride=2)
        stages, inputs = [], config.stem
        for expansion, outputs, repeats, stride in config.stages:
            blocks = []
            for k in range(repeats):
                blocks.append(InvertedResidual(inputs, outputs, expansion, stride if k == 0 else 1))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.channels = tuple(config.stages[level][1] for level in config.levels)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return self.resume(self.stem(pixels), 0)

    def resume(self, x: Tensor, stage: int) -> list[Tensor]:
        """The same from the input of stage number `stage` on: training starts from kept features."""
        features = []
        for k in range(stage, len(self.stages)):
            x = self.stages[k](x)
            if k in self.levels:
                features.append(x)
        return features
