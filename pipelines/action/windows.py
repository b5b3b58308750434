"""A whole stream through a network at once, and a memory whose order is drawn by lot. torch only.

Letters: N chunks of a stream, T that a network was built for, F future chunks, C classes.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from .config import BrainConfig
from .gru import Recurrent


def config_of(network: nn.Module) -> BrainConfig:
    """What a brain's network was built from."""
    return cast(BrainConfig, network.config)


def windows(features: Tensor, chunks: int) -> tuple[Tensor, Tensor]:
    """The window behind every chunk: (N, in_features) -> (N, T, in_features), a view, and (N, T) bool, True where it
    reaches back before the stream began."""
    missing = chunks - 1
    padded = torch.cat((features.new_zeros(missing, features.shape[1]), features))
    before = torch.arange(len(padded), device=features.device) < missing
    return padded.unfold(0, chunks, 1).transpose(1, 2), before.unfold(0, chunks, 1)


def run_sequence(network: nn.Module, features: Tensor, batch: int = 64) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and (N, F, C) behind every chunk of a stream (N, in_features): window by window, or of a GRU with
    the state that goes through all of it."""
    config = config_of(network)
    if len(features) == 0:
        return features.new_zeros(0, config.classes), features.new_zeros(0, config.future, config.classes)
    if isinstance(network, Recurrent):
        now, later, _ = network.run(features[None])
        return now[0], later[0]
    seen, before = windows(features, config.chunks)
    parts = []
    for at in range(0, len(features), batch):
        hidden = before[at : at + batch] if at < config.chunks - 1 else None
        parts.append(network(seen[at : at + batch], hidden))
    return torch.cat([now for now, _ in parts]), torch.cat([later for _, later in parts])


def shuffle(count: int, seed: int) -> Tensor:
    """The order in which a shuffled memory's chunks come: (count,) int64, the newest in its place."""
    drawn = torch.randperm(count - 1, generator=torch.Generator().manual_seed(seed))
    return torch.cat((drawn, torch.tensor([count - 1])))
