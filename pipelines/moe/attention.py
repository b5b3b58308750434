"""Causal self-attention with grouped queries, rotary positions and a sliding window.

Letters: B batch, T new tokens, S all tokens so far, D width, H heads, G key-value heads, d head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import KeyValueCache
from .config import MoeConfig
from .norm import RMSNorm
from .rotary import rotate


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023): H / G heads share a key-value head."""

    def __init__(self, config: MoeConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        inner, shared = config.heads * config.head_width, config.key_value_heads * config.head_width
        self.query = nn.Linear(config.width, inner, bias=False)
        self.key = nn.Linear(config.width, shared, bias=False)
        self.value = nn.Linear(config.width, shared, bias=False)
        self.out = nn.Linear(inner, config.width, bias=False)
        if config.query_key_norm:
            self.query_norm = RMSNorm(inner, config.norm_epsilon)
            self.key_norm = RMSNorm(shared, config.norm_epsilon)
        self.scale = config.attention_multiplier or config.head_width**-0.5

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], allowed: Tensor | None, cache: KeyValueCache | None
    ) -> Tensor:
        """x (B, T, D); turn: cosine and sine (T, d); allowed: bool, broadcastable to (B, H, T, S), or None where each
        token sees all before it. Returns (B, T, D)."""
        queries, keys, values = self.projected(x)
        queries, keys = rotate(queries, *turn), rotate(keys, *turn)
        if cache is not None:
            keys, values = cache.extend(self.layer, keys, values)
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, allowed, is_causal=allowed is None and x.shape[1] > 1, scale=self.scale,
            enable_gqa=keys.shape[1] != queries.shape[1],
        )  # fmt: skip
        return self.out(mixed.transpose(1, 2).flatten(2))

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, d), keys and values (B, G, T, d), before they are turned."""
        found = [self.query(x), self.key(x), self.value(x)]
        if self.config.query_key_norm:
            found[0], found[1] = self.query_norm(found[0]), self.key_norm(found[1])
        if self.config.clip is not None:
            found = [each.clamp(-self.config.clip, self.config.clip) for each in found]
        queries, keys, values = (each.unflatten(-1, (-1, self.config.head_width)).transpose(1, 2) for each in found)
        return queries, keys, values


def sees(start: int, count: int, window: int | None, device: torch.device | str = "cpu") -> Tensor | None:
    """Which of S = start + count tokens each of the last `count` sees: (T, S) bool, or None where `is_causal` or no
    mask at all says the same."""
    total = start + count
    if (start == 0 or count == 1) and (window is None or total <= window):
        return None
    at = torch.arange(start, total, device=device)[:, None]
    back = at - torch.arange(total, device=device)
    return (back >= 0) & (back < (window or total))
