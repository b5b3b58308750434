"""DETR's encoder and decoder layers. torch only.

Carion et al. 2020, section A.3: layers with the norm after the sum. Positions are added to queries and keys in every
layer, never to values.

Letters: B batch, T tokens that ask, S tokens that are looked at, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear maps with ReLU between them."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """(..., first size) -> (..., last size)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class Attention(nn.Module):
    """Multi-head attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None = None, silent: Collection[int] = ()
    ) -> Tensor:
        """query (B, T, D), key and value (B, S, D) -> (B, T, D), by the fused kernel unless heads are silenced.

        hidden: (B, S) or (1, S) bool, True where nothing may look; never all of a row. silent: heads whose
        output is zeroed.
        """
        if silent:
            return self.plain(query, key, value, hidden, silent)[0]
        q, k, v = self._split(query, key, value)
        mask = None if hidden is None else ~hidden[:, None, None, :]  # this kernel's True means "may look"
        return self._join(F.scaled_dot_product_attention(q, k, v, mask))

    def plain(
        self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None = None, silent: Collection[int] = ()
    ) -> tuple[Tensor, Tensor]:
        """The same written out, and the weights (B, H, T, S), rows of which sum to 1."""
        q, k, v = self._split(query, key, value)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        if hidden is not None:
            scores = scores.masked_fill(hidden[:, None, None, :], -torch.inf)
        weights = scores.softmax(-1)
        heads = weights @ v
        if silent:
            heads = heads.clone()
            heads[:, sorted(silent)] = 0
        return self._join(heads), weights

    def _split(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        # (B, T, D) -> (B, H, T, D / H)
        projected = (self.query(query), self.key(key), self.value(value))
        return [x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in projected]

    def _join(self, heads: Tensor) -> Tensor:
        return self.out(heads.transpose(1, 2).flatten(2))  # (B, H, T, D / H) -> (B, T, D)


class EncoderLayer(nn.Module):
    """Every cell of the picture looks at every other one."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, feedforward)
        self.linear2 = nn.Linear(feedforward, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor, hidden: Tensor | None = None) -> Tensor:
        """x (B, S, D), positions (B or 1, S, D) -> (B, S, D). hidden: (B, S) bool, True where padded."""
        placed = x + positions
        x = self.norm1(x + self.self_attention(placed, placed, x, hidden))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class DecoderLayer(nn.Module):
    """Object queries look at each other, then at the picture."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, feedforward)
        self.linear2 = nn.Linear(feedforward, width)
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self,
        x: Tensor,
        queries: Tensor,
        memory: Tensor,
        placed: Tensor,
        hidden: Tensor | None = None,
        dropped: Tensor | None = None,
        silent: Collection[int] = (),
        alone: bool = False,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """x (B, Q, D) what the slots hold, queries (1, Q, D) what they ask for -> (B, Q, D).

        memory: (B, S, D) the encoded picture; placed: the same with its positions added. hidden: (B, S) bool, True
        where padded. dropped: (1, Q) bool, slots that no slot sees. silent: heads of cross-attention that are zeroed.
        alone: skip self-attention. weights: a list that gets this layer's (B, H, Q, Q), unless alone, and (B, H, Q, S).
        """
        asked = x + queries
        if not alone:
            x = x + self._attend(self.self_attention, asked, asked, x, dropped, (), weights)
        x = self.norm1(x)
        x = self.norm2(x + self._attend(self.cross_attention, x + queries, placed, memory, hidden, silent, weights))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))

    @staticmethod
    def _attend(
        attention: Attention, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None,
        silent: Collection[int], weights: list[Tensor] | None,
    ) -> Tensor:  # fmt: skip
        if weights is None:
            return attention(query, key, value, hidden, silent)
        result, found = attention.plain(query, key, value, hidden, silent)
        weights.append(found)
        return result
