"""The key-value cache: room for the whole answer is taken once, and a step writes into its place.

Letters: B batch, G key-value heads, S positions, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import MoeConfig


class KeyValueCache:
    """Keys and values of all layers, for one call. `length` positions are filled.

    It belongs to a call and never to a model: two visitors would read each other's text.
    """

    def __init__(
        self,
        config: MoeConfig,
        room: int,
        batch: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """room: positions that there will ever be."""
        shape = (config.layers, batch, config.key_value_heads, room, config.head_width)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.room, self.length = room, 0

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, G, T, d) behind what is there; returns all positions so far, (B, G, S, d), as views.

        `length` moves on only with `advance`, after the last layer. ValueError: there is no room left.
        """
        end = self.length + keys.shape[2]
        if end > self.room:
            raise ValueError(f"the cache has room for {self.room} positions, {end} are needed")
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, count: int) -> None:
        """`count` positions were written by every layer."""
        self.length += count

    def cut(self, length: int) -> None:
        """Forget all positions from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"{length} is not within the {self.length} positions of the cache")
        self.length = length
