"""P-Net, R-Net and O-Net of MTCNN: Zhang, Zhang, Li, Qiao 2016, "Joint Face Detection and Alignment using Multi-task
Cascaded Convolutional Networks", section II and figure 2, with the channel counts of the authors' published weights.

Letters: B pictures or crops, H x W input pixels, h x w cells of P-Net's output map.

Every network reads RGB pixels scaled by `normalise` and answers the paper's tasks: is this a face (a probability), by
how much the box is off (`offsets`, for x1 y1 x2 y2, in units of the box's side) and, O-Net only, where the points are.
Parameter names are those of the weights that facenet-pytorch ships, so they load without a table.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import MTCNNConfig


def normalise(pixels: Tensor) -> Tensor:
    """Pixels in [0, 255] to the range that the networks were trained on, in [-1, 1). In place: `pixels` is changed."""
    return pixels.sub_(127.5).mul_(1 / 128)


def _flatten(x: Tensor) -> Tensor:
    # The authors trained in Caffe under Matlab, which stores columns first: width varies slowest, channels fastest.
    return x.permute(0, 3, 2, 1).flatten(1)


class PNet(nn.Module):
    """Proposal network: fully convolutional, one 12 x 12 square in, one cell out, a cell every 2 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 10, 3)
        self.prelu1 = nn.PReLU(10)
        self.conv2 = nn.Conv2d(10, 16, 3)
        self.prelu2 = nn.PReLU(16)
        self.conv3 = nn.Conv2d(16, 32, 3)
        self.prelu3 = nn.PReLU(32)
        self.conv4_1 = nn.Conv2d(32, 2, 1)
        self.conv4_2 = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (B, 3, H, W) -> probability (B, h, w), offsets (B, 4, h, w).

        The readable path; `stem` and then `heads` is the fast one.
        """
        x = self.prelu1(self.conv1(x))  # (B, 10, H - 2, W - 2)
        x = F.max_pool2d(x, 2, 2, ceil_mode=True)
        x = self.prelu2(self.conv2(x))
        x = self.prelu3(self.conv3(x))  # (B, 32, h, w)
        return self.conv4_1(x).softmax(1)[:, 1], self.conv4_2(x)

    def stem(self, pixels: Tensor) -> Tensor:
        """`forward` up to the pool, for one picture: (H, W, 3) -> (ceil((H - 2) / 2), ceil((W - 2) / 2), 10).

        Channels lie last in memory throughout. The slopes are laid out along whole rows, since a loop over 10 channels
        is too short for vector instructions, and the pool is maxima of slices: `forward` spends most of its time there.
        """
        x = self.conv1(_as_batch(pixels))
        return _max_pairs(_prelu_rows(_as_picture(x), self.prelu1.weight))

    def heads(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` from the pool on: (h + 4, w + 4, 10) -> probability (h, w), offsets (4, h, w).

        Both heads are one matrix product, and the softmax over two classes a sigmoid of their difference.
        """
        x = self.prelu2(self.conv2(_as_batch(pooled)))
        x = _as_picture(self.prelu3(self.conv3(x)))  # (h, w, 32)
        face, other = self.conv4_1, self.conv4_2
        weight = torch.cat([face.weight[1:] - face.weight[:1], other.weight]).flatten(1)
        assert face.bias is not None and other.bias is not None
        bias = torch.cat([face.bias[1:] - face.bias[:1], other.bias])
        outputs = torch.addmm(bias[:, None], weight, x.flatten(0, 1).t()).unflatten(1, x.shape[:2])
        return outputs[0].sigmoid(), outputs[1:]


def _as_batch(x: Tensor) -> Tensor:
    # [None] first: after permute, torch would no longer see that the channels lie last, and choose slower kernels.
    return x[None].permute(0, 3, 1, 2)


def _as_picture(x: Tensor) -> Tensor:
    return x[0].permute(1, 2, 0)


def _prelu_rows(rows: Tensor, slopes: Tensor) -> Tensor:
    height, width, channels = rows.shape
    return F.prelu(rows.reshape(height, -1), slopes.repeat(width)).view(height, width, channels)


def _max_pairs(x: Tensor) -> Tensor:
    """(H, W, C) -> (ceil(H / 2), ceil(W / 2), C), the maximum of each 2 x 2 square; the last may be half a square."""
    height, width, channels = x.shape
    out = x.new_empty(((height + 1) // 2, width, channels))
    torch.maximum(x[0 : height - 1 : 2], x[1::2], out=out[: height // 2])
    if height % 2:
        out[-1] = x[-1]
    x = out
    out = x.new_empty((len(x), (width + 1) // 2, channels))
    torch.maximum(x[:, 0 : width - 1 : 2], x[:, 1::2], out=out[:, : width // 2])
    if width % 2:
        out[:, -1] = x[:, -1]
    return out


class RNet(nn.Module):
    """Refine network: looks at each proposal once more, at 24 x 24 pixels."""

    side = MTCNNConfig.rnet_input

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 28, 3)
        self.prelu1 = nn.PReLU(28)
        self.conv2 = nn.Conv2d(28, 48, 3)
        self.prelu2 = nn.PReLU(48)
        self.conv3 = nn.Conv2d(48, 64, 2)
        self.prelu3 = nn.PReLU(64)
        self.dense4 = nn.Linear(64 * 3 * 3, 128)
        self.prelu4 = nn.PReLU(128)
        self.dense5_1 = nn.Linear(128, 2)
        self.dense5_2 = nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (B, 3, 24, 24) -> probability (B,), offsets (B, 4)."""
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)  # (B, 28, 11, 11)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)  # (B, 48, 4, 4)
        x = self.prelu3(self.conv3(x))  # (B, 64, 3, 3)
        x = self.prelu4(self.dense4(_flatten(x)))
        return self.dense5_1(x).softmax(1)[:, 1], self.dense5_2(x)


class ONet(nn.Module):
    """Output network: the last word on each box, and five points, from 48 x 48 pixels."""

    side = MTCNNConfig.onet_input

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3)
        self.prelu1 = nn.PReLU(32)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.prelu2 = nn.PReLU(64)
        self.conv3 = nn.Conv2d(64, 64, 3)
        self.prelu3 = nn.PReLU(64)
        self.conv4 = nn.Conv2d(64, 128, 2)
        self.prelu4 = nn.PReLU(128)
        self.dense5 = nn.Linear(128 * 3 * 3, 256)
        self.prelu5 = nn.PReLU(256)
        self.dense6_1 = nn.Linear(256, 2)
        self.dense6_2 = nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, 3, 48, 48) -> probability (B,), offsets (B, 4), landmarks (B, 5, 2) xy as fractions of the box."""
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)  # (B, 32, 23, 23)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)  # (B, 64, 10, 10)
        x = F.max_pool2d(self.prelu3(self.conv3(x)), 2, 2, ceil_mode=True)  # (B, 64, 4, 4)
        x = self.prelu4(self.conv4(x))  # (B, 128, 3, 3)
        x = self.prelu5(self.dense5(_flatten(x)))
        landmarks = self.dense6_3(x).unflatten(1, (2, 5)).transpose(1, 2)  # published as five x, then five y
        return self.dense6_1(x).softmax(1)[:, 1], self.dense6_2(x), landmarks


class MTCNN(nn.Module):
    """The three networks. How they are run over a picture is in cascade.py."""

    def __init__(self) -> None:
        super().__init__()
        self.pnet = PNet()
        self.rnet = RNet()
        self.onet = ONet()
