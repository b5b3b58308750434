"""OadTR: online action detection with transformers. torch only; the readable path, which streaming.py is held to.

Wang et al., ICCV 2021. An encoder reads the chunks of the past and, behind them, a task token; a decoder's queries ask
it for the chunks to come; the current action is told from the task token and the mean of what the queries found.

Letters: B batch, T chunks, S = T + 1 tokens, F future queries, C classes, D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import linear_attention
from .config import Attention, OadTRConfig


@dataclass
class Record:
    """What attention looked at. encoder: (B, H, S, S) of every layer; cross: (B, H, F, S) of every decoder layer."""

    encoder: list[Tensor] = field(default_factory=list)
    cross: list[Tensor] = field(default_factory=list)


class EncoderLayer(nn.Module):
    """Every token looks at every other one; the norm comes before each part (ViT's layer)."""

    def __init__(self, width: int, heads: int, hidden: int, attention: Attention, dropout: float) -> None:
        super().__init__()
        self.heads, self.attention, self.dropout = heads, attention, dropout
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, hidden: Tensor | None = None, record: Record | None = None) -> Tensor:
        """x (B, S, D) -> (B, S, D). hidden: (B, S) bool, True where there is no chunk."""
        found = self._attend(self.qkv(self.norm1(x)), hidden, record)
        x = x + self._drop(self.out(found))
        return x + self._drop(self.linear2(self._drop(F.gelu(self.linear1(self.norm2(x))))))

    def _attend(self, qkv: Tensor, hidden: Tensor | None, record: Record | None) -> Tensor:
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, S, D / H) each
        if record is not None:
            weights = linear_attention.weights(self.attention, q, k, hidden)
            record.encoder.append(weights)
            return (weights @ v).transpose(1, 2).flatten(2)
        rate = self.dropout if self.training else 0.0
        return linear_attention.attend(self.attention)(q, k, v, hidden, False, rate).transpose(1, 2).flatten(2)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class MultiHead(nn.Module):
    """Attention of the decoder."""

    def __init__(self, width: int, heads: int, attention: Attention, dropout: float, causal: bool) -> None:
        super().__init__()
        self.heads, self.attention, self.dropout, self.causal = heads, attention, dropout, causal
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, memory: Tensor, hidden: Tensor | None = None, weights: list[Tensor] | None = None
    ) -> Tensor:
        """x (B, F, D), memory (B, S, D) -> (B, F, D). weights: a list that gets (B, H, F, S)."""
        projected = (self.query(x), self.key(memory), self.value(memory))
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in projected)  # (B, H, F or S, D / H)
        if weights is not None:
            weights.append(linear_attention.weights(self.attention, q, k, hidden, self.causal))
            found = weights[-1] @ v
        else:
            rate = self.dropout if self.training else 0.0
            found = linear_attention.attend(self.attention)(q, k, v, hidden, self.causal, rate)
        return self.out(found.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Future queries look at those before them, then at the past; the norm comes after each sum."""

    def __init__(self, width: int, heads: int, hidden: int, attention: Attention, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.self_attention = MultiHead(width, heads, attention, dropout, causal=True)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attention = MultiHead(width, heads, attention, dropout, causal=False)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, memory: Tensor, hidden: Tensor | None = None, weights: list[Tensor] | None = None
    ) -> Tensor:
        """x (B, F, D), memory (B, S, D) -> (B, F, D). weights: a list that gets cross-attention's (B, H, F, S)."""
        x = self.norm1(x + self._drop(self.self_attention(x, x)))
        x = self.norm2(x + self._drop(self.cross_attention(x, memory, hidden, weights)))
        return self.norm3(x + self._drop(self.linear2(self._drop(F.gelu(self.linear1(x))))))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class OadTR(nn.Module):
    """The whole network."""

    def __init__(self, config: OadTRConfig) -> None:
        super().__init__()
        self.config = config
        width, kind, dropout = config.width, config.attention, config.dropout
        self.encoding = nn.Linear(config.in_features, width)
        self.task_token = nn.Parameter(torch.zeros(1, 1, width))
        # Places count from the oldest chunk of a full window; the last is the task token's.
        self.positions = nn.Parameter(torch.empty(config.chunks + 1, width))
        self.encoder = nn.ModuleList(
            EncoderLayer(width, config.heads, config.hidden, kind, dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.empty(1, config.future, width))
        self.decoder = nn.ModuleList(
            DecoderLayer(width, config.decoder_heads, config.decoder_hidden, kind, dropout)
            for _ in range(config.decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.head = nn.Linear(2 * width, config.classes)
        self.future_head = nn.Linear(width, config.classes)
        for learned in (self.positions, self.queries):
            nn.init.normal_(learned, std=0.02)

    def forward(
        self, features: Tensor, hidden: Tensor | None = None, record: Record | None = None
    ) -> tuple[Tensor, Tensor]:
        """features: (B, n, in_features), the newest of 1 <= n <= T chunks last -> logits (B, C), future (B, F, C).

        Fewer chunks than T stand at the last places, as if older ones were hidden. hidden: (B, n) bool, True where
        there is no chunk (a memory that is cut, a stream that has just begun). record: gets the attention weights.
        ValueError: no chunk, or more than T.
        """
        memory = self.encode(features, hidden, record)
        if hidden is not None:
            hidden = F.pad(hidden, (0, 1))  # the task token is always there
        x = self.queries.expand(len(memory), -1, -1)
        for layer in self.decoder:
            x = layer(x, memory, hidden, None if record is None else record.cross)
        x = F.dropout(self.decoder_norm(x), self.config.dropout, self.training)
        return self.head(torch.cat((memory[:, -1], x.mean(1)), 1)), self.future_head(x)

    def encode(self, features: Tensor, hidden: Tensor | None = None, record: Record | None = None) -> Tensor:
        """The past as the decoder sees it: (B, n, in_features) -> (B, n + 1, D), the task token last."""
        count = features.shape[1]
        if not 1 <= count <= self.config.chunks:
            raise ValueError(f"{count} chunks, where 1 to {self.config.chunks} fit")
        token = self.task_token.expand(len(features), -1, -1)
        x = torch.cat((self.encoding(features), token), 1) + self.positions[-count - 1 :]
        x = F.dropout(x, self.config.dropout, self.training)
        hidden = None if hidden is None else F.pad(hidden, (0, 1))
        for layer in self.encoder:
            x = layer(x, hidden, record)
        return self.norm(x)
