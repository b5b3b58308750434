"""The toy mixture of experts, trained live beside dense networks; its switches may be turned while it trains.

B points, E experts, H hidden units of an expert.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.common.device import generator

from . import one_core
from .config import ExpertsRecipe, Knobs
from .experts_contract import NETWORKS, Picture
from .toy_experts import ToyDense, ToyExperts, bill, dense_bill, dense_of_cost, dense_of_size, patchwork

SIDE = 56  # points a side of the pictures, which are the test set as well
LOOK = 10  # steps between two measurements
RATE = 2e-2


class Quartet(nn.Module):
    """The experts; a dense network of their size and one of their cost; and experts whose router never learns: the
    control that tells what the division of the plane by itself is worth."""

    def __init__(self, recipe: ExpertsRecipe) -> None:
        super().__init__()
        price = bill(recipe.experts, recipe.hidden, recipe.top)
        self.experts = ToyExperts(recipe.experts, recipe.hidden)
        self.size = ToyDense(dense_of_size(price.parameters))
        self.cost = ToyDense(dense_of_cost(price.products))
        self.frozen = ToyExperts(recipe.experts, recipe.hidden)
        self.frozen.router.requires_grad_(False)

    def loss(self, points: Tensor, colours: Tensor, knobs: Knobs) -> Tensor:
        """Cross-entropy of the four, each on its own parameters alone, and the balance loss of the first."""
        said, routing = self.experts(points, knobs.top, knobs.capacity)
        answers = [said, self.size(points), self.cost(points), self.frozen(points, knobs.top, knobs.capacity)[0]]
        total = sum(F.binary_cross_entropy_with_logits(each, colours) for each in answers)
        return total + knobs.balance * routing.balance()


def train(recipe: ExpertsRecipe, knobs: Knobs) -> Iterator[Picture]:
    """Train; a picture before the first step and after every LOOK steps. `knobs` is read anew at each step, so that
    another thread may turn them. Leaving the iteration stops the work."""
    with one_core.seeded(recipe.seed):
        networks = Quartet(recipe)
    optimiser = torch.optim.Adam([p for p in networks.parameters() if p.requires_grad], RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=recipe.steps)
    source = generator(recipe.seed)
    curves: list[tuple[float, ...]] = []
    yield _measure(networks, recipe, knobs, 0, curves, 0.0)
    for done in range(1, recipe.steps + 1):
        with one_core.step():
            points = torch.rand(recipe.batch, 2, generator=source) * 2 - 1
            loss = networks.loss(points, patchwork(points), knobs)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        if done % LOOK == 0 or done == recipe.steps:
            yield _measure(networks, recipe, knobs, done, curves, float(_refused(networks, points, knobs)))


@one_core.step()
@torch.no_grad()
def _refused(networks: Quartet, points: Tensor, knobs: Knobs) -> Tensor:
    """The share of the choices in a training batch for which there was no room."""
    return networks.experts(points, knobs.top, knobs.capacity)[1].refused.float().mean()


def grid() -> Tensor:
    """(SIDE^2, 2): the middles of the cells of the square, row by row from the top."""
    line = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    y, x = torch.meshgrid(-line, line, indexing="ij")
    return torch.stack((x.flatten(), y.flatten()), dim=1)


@one_core.step()
@torch.no_grad()
def _measure(
    networks: Quartet, recipe: ExpertsRecipe, knobs: Knobs, step: int, curves: list[tuple[float, ...]], refused: float
) -> Picture:
    points = grid()
    wanted = patchwork(points)
    said, routing = networks.experts(points, knobs.top)  # nobody is refused when it answers
    answers = (said, networks.size(points), networks.cost(points), networks.frozen(points, knobs.top)[0])
    right = tuple(float(((each > 0).float() == wanted).float().mean()) for each in answers)
    load = torch.bincount(routing.experts.flatten(), minlength=recipe.experts) / routing.experts.numel()
    curves.append((step, *right, float(routing.balance())))
    return Picture(
        recipe, Knobs(knobs.top, knobs.capacity, knobs.balance), step, np.array(curves), load.numpy(), refused,
        wanted.reshape(SIDE, SIDE).numpy(),
        {name: torch.sigmoid(each).reshape(SIDE, SIDE).numpy() for name, each in zip(NETWORKS, answers, strict=True)},
        routing.experts[:, 0].reshape(SIDE, SIDE).numpy(),
        routing.probabilities.max(dim=1).values.reshape(SIDE, SIDE).numpy(),
    )  # fmt: skip


def bills(recipe: ExpertsRecipe, top: int) -> dict[str, tuple[int, int, int]]:
    """Network -> hidden units, parameters, multiplications for one point. The dense networks were built for recipe.top,
    whatever the switch says by now."""
    made, now = bill(recipe.experts, recipe.hidden, recipe.top), bill(recipe.experts, recipe.hidden, top)
    found = {"experts": (recipe.experts * recipe.hidden, now.parameters, now.products)}
    for name, hidden in (("size", dense_of_size(made.parameters)), ("cost", dense_of_cost(made.products))):
        price = dense_bill(hidden)
        found[name] = (hidden, price.parameters, price.products)
    return found | {"frozen": found["experts"]}
