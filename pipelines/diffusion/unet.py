"""The conditional U-Net: a noisy latent, a time and a text to a prediction of the noise or the velocity.

Rombach et al. 2022, section 3.3 and appendix E.2.1; the time embedding is Ho et al. 2020's, the transformer block
Vaswani et al. 2017's with a gated MLP (Shazeer 2020). One class covers Stable Diffusion 1.x and 2.x and their small
variants, as the published `config.json` of each describes it.

Shapes: B batch, L latent channels, H and W the latent's sides, C channels, N = H * W positions, T text tokens,
D text width, A heads, K = C / A, E width of the time embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Downsample, ResnetBlock, Upsample
from .config import CROSS_DOWN, CROSS_MID, CROSS_UP, DOWN, UP, UNetConfig


def timestep_embedding(steps: Tensor, width: int, flip_sin_to_cos: bool = True, freq_shift: float = 0) -> Tensor:
    """Sines and cosines at geometrically spaced frequencies, from 1 down to 1/10000. (B,) -> (B, width) float32."""
    half = width // 2
    exponents = -math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=steps.device) / (half - freq_shift)
    angles = steps.float()[:, None] * exponents.exp()[None]  # (B, width / 2)
    waves = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    return torch.cat(waves, dim=-1)


def guidance_embedding(scales: Tensor, width: int) -> Tensor:
    """Guidance scales for a network that was taught to follow them (Luo et al. 2023, section 4.2): a thousand times
    the scale less one, as sines, then cosines, at frequencies from 1 down to 1/10000. (B,) -> (B, width) float32."""
    half = width // 2
    step = torch.tensor(10000.0).log() / (half - 1)  # in float32, as they were taught: the angles go into the thousands
    frequencies = (-step * torch.arange(half)).exp().to(scales.device)
    angles = 1000.0 * (scales.float()[:, None] - 1.0) * frequencies  # (B, width / 2)
    return F.pad(torch.cat((angles.sin(), angles.cos()), dim=-1), (0, width % 2))


@dataclass
class Record:
    """Where the cross-attentions looked: a map a transformer block, in the order in which they run.

    Each is (B, H, W, T) float32 at that block's own height and width: the share of a cell's attention that each token
    gets, averaged over the heads. The shares of a cell sum to 1.
    """

    cross_attention: list[Tensor] = field(default_factory=list)


class TimestepEmbedding(nn.Module):
    """Two layers over the sinusoids, and, for LCM, over an embedded guidance scale added in front."""

    def __init__(self, width: int, out: int, cond_width: int | None) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, out)
        self.linear_2 = nn.Linear(out, out)
        self.cond_proj = nn.Linear(cond_width, width, bias=False) if cond_width is not None else None

    def forward(self, waves: Tensor, cond: Tensor | None = None) -> Tensor:
        """(B, width) -> (B, E)."""
        if self.cond_proj is not None and cond is not None:
            waves = waves + self.cond_proj(cond)
        return self.linear_2(F.silu(self.linear_1(waves)))


class Attention(nn.Module):
    """Queries from the picture; keys and values from the picture itself or from the text."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, context: Tensor, shares: list[Tensor] | None = None) -> Tensor:
        """x: (B, N, C); context: (B, N, C) or (B, T, D) -> (B, N, C). shares: gets what `Record` keeps, (B, N, T)."""
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, A, N, K)
        k = self.to_k(context).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, A, T, K)
        v = self.to_v(context).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if shares is not None:
            shares.append(attention_shares(q, k))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.to_out[0](mixed.transpose(1, 2).flatten(2))


def attention_shares(q: Tensor, k: Tensor) -> Tensor:
    """Softmax attention's weights, averaged over the heads, beside the fused product, which does not give them out.
    q (B, A, N, K), k (B, A, T, K) -> (B, N, T) float32."""
    scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(2, 3)  # (B, A, N, T)
    return scores.softmax(dim=-1).mean(dim=1)


class GatedProjection(nn.Module):
    """GEGLU: one half of a linear map gates the other."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Gated, four times as wide inside. The names `net.0` and `net.2` are the published ones (1 was a dropout)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"0": GatedProjection(width, 4 * width), "2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        return self.net["2"](self.net["0"](x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, MLP, each after a normalisation and beside a skip."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, context_width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, text: Tensor, shares: list[Tensor] | None = None) -> Tensor:
        """x: (B, N, C); text: (B, T, D) -> (B, N, C)."""
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), text, shares)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block over positions, between projections that are 1x1 convolutions or linear maps."""

    def __init__(self, channels: int, context_width: int, heads: int, groups: int, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, context_width, heads)])
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, text: Tensor, record: Record | None = None) -> Tensor:
        """x: (B, C, H, W); text: (B, T, D) -> (B, C, H, W)."""
        h, size = self.norm(x), x.shape[2:]
        if self.linear:
            tokens = self.proj_in(h.flatten(2).transpose(1, 2))  # (B, N, C)
        else:
            tokens = self.proj_in(h).flatten(2).transpose(1, 2)
        shares: list[Tensor] | None = None if record is None else []
        for block in self.transformer_blocks:
            tokens = block(tokens, text, shares)
        if record is not None and shares is not None:
            record.cross_attention += [share.unflatten(1, size) for share in shares]
        if self.linear:
            return x + self.proj_out(tokens).transpose(1, 2).unflatten(2, size)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, size))


class DownBlock(nn.Module):
    """Residual blocks at one size, each followed by a transformer where the level has attention, then a halving."""

    def __init__(self, cfg: UNetConfig, level: int, time_width: int) -> None:
        super().__init__()
        c_out = cfg.block_out_channels[level]
        c_in = cfg.block_out_channels[max(level - 1, 0)]
        widths = [c_in] + [c_out] * (cfg.layers_per_block - 1)
        self.resnets = nn.ModuleList([_resnet(cfg, c, c_out, time_width) for c in widths])
        kind = cfg.down_block_types[level]
        self.attentions = _transformers(cfg, level, len(widths)) if _has_attention(kind, CROSS_DOWN, DOWN) else None
        last = level == len(cfg.block_out_channels) - 1
        self.downsamplers = None if last else nn.ModuleList([Downsample(c_out, symmetric=True)])

    def forward(
        self, x: Tensor, emb: Tensor, text: Tensor, record: Record | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The features, and all intermediate ones for the way up."""
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, emb)
            if self.attentions is not None:
                x = self.attentions[i](x, text, record)
            skips.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    """Residual, transformer, residual at the coarsest size."""

    def __init__(self, cfg: UNetConfig, time_width: int) -> None:
        super().__init__()
        channels = cfg.block_out_channels[-1]
        self.resnets = nn.ModuleList([_resnet(cfg, channels, channels, time_width) for _ in range(2)])
        self.attentions = _transformers(cfg, len(cfg.block_out_channels) - 1, 1)

    def forward(self, x: Tensor, emb: Tensor, text: Tensor, record: Record | None = None) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, emb), text, record), emb)


class UpBlock(nn.Module):
    """Residual blocks over features joined with those of the way down, transformers as there, then a doubling."""

    def __init__(self, cfg: UNetConfig, level: int, time_width: int) -> None:
        super().__init__()
        widths = cfg.block_out_channels
        c_out, layers = widths[level], cfg.layers_per_block + 1
        below, above = widths[min(level + 1, len(widths) - 1)], widths[max(level - 1, 0)]
        features = [below] + [c_out] * (layers - 1)
        skips = [c_out] * (layers - 1) + [above]  # the last is the level above's, halved, or conv_in's
        self.resnets = nn.ModuleList(
            [_resnet(cfg, a + b, c_out, time_width) for a, b in zip(features, skips, strict=True)]
        )
        kind = cfg.up_block_types[len(widths) - 1 - level]
        self.attentions = _transformers(cfg, level, layers) if _has_attention(kind, CROSS_UP, UP) else None
        self.upsamplers = nn.ModuleList([Upsample(c_out)]) if level > 0 else None

    def forward(
        self, x: Tensor, skips: list[Tensor], emb: Tensor, text: Tensor, record: Record | None = None
    ) -> Tensor:
        """Takes its skips off the end of the list; doubles to the size of the next one waiting there."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(torch.cat((x, skips.pop()), dim=1), emb)
            if self.attentions is not None:
                x = self.attentions[i](x, text, record)
        return x if self.upsamplers is None else self.upsamplers[0](x, skips[-1].shape[2:])


class UNet(nn.Module):
    """The denoiser. Latents are scaled ones; times are the training schedule's steps, 0 the cleanest."""

    def __init__(self, cfg: UNetConfig) -> None:
        super().__init__()
        if cfg.mid_block_type not in (CROSS_MID, None):
            raise ValueError(f"mid_block_type {cfg.mid_block_type!r} isn't built here")
        self.cfg = cfg
        widths, levels = cfg.block_out_channels, range(len(cfg.block_out_channels))
        time_width = 4 * widths[0]
        self.conv_in = nn.Conv2d(cfg.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], time_width, cfg.time_cond_proj_dim)
        self.down_blocks = nn.ModuleList([DownBlock(cfg, level, time_width) for level in levels])
        self.mid_block = MidBlock(cfg, time_width) if cfg.mid_block_type else None
        self.up_blocks = nn.ModuleList([UpBlock(cfg, level, time_width) for level in reversed(levels)])
        self.conv_norm_out = nn.GroupNorm(cfg.norm_num_groups, widths[0], eps=cfg.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], cfg.out_channels, 3, padding=1)

    def forward(
        self, latents: Tensor, steps: Tensor, text: Tensor, guidance: Tensor | None = None, record: Record | None = None
    ) -> Tensor:
        """latents: (B, L, H, W); steps: (B,); text: (B, T, D); guidance: (B, cond width), see `guidance_embedding`;
        record: gets where the cross-attentions look -> (B, L, H, W)."""
        cfg = self.cfg
        waves = timestep_embedding(steps, cfg.block_out_channels[0], cfg.flip_sin_to_cos, cfg.freq_shift)
        emb = F.silu(self.time_embedding(waves.to(latents.dtype), guidance))  # (B, E): every user activates it first
        x = self.conv_in(latents)  # (B, C, H, W)
        skips = [x]
        for block in self.down_blocks:
            x, more = block(x, emb, text, record)
            skips += more
        if self.mid_block is not None:
            x = self.mid_block(x, emb, text, record)
        for block in self.up_blocks:
            x = block(x, skips, emb, text, record)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def _resnet(cfg: UNetConfig, c_in: int, c_out: int, time_width: int) -> ResnetBlock:
    return ResnetBlock(c_in, c_out, time_width, cfg.norm_num_groups, cfg.norm_eps)


def _transformers(cfg: UNetConfig, level: int, count: int) -> nn.ModuleList:
    channels = cfg.block_out_channels[level]
    return nn.ModuleList(
        [
            SpatialTransformer(
                channels, cfg.cross_attention_dim, cfg.heads(level), cfg.norm_num_groups, cfg.use_linear_projection
            )
            for _ in range(count)
        ]
    )


def _has_attention(kind: str, with_it: str, without: str) -> bool:
    if kind not in (with_it, without):
        raise ValueError(f"block type {kind!r} isn't built here, only {with_it} and {without}")
    return kind == with_it
