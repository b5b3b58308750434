"""Small byte-level language models, equal but for their attention: what each kind costs in bits.

Letters: B texts, T bytes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Flash, GatedAttentionUnit, linear_attention, softmax_attention
from .attention_config import LanguageConfig
from .transformer import places

BYTES = 256


class HeadedAttention(nn.Module):
    """Attention of several heads, by softmax or linear, between an inward and an outward matrix."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.inward = nn.Linear(config.width, 3 * config.width)
        self.outward = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inward(x).unflatten(-1, (3, self.config.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, T, *)
        if self.config.kind == "softmax":
            y = softmax_attention(q, k, v, causal=True)
        else:
            feature = "elu" if self.config.kind == "elu" else "softmax"
            k = k.clamp(-20, 20)  # the causal softmax feature takes exp of it as it is
            y = linear_attention(q, k, v, True, feature, self.config.chunk)
        return self.outward(y.transpose(1, 2).flatten(-2))


class Layer(nn.Module):
    """Norm first: x + attention(norm(x)), and but for the gated units x + feed-forward(norm(x))."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        width = config.width
        self.norm = nn.LayerNorm(width)
        self.gated = config.kind in ("gau", "flash")
        if self.gated:
            unit = GatedAttentionUnit if config.kind == "gau" else Flash
            self.mix: nn.Module = unit(width, 2 * width, config.shared, config.chunk)
        else:
            self.mix = HeadedAttention(config)
            self.forward_norm = nn.LayerNorm(width)
            self.forward_layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            return x + self.mix(self.norm(x), True)
        x = x + self.mix(self.norm(x))
        return x + self.forward_layers(self.forward_norm(x))


class ByteModel(nn.Module):
    """Bytes in, logits of the next byte out. Sines for places (Vaswani et al., section 3.5); tied embedding."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(BYTES, config.width)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        count = config.layers * (2 if config.kind in ("gau", "flash") else 1)
        self.layers = nn.ModuleList(Layer(config) for _ in range(count))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 of 0 to 255 -> (B, T, 256) logits of the byte after each."""
        # The sines divided by 8 are about as large as the embedding, whose deviation is width^-1/2.
        x = self.embedding(tokens) + sines(tokens.shape[1], self.config.width, tokens.device) / 8
        for layer in self.layers:
            x = layer(x)
        return self.norm(x) @ self.embedding.weight.T

    def entropy(self, tokens: Tensor) -> Tensor:
        """(B, T - 1) nats of each byte but the first, given those before it."""
        logits = self(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").unflatten(
            0, (len(tokens), -1)
        )


def sines(length: int, width: int, device: torch.device) -> Tensor:
    """(length, width): `transformer.places`, all sines first and then all cosines."""
    found = places(length, width).to(device)
    return torch.cat([found[:, 0::2], found[:, 1::2]], dim=-1)
