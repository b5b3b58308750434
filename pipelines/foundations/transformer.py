"""The Transformer of Vaswani et al. 2017: encoder, and encoder with decoder. Norms after each sum, as in the paper, or
before each branch.

Letters: B sequences, T steps of the target, S of the source, W width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import softmax_attention


class MultiHeadAttention(nn.Module):
    """Section 3.2.2: attention in `heads` subspaces at once."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} can't be shared by {heads} heads")
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.outward = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, causal: bool = False) -> Tensor:
        """Queries from x (B, T, W), keys and values from memory (B, S, W) -> (B, T, W)."""
        q, k, v = (
            layer(given).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, given in ((self.query, x), (self.key, memory), (self.value, memory))
        )
        return self.outward(softmax_attention(q, k, v, causal).transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """Section 3.3: max(0, x W1 + b1) W2 + b2."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.outward(F.relu(self.inward(x)))


class EncoderLayer(nn.Module):
    """Self-attention, then the feed-forward layer."""

    def __init__(self, width: int, heads: int, inner: int, norm_first: bool = False) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention, self.forward_layer = MultiHeadAttention(width, heads), FeedForward(width, inner)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        if self.norm_first:
            y = self.norms[0](x)
            x = x + self.attention(y, y, causal)
            return x + self.forward_layer(self.norms[1](x))
        x = self.norms[0](x + self.attention(x, x, causal))
        return self.norms[1](x + self.forward_layer(x))


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder's output, then the feed-forward layer."""

    def __init__(self, width: int, heads: int, inner: int, norm_first: bool = False) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention, self.cross = MultiHeadAttention(width, heads), MultiHeadAttention(width, heads)
        self.forward_layer = FeedForward(width, inner)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """x (B, T, W), memory (B, S, W)."""
        if self.norm_first:
            y = self.norms[0](x)
            x = x + self.attention(y, y, True)
            x = x + self.cross(self.norms[1](x), memory)
            return x + self.forward_layer(self.norms[2](x))
        x = self.norms[0](x + self.attention(x, x, True))
        x = self.norms[1](x + self.cross(x, memory))
        return self.norms[2](x + self.forward_layer(x))


class Encoder(nn.Module):
    """A stack of layers; norm first, a last norm ends it."""

    def __init__(self, width: int, heads: int, inner: int, layers: int, norm_first: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, heads, inner, norm_first) for _ in range(layers))
        self.norm = nn.LayerNorm(width) if norm_first else nn.Identity()

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        for layer in self.layers:
            x = layer(x, causal)
        return self.norm(x)


class Decoder(nn.Module):
    """A stack of layers that read an encoder's output; norm first, a last norm ends it."""

    def __init__(self, width: int, heads: int, inner: int, layers: int, norm_first: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads, inner, norm_first) for _ in range(layers))
        self.norm = nn.LayerNorm(width) if norm_first else nn.Identity()

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """x (B, T, W), memory (B, S, W) -> (B, T, W)."""
        for layer in self.layers:
            x = layer(x, memory)
        return self.norm(x)


class Transformer(nn.Module):
    """Encoder and decoder over tokens, with sines for places and one embedding for source, target and output (section
    3.4)."""

    def __init__(
        self, tokens: int, width: int, heads: int, inner: int, layers: int, norm_first: bool = False
    ) -> None:  # fmt: skip
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.encoder = Encoder(width, heads, inner, layers, norm_first)
        self.decoder = Decoder(width, heads, inner, layers, norm_first)

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, W)."""
        width = self.embedding.embedding_dim
        return self.embedding(tokens) * math.sqrt(width) + places(tokens.shape[1], width).to(tokens.device)

    def encode(self, source: Tensor) -> Tensor:
        """(B, S) int64 -> (B, S, W)."""
        return self.encoder(self.embed(source))

    def decode(self, target: Tensor, memory: Tensor) -> Tensor:
        """(B, T) int64 of the target so far -> (B, T, tokens) logits of the token after each."""
        return self.decoder(self.embed(target), memory) @ self.embedding.weight.T

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.decode(target, self.encode(source))

    @torch.no_grad()
    def greedy(self, source: Tensor, start: int, steps: int) -> Tensor:
        """(B, steps): the likeliest token after another, from `start` on."""
        memory = self.encode(source)
        target = torch.full((len(source), 1), start, dtype=torch.long, device=source.device)
        for _ in range(steps):
            following = self.decode(target, memory)[:, -1].argmax(dim=-1, keepdim=True)
            target = torch.cat([target, following], dim=1)
        return target[:, 1:]


def places(length: int, width: int) -> Tensor:
    """(length, width) sines and cosines in turn, section 3.5; width must be even."""
    rates = 10_000 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
