"""The fast inference form of the U-Net and the autoencoder: same input, same output but for rounding.

Where the time of a call of Stable Diffusion 1.5's U-Net goes (two guidance halves, 64x64 latents, float32): half into
convolutions, a quarter into linear maps, a fifth into attention. A convolution whose weight (59 MB at the coarse sizes)
is put into the kernel's order at each call takes up to twice as long as one that finds it so; these copies and the
large intermediate features of the gated MLP also cost most of 800,000 page faults a call, a tenth of its time. So
weights are packed once, linear maps and attention take the fastest library that is here (see `fused`), the MLP takes
its rows in parts that stay in the caches, sums go in place, and features are channels_last, which tokens are views of.
In bfloat16 torch's group norm takes twenty times as long over channels_last as over plain memory, so norms run in
float32.

Shapes: B batch, C channels in, D channels out, H and W the height and width, N = H * W positions, T text tokens,
E the width of the time embedding.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.common.fused import FusedConv, FusedLinear, PackedLinear, attend

from .blocks import ResnetBlock
from .unet import Attention, FeedForward, GatedProjection, TransformerBlock, attention_shares

ROWS = 1024  # tokens that the gated MLP takes at once: at most 10 MB inside, in Stable Diffusion 1.x

Network = TypeVar("Network", bound=nn.Module)


class PackedConv(nn.Module):
    """A convolution whose weight is kept in the kernel's order, and nowhere else. In a state dict it is as it was."""

    def __init__(self, conv: nn.Conv2d, onednn: bool | None) -> None:
        super().__init__()
        assert conv.bias is not None
        weight, bias, padding = conv.weight, conv.bias, conv.padding
        self.step = FusedConv(weight, bias, conv.stride, padding, onednn, conv.dilation, conv.groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H', W')."""
        return self.step(x, relu=False)

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        """The convolution of x plus `other` (B, D, H', W'), which is overwritten and returned."""
        return self.step.add(x, other, relu=False)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"], destination[f"{prefix}bias"] = self.step.weight, self.step.bias


class FastGroupNorm(nn.Module):
    """A group norm, in float32 whatever the features are in, and SiLU after it if asked for."""

    def __init__(self, norm: nn.GroupNorm, silu: bool = False) -> None:
        super().__init__()
        self.weight, self.bias, self.groups, self.eps, self.silu = (
            norm.weight,
            norm.bias,
            norm.num_groups,
            norm.eps,
            silu,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        y = F.group_norm(x.float(), self.groups, self.weight.float(), self.bias.float(), self.eps)
        return (F.silu(y, inplace=True) if self.silu else y).to(x.dtype)


class FastResnetBlock(nn.Module):
    """`blocks.ResnetBlock` with packed convolutions and sums in place. It leaves its input alone: that is a skip."""

    def __init__(self, block: ResnetBlock, onednn: bool | None) -> None:
        super().__init__()
        self.norm1, self.conv1 = FastGroupNorm(block.norm1, silu=True), PackedConv(block.conv1, onednn)
        self.time_emb_proj = block.time_emb_proj
        self.norm2, self.conv2 = FastGroupNorm(block.norm2, silu=True), PackedConv(block.conv2, onednn)
        self.conv_shortcut = None if block.conv_shortcut is None else PackedConv(block.conv_shortcut, onednn)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """As the readable one."""
        h = self.conv1(self.norm1(x))  # (B, D, H, W)
        if self.time_emb_proj is not None and emb is not None:
            h += self.time_emb_proj(emb)[:, :, None, None]
        h = self.norm2(h)
        if self.conv_shortcut is not None:
            return self.conv2.add(h, self.conv_shortcut(x))
        h = self.conv2(h)
        h += x
        return h


class FastAttention(nn.Module):
    """`unet.Attention` with packed maps and the faster attention."""

    def __init__(self, attention: Attention, onednn: bool | None) -> None:
        super().__init__()
        self.heads, self.onednn = attention.heads, onednn
        self.to_q = PackedLinear(attention.to_q, onednn)
        self.to_k = PackedLinear(attention.to_k, onednn)
        self.to_v = PackedLinear(attention.to_v, onednn)
        last: Any = attention.to_out[0]
        self.to_out = nn.ModuleList([PackedLinear(last, onednn)])

    def forward(self, x: Tensor, context: Tensor, shares: list[Tensor] | None = None) -> Tensor:
        """As the readable one."""
        q, k, v = (
            linear(given).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear, given in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        if shares is not None:
            shares.append(attention_shares(q, k))
        return self.to_out[0](attend(q, k, v, self.onednn).transpose(1, 2).flatten(2))


class GatedHalves(nn.Module):
    """`unet.GatedProjection` with the two halves of its map apart, so that nothing is copied."""

    def __init__(self, projection: GatedProjection, onednn: bool | None) -> None:
        super().__init__()
        weights, biases = projection.proj.weight.chunk(2), projection.proj.bias.chunk(2)
        self.value, self.gate = (FusedLinear(w, b, onednn) for w, b in zip(weights, biases, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, C) -> (rows, inner)."""
        return self.value.times(x, self.gate.gelu(x))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        halves = (self.value, self.gate)
        destination[f"{prefix}proj.weight"] = torch.cat([half.weight for half in halves])
        destination[f"{prefix}proj.bias"] = torch.cat([half.bias for half in halves if half.bias is not None])


class FastFeedForward(nn.Module):
    """`unet.FeedForward` over a few rows."""

    def __init__(self, mlp: FeedForward, onednn: bool | None = None) -> None:
        super().__init__()
        inward: Any = mlp.net["0"]
        outward: Any = mlp.net["2"]
        self.net = nn.ModuleDict({"0": GatedHalves(inward, onednn), "2": PackedLinear(outward, onednn)})

    def forward(self, x: Tensor) -> Tensor:
        """(rows, C) -> (rows, C)."""
        return self.net["2"](self.net["0"](x))


class FastTransformerBlock(nn.Module):
    """`unet.TransformerBlock` with sums in place, and its MLP `ROWS` tokens at a time. It overwrites its input."""

    def __init__(self, block: TransformerBlock, onednn: bool | None = None) -> None:
        super().__init__()
        self.norm1, self.attn1 = block.norm1, FastAttention(block.attn1, onednn)
        self.norm2, self.attn2 = block.norm2, FastAttention(block.attn2, onednn)
        self.norm3, self.ff = block.norm3, FastFeedForward(block.ff, onednn)

    def forward(self, x: Tensor, text: Tensor, shares: list[Tensor] | None = None) -> Tensor:
        """As the readable one."""
        x = x.contiguous()  # so that the parts below are views
        normed = self.norm1(x)
        x += self.attn1(normed, normed)
        x += self.attn2(self.norm2(x), text, shares)
        for rows in x.flatten(0, 1).split(ROWS):
            rows += self.ff(self.norm3(rows))
        return x


def fuse(network: Network, onednn: bool | None = None) -> Network:
    """Makes a U-Net or an autoencoder into its fast form, in place: a packed weight takes the plain one's place, so
    that memory never holds two of more than one layer. For inference, on the device where the network is.

    Its state dict stays what it was, its answers are equal but for rounding. onednn: as for `FusedConv`.
    """
    if isinstance(network, nn.Conv2d):
        raise TypeError("a network is made fast, not a single convolution")
    for name, child in network.named_children():
        network._modules[name] = _fast(child, onednn)
    return network


def _fast(module: nn.Module, onednn: bool | None) -> nn.Module:
    if isinstance(module, ResnetBlock):
        return FastResnetBlock(module, onednn)
    if isinstance(module, TransformerBlock):
        return FastTransformerBlock(module, onednn)
    if isinstance(module, nn.GroupNorm):
        return FastGroupNorm(module)
    if isinstance(module, nn.Linear):
        return PackedLinear(module, onednn)
    if isinstance(module, nn.Conv2d):
        if min(module.in_channels, module.out_channels) < 16:  # first and last ones: little to win, and `conv_in`
            return module.to(memory_format=torch.channels_last)  # tells callers the network's numbers
        return PackedConv(module, onednn)
    return fuse(module, onednn)
