"""Inception-ResNet v1 (Szegedy et al. 2016, "Inception-v4, Inception-ResNet and the Impact of Residual Connections").

The face embedding network of facenet (Schroff et al. 2015; David Sandberg's TensorFlow weights), as facenet-pytorch
publishes it: attribute names are those of its files, so that they load without renaming.

`InceptionResnetV1` is the readable form. `FoldedInceptionResnetV1` computes the same numbers faster; the tests hold
one to the other. Batch norms go into the convolutions, the residual scale into the projection, the 1x1 convolutions
that read the same input become one, and convolution, sum and ReLU are one kernel where oneDNN offers it.

Shapes: B batch, channels as written; for 160 px input the sides are 160 -> 17 -> 8 -> 3. E numbers in an embedding,
P classes (people) of the training head.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.common.fused import FusedConv, batch_norm_affine, scaled

from .config import InceptionResnetConfig

BN_EPS = 0.001  # TensorFlow's default, with which the published weights were trained
SCALE_35, SCALE_17, SCALE_8 = 0.17, 0.10, 0.20  # residual scales (section 3.3), as facenet has them

Size = int | tuple[int, int]


def prepare(chips: Tensor) -> Tensor:
    """(B, 3, S, S) RGB uint8 -> float32 in [-1, 1]: facenet's fixed image standardisation."""
    return (chips.float() - 127.5) / 128.0


class BasicConv2d(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Size, stride: int = 1, padding: Size = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class ResidualBlock(nn.Module):
    """x + scale * projection(branches side by side), then ReLU. Subclasses say what the branches are."""

    branches: tuple[str, ...]

    def __init__(self, width: int, joined: int, scale: float, relu: bool = True) -> None:
        super().__init__()
        self.scale, self.relu = scale, relu
        self.conv2d = nn.Conv2d(joined, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = torch.cat([getattr(self, name)(x) for name in self.branches], dim=1)
        x = x + self.scale * self.conv2d(branches)
        return F.relu(x) if self.relu else x


class Block35(ResidualBlock):
    """Inception-ResNet-A (figure 10), 17 x 17 x 256 here."""

    branches = ("branch0", "branch1", "branch2")

    def __init__(self, scale: float = SCALE_35) -> None:
        super().__init__(256, 96, scale)
        self.branch0 = BasicConv2d(256, 32, 1)
        self.branch1 = nn.Sequential(BasicConv2d(256, 32, 1), BasicConv2d(32, 32, 3, padding=1))
        self.branch2 = nn.Sequential(
            BasicConv2d(256, 32, 1), BasicConv2d(32, 32, 3, padding=1), BasicConv2d(32, 32, 3, padding=1)
        )


class Block17(ResidualBlock):
    """Inception-ResNet-B (figure 11), 8 x 8 x 896 here: a 7x7 convolution as 1x7 and 7x1."""

    branches = ("branch0", "branch1")

    def __init__(self, scale: float = SCALE_17) -> None:
        super().__init__(896, 256, scale)
        self.branch0 = BasicConv2d(896, 128, 1)
        self.branch1 = nn.Sequential(
            BasicConv2d(896, 128, 1),
            BasicConv2d(128, 128, (1, 7), padding=(0, 3)),
            BasicConv2d(128, 128, (7, 1), padding=(3, 0)),
        )


class Block8(ResidualBlock):
    """Inception-ResNet-C (figure 13), 3 x 3 x 1792 here. The last one of the network has scale 1 and no ReLU."""

    branches = ("branch0", "branch1")

    def __init__(self, scale: float = SCALE_8, relu: bool = True) -> None:
        super().__init__(1792, 384, scale, relu)
        self.branch0 = BasicConv2d(1792, 192, 1)
        self.branch1 = nn.Sequential(
            BasicConv2d(1792, 192, 1),
            BasicConv2d(192, 192, (1, 3), padding=(0, 1)),
            BasicConv2d(192, 192, (3, 1), padding=(1, 0)),
        )


class Mixed6a(nn.Module):
    """Reduction-A (figure 7): 17 x 17 x 256 -> 8 x 8 x 896."""

    def __init__(self) -> None:
        super().__init__()
        self.branch0 = BasicConv2d(256, 384, 3, stride=2)
        self.branch1 = nn.Sequential(
            BasicConv2d(256, 192, 1), BasicConv2d(192, 192, 3, padding=1), BasicConv2d(192, 256, 3, stride=2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.branch0(x), self.branch1(x), F.max_pool2d(x, 3, 2)), dim=1)


class Mixed7a(nn.Module):
    """Reduction-B (figure 12): 8 x 8 x 896 -> 3 x 3 x 1792."""

    def __init__(self) -> None:
        super().__init__()
        self.branch0 = nn.Sequential(BasicConv2d(896, 256, 1), BasicConv2d(256, 384, 3, stride=2))
        self.branch1 = nn.Sequential(BasicConv2d(896, 256, 1), BasicConv2d(256, 256, 3, stride=2))
        self.branch2 = nn.Sequential(
            BasicConv2d(896, 256, 1), BasicConv2d(256, 256, 3, padding=1), BasicConv2d(256, 256, 3, stride=2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.branch0(x), self.branch1(x), self.branch2(x), F.max_pool2d(x, 3, 2)), dim=1)


class InceptionResnetV1(nn.Module):
    """Face chips -> embeddings of unit length.

    config.classes adds `logits`, the linear head over the people of the training set that the published files carry.
    """

    def __init__(self, config: InceptionResnetConfig) -> None:
        super().__init__()
        self.config = config
        a, b, c = config.blocks
        self.conv2d_1a = BasicConv2d(3, 32, 3, stride=2)
        self.conv2d_2a = BasicConv2d(32, 32, 3)
        self.conv2d_2b = BasicConv2d(32, 64, 3, padding=1)
        self.conv2d_3b = BasicConv2d(64, 80, 1)
        self.conv2d_4a = BasicConv2d(80, 192, 3)
        self.conv2d_4b = BasicConv2d(192, 256, 3, stride=2)
        self.repeat_1 = nn.Sequential(*(Block35() for _ in range(a)))
        self.mixed_6a = Mixed6a()
        self.repeat_2 = nn.Sequential(*(Block17() for _ in range(b)))
        self.mixed_7a = Mixed7a()
        self.repeat_3 = nn.Sequential(*(Block8() for _ in range(c)))
        self.block8 = Block8(scale=1.0, relu=False)
        self.dropout = nn.Dropout(0.6)
        self.last_linear = nn.Linear(1792, config.embedding, bias=False)
        self.last_bn = nn.BatchNorm1d(config.embedding, eps=BN_EPS)
        if config.classes is not None:
            self.logits = nn.Linear(config.embedding, config.classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, 160, 160) as `prepare` gives it -> (B, E), before the length is made 1."""
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x)))
        x = F.max_pool2d(x, 3, 2)
        x = self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(x)))  # (B, 256, 17, 17)
        x = self.mixed_6a(self.repeat_1(x))  # (B, 896, 8, 8)
        x = self.mixed_7a(self.repeat_2(x))  # (B, 1792, 3, 3)
        x = self.block8(self.repeat_3(x))
        x = self.dropout(x.mean(dim=(2, 3)))  # (B, 1792)
        return self.last_bn(self.last_linear(x))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 160, 160) as `prepare` gives it -> (B, E) of unit length."""
        return F.normalize(self.features(x), dim=1)

    def class_logits(self, x: Tensor) -> Tensor:
        """(B, 3, 160, 160) -> (B, P), the training head; only if the configuration has classes."""
        return self.logits(self.features(x))


def _convolutions(branch: nn.Module) -> list[BasicConv2d]:
    return [module for module in branch.modules() if isinstance(module, BasicConv2d)]


def _folded(block: BasicConv2d, onednn: bool | None) -> FusedConv:
    weight, bias = scaled(block.conv, *batch_norm_affine(block.bn))
    return FusedConv(weight, bias, block.conv.stride, block.conv.padding, onednn)


def _joined(blocks: Iterable[BasicConv2d], onednn: bool | None) -> FusedConv:
    """1x1 convolutions that read the same input, as one: their output channels stand one after the other."""
    pairs = [scaled(block.conv, *batch_norm_affine(block.bn)) for block in blocks]
    return FusedConv(torch.cat([w for w, _ in pairs]), torch.cat([b for _, b in pairs]), onednn=onednn)


class _FoldedBlock:
    """A ResidualBlock. Overwrites its input."""

    def __init__(self, block: ResidualBlock, onednn: bool | None) -> None:
        chains = [_convolutions(getattr(block, name)) for name in block.branches]
        self.entry = _joined((chain[0] for chain in chains), onednn)
        self.widths = [chain[0].conv.out_channels for chain in chains]
        self.chains = [[_folded(conv, onednn) for conv in chain[1:]] for chain in chains]
        scale = torch.full((block.conv2d.out_channels,), block.scale, device=block.conv2d.weight.device)
        self.projection = FusedConv(*scaled(block.conv2d, scale, torch.zeros_like(scale)), onednn=onednn)
        self.relu = block.relu

    def __call__(self, x: Tensor) -> Tensor:
        parts = list(self.entry(x).split(self.widths, dim=1))
        for i, chain in enumerate(self.chains):
            for conv in chain:
                parts[i] = conv(parts[i])
        return self.projection.add(torch.cat(parts, dim=1), x, self.relu)


def _folded_blocks(blocks: Iterable[nn.Module], onednn: bool | None) -> list[_FoldedBlock]:
    return [_FoldedBlock(block, onednn) for block in blocks if isinstance(block, ResidualBlock)]


class FoldedInceptionResnetV1:
    """The fast form of a network in eval mode: same input, same output, no training, on the device it was folded on.

    A copy: changing the network's weights afterwards does not change this.
    """

    def __init__(self, network: InceptionResnetV1, onednn: bool | None = None) -> None:
        self.stem = [
            _folded(getattr(network, name), onednn)
            for name in ("conv2d_1a", "conv2d_2a", "conv2d_2b", "conv2d_3b", "conv2d_4a", "conv2d_4b")
        ]
        self.repeat_1 = _folded_blocks(network.repeat_1, onednn)
        self.repeat_2 = _folded_blocks(network.repeat_2, onednn)
        self.repeat_3 = _folded_blocks([*network.repeat_3, network.block8], onednn)
        a, b = network.mixed_6a, network.mixed_7a
        self.mixed_6a = [[_folded(conv, onednn) for conv in _convolutions(tail)] for tail in (a.branch0, a.branch1)]
        tails = [_convolutions(tail) for tail in (b.branch0, b.branch1, b.branch2)]
        self.mixed_7a_entry = _joined((tail[0] for tail in tails), onednn)
        self.mixed_7a = [[_folded(conv, onednn) for conv in tail[1:]] for tail in tails]
        gamma, beta = batch_norm_affine(network.last_bn)
        weight = network.last_linear.weight
        self.last_weight = (weight.detach().double() * gamma.detach()[:, None]).to(weight.dtype)
        self.last_bias = beta.detach().to(weight.dtype)

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """(B, 3, 160, 160) as `prepare` gives it -> (B, E) of unit length."""
        if len(x) == 0:
            return x.new_zeros(0, len(self.last_bias))
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.max_pool2d(_chain(self.stem[:3], x), 3, 2)
        x = _chain(self.repeat_1, _chain(self.stem[3:], x))  # (B, 256, 17, 17)
        x = torch.cat([*(_chain(chain, x) for chain in self.mixed_6a), F.max_pool2d(x, 3, 2)], dim=1)
        x = _chain(self.repeat_2, x)  # (B, 896, 8, 8)
        entries = self.mixed_7a_entry(x).chunk(3, dim=1)
        parts = [_chain(chain, entry) for chain, entry in zip(self.mixed_7a, entries, strict=True)]
        x = _chain(self.repeat_3, torch.cat([*parts, F.max_pool2d(x, 3, 2)], dim=1))  # (B, 1792, 3, 3)
        return F.normalize(F.linear(x.mean(dim=(2, 3)), self.last_weight, self.last_bias), dim=1)


def _chain(steps: Iterable[FusedConv | _FoldedBlock], x: Tensor) -> Tensor:
    for step in steps:
        x = step(x)
    return x
