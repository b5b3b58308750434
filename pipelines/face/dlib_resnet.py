"""dlib's face descriptor network (Davis King 2017, dlib's dnn_face_recognition_ex.cpp): 29 convolutions, 128 numbers.

A ResNet (He et al. 2016) with fewer layers and half the filters, trained with a metric loss. Two habits of dlib differ
from the usual ones: a strided convolution pads nothing, and the sum of a block and its shortcut takes the larger of
the two sizes in each dimension, the smaller one counting as zero where it does not reach. Batch norms were turned into
affine layers (one factor and one offset per channel) by the author.

`DlibResnet` is the readable form; `FoldedDlibResnet` has the affine layers inside the convolutions and fuses
convolution, sum and ReLU. The tests hold one to the other.

Shapes: B batch; for 150 px input the sides are 150 -> 72 -> 35 -> 17 -> 8 -> 4 -> 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.common.fused import FusedConv, scaled

from .config import DlibResnetConfig

# (output channels, strided) of each residual block, from input to output.
LEVELS = (
    *[(32, False)] * 3,
    *[(64, True), (64, False), (64, False), (64, False)],
    *[(128, True), (128, False), (128, False)],
    *[(256, True), (256, False), (256, False)],
    (256, True),
)  # fmt: skip


def prepare(chips: Tensor, config: DlibResnetConfig | None = None) -> Tensor:
    """(B, 3, S, S) RGB uint8 -> float32: each colour less its mean, over 256."""
    config = config or DlibResnetConfig()
    mean = torch.tensor(config.mean, device=chips.device)[:, None, None]
    return (chips.float() - mean) / config.scale


class Affine(nn.Module):
    """A factor and an offset per channel: a batch norm with its statistics absorbed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def padded(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """`x` with zeros after its channels, below and to the right, up to the given size."""
    return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2], 0, channels - x.shape[1]))


def padded_sum(a: Tensor, b: Tensor) -> Tensor:
    """dlib's add_prev: the sum at the larger of the two sizes in each dimension."""
    size = [max(p, q) for p, q in zip(a.shape[1:], b.shape[1:], strict=True)]
    return padded(a, *size) + padded(b, *size)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; a strided block halves the side and averages 2x2 on the shortcut."""

    def __init__(self, inputs: int, outputs: int, strided: bool) -> None:
        super().__init__()
        stride, padding = (2, 0) if strided else (1, 1)
        self.strided = strided
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding)
        self.affine1 = Affine(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.affine2 = Affine(outputs)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.avg_pool2d(x, 2) if self.strided else x
        x = F.relu(self.affine1(self.conv1(x)))
        return F.relu(padded_sum(self.affine2(self.conv2(x)), shortcut))


class DlibResnet(nn.Module):
    """Face chips -> raw descriptors: two chips of one person lie within about 0.6 of each other (Euclidean).

    A descriptor is not of unit length (about 1.4); the embedders make it so.
    """

    def __init__(self, config: DlibResnetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [32, *(outputs for outputs, _ in LEVELS)]
        self.conv = nn.Conv2d(3, 32, 7, stride=2)
        self.affine = Affine(32)
        self.blocks = nn.Sequential(
            *(Block(before, after, strided) for before, (after, strided) in zip(widths, LEVELS, strict=False))
        )
        self.linear = nn.Linear(widths[-1], config.embedding, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 150, 150) as `prepare` gives it -> (B, 128), not normalised."""
        x = F.relu(self.affine(self.conv(x)))
        x = F.max_pool2d(x, 3, 2)  # (B, 32, 35, 35)
        x = self.blocks(x)  # (B, 256, 2, 2)
        return self.linear(x.mean(dim=(2, 3)))


class _FoldedBlock:
    """A Block. May overwrite its input."""

    def __init__(self, block: Block, onednn: bool | None) -> None:
        self.strided = block.strided
        self.conv1, self.conv2 = (
            FusedConv(*scaled(conv, affine.weight, affine.bias), conv.stride, conv.padding, onednn)
            for conv, affine in ((block.conv1, block.affine1), (block.conv2, block.affine2))
        )
        self.channels = block.conv2.out_channels

    def __call__(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        if not self.strided:
            return self.conv2.add(y, x)
        x = F.avg_pool2d(x, 2)
        height, width = y.shape[2:]
        x = padded(x, self.channels, max(height, x.shape[2]), max(width, x.shape[3]))
        x = x.contiguous(memory_format=torch.channels_last)
        if x.shape == y.shape:
            return self.conv2.add(y, x)
        x[:, :, :height, :width] += self.conv2(y, relu=False)
        return x.relu_()


class FoldedDlibResnet:
    """The fast form of a network: same input, same output, inference only, on the device it was folded on.

    A copy: changing the network's weights afterwards does not change this.
    """

    def __init__(self, network: DlibResnet, onednn: bool | None = None) -> None:
        conv = network.conv
        weight, bias = scaled(conv, network.affine.weight, network.affine.bias)
        self.conv = FusedConv(weight, bias, conv.stride, conv.padding, onednn)
        self.blocks = [_FoldedBlock(block, onednn) for block in network.blocks if isinstance(block, Block)]
        self.linear = network.linear.weight.detach().clone()

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """(B, 3, 150, 150) as `prepare` gives it -> (B, 128), not normalised."""
        if len(x) == 0:
            return x.new_zeros(0, len(self.linear))
        x = F.max_pool2d(self.conv(x.contiguous(memory_format=torch.channels_last)), 3, 2)
        for block in self.blocks:
            x = block(x)
        return F.linear(x.mean(dim=(2, 3)), self.linear)
