"""Which experts work for a token, and with which weight.

Letters: N tokens, D width, E experts, k of them active.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import MoeConfig


@dataclass(frozen=True)
class Routing:
    """What a router decided. logits (N, E) float32; experts (N, k) int64, the strongest first; weights (N, k);
    kept (N, k) bool, False where an expert was full (Switch), or None where nothing is dropped."""

    logits: Tensor
    experts: Tensor
    weights: Tensor
    kept: Tensor | None = None


@dataclass(frozen=True)
class Steered:
    """A router's decision, changed from outside.

    logits (N, E): in place of the router's own. preference (N, E) or None: added where the experts are picked, but not
    where they are weighed. active: how many work.
    """

    logits: Tensor
    preference: Tensor | None
    active: int


# (layer, logits (N, E), tokens (N,), positions (N,)) -> what the router shall do instead.
Steer = Callable[[int, Tensor, Tensor, Tensor], Steered]


def route(
    logits: Tensor,
    active: int,
    normalise: bool,
    capacity_factor: float | None = None,
    preference: Tensor | None = None,
) -> Routing:
    """Top-k routing (Shazeer et al. 2017; with k = 1 and a capacity Switch, Fedus et al. 2021).

    The softmax is over all experts; `normalise` then scales the chosen weights to sum to one, which equals a softmax
    over the chosen logits alone (Granite's way of writing it).
    """
    logits = logits.float()
    probabilities = logits.softmax(dim=-1)
    if preference is None:
        weights, experts = probabilities.topk(active, dim=-1)
    else:
        experts = (logits + preference).topk(active, dim=-1).indices
        weights = probabilities.gather(-1, experts)
    if normalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    if capacity_factor is None:
        return Routing(logits, experts, weights)
    kept = within_capacity(experts, logits.shape[-1], capacity_factor)
    return Routing(logits, experts, weights * kept, kept)


def within_capacity(experts: Tensor, count: int, factor: float) -> Tensor:
    """(N, k) bool: False where the expert already had its fill.

    An expert takes `factor` times its even share of the N k choices, rounded up; all first choices are served before
    the second ones, each in the order of the tokens (Lepikhin et al. 2020).
    """
    n, k = experts.shape
    capacity = math.ceil(factor * n * k / count)
    chosen = F.one_hot(experts.T.flatten(), count)  # (k N, E), first choices first
    place = (chosen.cumsum(dim=0) * chosen).sum(dim=-1)  # 1 for the first token of an expert
    return (place <= capacity).view(k, n).T


def balance_loss(logits: Tensor, experts: Tensor) -> Tensor:
    """Load balancing (Fedus et al. 2021, equation 4), over k: 1 at an even load, E where a single expert does
    everything.

    E times the sum over experts of (share of the choices that fell on it) x (mean probability that it was given), of
    logits (..., N, E) and experts (..., N, k): a loss for each leading index.
    """
    count = logits.shape[-1]
    share = F.one_hot(experts, count).flatten(-3, -2).float().mean(dim=-2)  # (..., E)
    return count * (share * logits.float().softmax(dim=-1).mean(dim=-2)).sum(dim=-1)


def pooled_balance_loss(logits: list[Tensor], experts: list[Tensor]) -> Tensor:
    """The formula of the transformers library: all layers' tokens in one pool, and k times as large.

    An expert that is idle in one layer is forgiven if its namesake in another is busy: number 3 of layer 1 and number 3
    of layer 2 have nothing in common, yet share a place here.
    """
    return experts[0].shape[-1] * balance_loss(torch.cat(logits), torch.cat(experts))


def z_loss(logits: Tensor) -> Tensor:
    """Keeps the router's logits small (Zoph et al. 2022, equation 5): the mean squared log-sum-exp."""
    return logits.float().logsumexp(dim=-1).square().mean()


def decide(
    config: MoeConfig, layer: int, logits: Tensor, tokens: Tensor, start: int, steer: Steer | None, training: bool
) -> Routing:
    """The routing of one layer: logits (B T, E) of tokens (B, T), the first of which stands at position `start`."""
    capacity = config.capacity_factor if training else None
    if steer is None:
        return route(logits, config.active, config.normalise_weights, capacity)
    positions = torch.arange(start, start + tokens.shape[1], device=tokens.device).expand_as(tokens)
    changed = steer(layer, logits.float(), tokens.flatten(), positions.flatten())
    return route(changed.logits, changed.active, config.normalise_weights, capacity, changed.preference)
