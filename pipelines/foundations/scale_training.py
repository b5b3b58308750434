"""Two small Transformers that differ in one thing only, the division by sqrt(d), trained side by side on one task: to
say a row of symbols backwards, for which each place must look at one other.

B rows, N symbols of a row, V kinds of symbols, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.common.device import generator

from . import one_core
from .config import ScaleRecipe, StackOptions
from .initialisation import Layer, evenness
from .transformer import places

KINDS, LENGTH, BATCH = 8, 12, 32
MOMENTUM = 0.9
LOST = 1e3  # nats: above it, or where it is no number, a training has diverged and is left alone
GUESS = math.log(KINDS)


@dataclass
class Way:
    """How one training went. losses: nats a symbol, one a step, each of rows that it had not seen; entropies: of the
    first layer's attention, as a share of the most, one a step. lost: the step at which it diverged."""

    divide: bool
    losses: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    lost: int | None = None


class Reverser(nn.Module):
    """(B, N) int64 symbols -> (B, N, V) logits of the row said backwards. Every place sees every other."""

    def __init__(self, options: StackOptions) -> None:
        super().__init__()
        self.norm = options.norm
        self.embedding = nn.Parameter(torch.randn(KINDS, options.width))
        self.layers = nn.ModuleList(Layer(options) for _ in range(options.depth))
        self.readout = nn.Parameter(torch.randn(KINDS, options.width) / math.sqrt(options.width))

    def forward(self, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """Also the first layer's attention, (B, h, N, N)."""
        x = self.embedding[symbols] + places(symbols.shape[1], self.embedding.shape[1])
        weights = []
        for layer in self.layers:
            x, seen = layer(x)
            weights.append(seen)
        x = F.layer_norm(x, x.shape[-1:]) if self.norm == "pre" else x
        return x @ self.readout.T, weights[0]


def train(recipe: ScaleRecipe) -> Iterator[tuple[int, list[Way]]]:
    """Both trainings, by gradient descent with momentum from the same first weights on the same rows: (steps done, the
    two ways) after each step. It ends early once both have diverged; leaving it stops the work."""
    options = StackOptions("lecun", recipe.norm, True, recipe.depth, recipe.width, heads=1)
    networks, ways = [], [Way(True), Way(False)]
    for way in ways:
        with one_core.seeded(recipe.seed):
            networks.append(Reverser(replace(options, divide=way.divide)))
    optimisers = [torch.optim.SGD(each.parameters(), recipe.rate, momentum=MOMENTUM) for each in networks]
    source = generator(recipe.seed)
    for done in range(1, recipe.steps + 1):
        rows = torch.randint(0, KINDS, (BATCH, LENGTH), generator=source)
        for way, network, optimiser in zip(ways, networks, optimisers, strict=True):
            if way.lost is None:
                with one_core.step():
                    _step(way, network, optimiser, rows, done)
        yield done, ways
        if all(way.lost is not None for way in ways):
            return


def _step(way: Way, network: Reverser, optimiser: torch.optim.Optimizer, rows: Tensor, done: int) -> None:
    logits, weights = network(rows)
    loss = F.cross_entropy(logits.flatten(0, 1), rows.flip(1).flatten())
    value = float(loss.detach())
    way.losses.append(value)
    way.entropies.append(evenness(weights))
    if not math.isfinite(value) or value > LOST:
        way.lost = done
        return
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
