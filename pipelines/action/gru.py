"""A recurrent brain, and one without a memory, for the stream that OadTR watches. torch only.

MiniROAD (An et al., ICCV 2023) showed that one GRU can match transformers at online action detection: an embedding, the
GRU, a linear head. The future heads are ours, so that the brains answer the same questions.

Letters: B batch, T chunks, F future chunks, C classes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import GRUConfig, NoMemoryConfig


class Recurrent(nn.Module):
    """Embedding, GRU, and a head for the current and all future chunks."""

    def __init__(self, config: GRUConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Linear(config.in_features, config.embedding)
        self.norm = nn.LayerNorm(config.embedding)
        self.gru = nn.GRU(config.embedding, config.width, batch_first=True)
        self.head = nn.Linear(config.width, config.classes)
        self.future_head = nn.Linear(config.width, config.future * config.classes)

    def forward(self, features: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """features (B, n, in_features), the newest chunk last -> logits (B, C), future (B, F, C) behind it.

        hidden: (B, n) bool, True where there is no chunk; such chunks must come before all others.
        """
        current, future, _ = self.run(features, None, hidden)
        return current[:, -1], future[:, -1]

    def run(
        self, features: Tensor, state: Tensor | None = None, hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Every chunk's answer: (B, n, C), (B, n, F, C), and the state (B, width) to go on from. state: (B, width)."""
        x = F.relu(self.norm(self.embedding(features)))
        x = F.dropout(x, self.config.dropout, self.training)
        before = None if state is None else state[None].contiguous()
        if hidden is None:
            states, last = self.gru(x, before)
            last = last[0]
        else:
            states, last = self._skipping(x, before, hidden)
        seen = F.dropout(F.relu(states), self.config.dropout, self.training)
        return self.head(seen), self.future_head(seen).unflatten(2, (self.config.future, -1)), last

    def _skipping(self, x: Tensor, state: Tensor | None, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Chunk by chunk, the state untouched by those that are not there."""
        now = x.new_zeros(1, len(x), self.config.width) if state is None else state
        states = []
        for step in range(x.shape[1]):
            _, new = self.gru(x[:, step : step + 1], now)
            now = torch.where(hidden[None, :, step, None], now, new)
            states.append(now[0])
        return torch.stack(states, 1), now[0]


class NoMemory(nn.Module):
    """The newest chunk alone, through hidden layers with ReLU."""

    def __init__(self, config: NoMemoryConfig) -> None:
        super().__init__()
        self.config = config
        sizes = [config.in_features, *[config.width] * config.layers]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(config.layers))
        self.head = nn.Linear(config.width, config.classes)
        self.future_head = nn.Linear(config.width, config.future * config.classes)

    def forward(self, features: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """features (B, n, in_features) -> logits (B, C), future (B, F, C) of the last chunk. hidden: as of the others,
        and without effect: the newest chunk is always there."""
        x = features[:, -1]
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.dropout(F.relu(norm(layer(x))), self.config.dropout, self.training)
        return self.head(x), self.future_head(x).unflatten(1, (self.config.future, -1))
