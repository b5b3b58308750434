"""The tiny autoencoder (Bohan 2023, TAESD): the KL autoencoder's latents with a ninth of the multiplications to
encode and an eighteenth to decode, for previews.

Plain convolutions with ReLU, no normalisation, taught to give what the large decoder gives.

Shapes: B batch, H and W the picture's sides, h = H / 8 and w = W / 8 the latent's, L latent channels, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import TAESDConfig

LIMIT = 3.0  # latents are bent to stay below this


class Block(nn.Module):
    """Three convolutions beside a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(channels), nn.ReLU(), _conv(channels), nn.ReLU(), _conv(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return torch.relu(self.conv(x) + x)


class Encoder(nn.Module):
    """Blocks at each size, with a halving before all but the first."""

    def __init__(self, cfg: TAESDConfig) -> None:
        super().__init__()
        widths = cfg.encoder_block_out_channels
        layers: list[nn.Module] = []
        for level, (width, count) in enumerate(zip(widths, cfg.num_encoder_blocks, strict=True)):
            if level == 0:
                layers.append(nn.Conv2d(cfg.in_channels, width, 3, padding=1))
            else:
                layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False))
            layers += [Block(width) for _ in range(count)]
        layers.append(nn.Conv2d(widths[-1], cfg.latent_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, L, h, w). Inside, pictures are in [0, 1]."""
        return self.layers((pixels + 1.0) / 2.0)


class Decoder(nn.Module):
    """Blocks at each size, with a doubling after all but the last."""

    def __init__(self, cfg: TAESDConfig) -> None:
        super().__init__()
        widths = cfg.decoder_block_out_channels
        layers: list[nn.Module] = [nn.Conv2d(cfg.latent_channels, widths[0], 3, padding=1), nn.ReLU()]
        for level, (width, count) in enumerate(zip(widths, cfg.num_decoder_blocks, strict=True)):
            layers += [Block(width) for _ in range(count)]
            if level < len(widths) - 1:
                layers += [nn.Upsample(scale_factor=2, mode="nearest"), _conv(width, bias=False)]
        layers.append(nn.Conv2d(widths[-1], cfg.out_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, L, h, w) -> (B, 3, H, W), about [-1, 1] and not clipped."""
        return self.layers(LIMIT * torch.tanh(latents / LIMIT)) * 2.0 - 1.0


class AutoencoderTiny(nn.Module):
    """Encoder and decoder. Latents are the scaled ones, which the U-Net works on; pictures are RGB in [-1, 1]."""

    def __init__(self, cfg: TAESDConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, L, h, w)."""
        return self.encoder(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, L, h, w) -> (B, 3, H, W), about [-1, 1] and not clipped."""
        return self.decoder(latents)


def _conv(channels: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
