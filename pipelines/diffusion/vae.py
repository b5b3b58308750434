"""The KL autoencoder: pictures to latents an eighth of the side, and back (Rombach et al. 2022, section 3.1).

Shapes: B batch, H and W the picture's sides, h = H / factor and w = W / factor the latent's, L latent channels,
C channels inside, N = h * w positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Downsample, ResnetBlock, Upsample
from .config import VAEConfig

EPS = 1e-6


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents: what the encoder says of a picture. Both tensors are (B, L, h, w)."""

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw, with the noise made by a CPU generator so that a seed means one picture everywhere."""
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean)
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """Divergence from a unit Gaussian in nats, summed over each latent: (B,)."""
        terms = self.mean.square() + self.logvar.exp() - 1.0 - self.logvar
        return 0.5 * terms.sum(dim=(1, 2, 3))


class SpatialAttention(nn.Module):
    """Self-attention over all positions with one head as wide as the features."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, N, C)
        q, k, v = (proj(tokens)[:, None] for proj in (self.to_q, self.to_k, self.to_v))  # each (B, 1, N, C)
        mixed = self.to_out[0](F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + mixed.transpose(1, 2).unflatten(2, x.shape[2:])


class MidBlock(nn.Module):
    """Residual, attention (unless left out), residual, at the latent's size."""

    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, None, groups, EPS) for _ in range(2)])
        self.attentions = nn.ModuleList([SpatialAttention(channels, groups)] if attention else [])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class DownBlock(nn.Module):
    """Residual blocks at one size, then a halving unless this is the last level."""

    def __init__(self, c_in: int, c_out: int, layers: int, groups: int, last: bool) -> None:
        super().__init__()
        widths = [c_in] + [c_out] * layers
        self.resnets = nn.ModuleList([ResnetBlock(a, b, None, groups, EPS) for a, b in pairwise(widths)])
        self.downsamplers = nn.ModuleList([] if last else [Downsample(c_out, symmetric=False)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """Residual blocks at one size, then a doubling unless this is the last level."""

    def __init__(self, c_in: int, c_out: int, layers: int, groups: int, last: bool) -> None:
        super().__init__()
        widths = [c_in] + [c_out] * layers
        self.resnets = nn.ModuleList([ResnetBlock(a, b, None, groups, EPS) for a, b in pairwise(widths)])
        self.upsamplers = nn.ModuleList([] if last else [Upsample(c_out)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Pictures to the posterior's parameters."""

    def __init__(self, cfg: VAEConfig) -> None:
        super().__init__()
        widths, groups = cfg.block_out_channels, cfg.norm_num_groups
        self.conv_in = nn.Conv2d(cfg.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            [
                DownBlock(a, b, cfg.layers_per_block, groups, last=i == len(widths) - 1)
                for i, (a, b) in enumerate(pairwise((widths[0], *widths)))
            ]
        )
        self.mid_block = MidBlock(widths[-1], groups, cfg.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * cfg.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 2L, h, w)."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)  # (B, C, h, w)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Latents to pictures: the encoder mirrored, with one more residual block a level."""

    def __init__(self, cfg: VAEConfig) -> None:
        super().__init__()
        widths, groups = cfg.block_out_channels[::-1], cfg.norm_num_groups
        self.conv_in = nn.Conv2d(cfg.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups, cfg.mid_block_add_attention)
        self.up_blocks = nn.ModuleList(
            [
                UpBlock(a, b, cfg.layers_per_block + 1, groups, last=i == len(widths) - 1)
                for i, (a, b) in enumerate(pairwise((widths[0], *widths)))
            ]
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], cfg.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, L, h, w) -> (B, 3, H, W)."""
        x = self.mid_block(self.conv_in(z))  # (B, C, h, w)
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    """Encoder and decoder with a Gaussian between them. Pictures are RGB in [-1, 1]; latents are not yet scaled."""

    def __init__(self, cfg: VAEConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)
        self.quant_conv = nn.Conv2d(2 * cfg.latent_channels, 2 * cfg.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(cfg.latent_channels, cfg.latent_channels, 1)

    def encode(self, pixels: Tensor) -> Posterior:
        """(B, 3, H, W) in [-1, 1], sides multiples of the factor -> a Gaussian over (B, L, h, w)."""
        mean, logvar = self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    def decode(self, latents: Tensor) -> Tensor:
        """(B, L, h, w) -> (B, 3, H, W), about [-1, 1] and not clipped."""
        return self.decoder(self.post_quant_conv(latents))
