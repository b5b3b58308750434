"""A mixture of experts in the plane, small enough that its whole routing is one picture.

A linear router gives each point a probability for each expert; the `top` likeliest work, and their answers are added
up with weights. Top-1 with the probability itself as the weight is the Switch Transformer (Fedus et al. 2021, eq. 1 and
2); top-2 with the two probabilities scaled to add up to one is GShard (Lepikhin et al. 2020, algorithm 1), without its
lot by which an unlikely second expert is not asked.

B points, E experts, K chosen ones, H hidden units of an expert.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCHES = 4


def patchwork(points: Tensor) -> Tensor:
    """(B, 2) in [-1, 1] -> (B,) 0 or 1: four patches around the middle, each striped in a direction of its own."""
    x, y = points[:, 0], points[:, 1]
    patch = ((torch.atan2(y, x) + 0.4) / (2 * math.pi) * PATCHES).floor() % PATCHES
    angle = patch * (0.9 * math.pi / PATCHES) + 0.5
    return (torch.sin(7.5 * (x * torch.cos(angle) + y * torch.sin(angle)) + patch) > 0).float()


@dataclass(frozen=True)
class Routing:
    """What the router did with a batch. probabilities (B, E); experts (B, K): chosen, likeliest first; weights (B, K):
    zero where refused; refused (B, K) bool: the expert had no room left."""

    probabilities: Tensor
    experts: Tensor
    weights: Tensor
    refused: Tensor

    def balance(self) -> Tensor:
        """Switch's eq. 4 over E experts: E sum_e f_e P_e, the share of the choices that e got times its mean
        probability. 1 if even, E / K if one expert has all the probability; only the probabilities have a slope."""
        count = self.probabilities.shape[1]
        share = F.one_hot(self.experts, count).float().mean(dim=(0, 1))
        return count * (share * self.probabilities.mean(dim=0)).sum()


def route(logits: Tensor, top: int, capacity: float | None = None) -> Routing:
    """(B, E) -> the `top` experts of each point. capacity: room of an expert in even shares of the batch's choices;
    first come, first served, all first choices before the second ones. None: room for all."""
    probabilities = logits.softmax(dim=1)
    weights, experts = probabilities.topk(top, dim=1)
    if top > 1:
        weights = weights / weights.sum(dim=1, keepdim=True)
    refused = torch.zeros_like(experts, dtype=torch.bool)
    if capacity is not None:
        room = math.ceil(capacity * experts.numel() / logits.shape[1])
        queue = F.one_hot(experts.t().reshape(-1), logits.shape[1])  # (K B, E): first choices of all points first
        place = (queue.cumsum(dim=0) * queue).sum(dim=1).reshape(top, -1).t()  # (B, K), from 1
        refused = place > room
    return Routing(probabilities, experts, weights * ~refused, refused)


class ToyExperts(nn.Module):
    """(B, 2) -> logits of the two colours, (B,). Every expert is a layer of H hidden units and a number."""

    def __init__(self, experts: int, hidden: int) -> None:
        super().__init__()
        self.router = nn.Linear(2, experts)
        self.into = nn.Parameter(torch.randn(experts, 2, hidden) * 2.0)
        self.bias = nn.Parameter(torch.randn(experts, hidden))
        self.out = nn.Parameter(torch.randn(experts, hidden) / math.sqrt(hidden))
        self.shift = nn.Parameter(torch.zeros(experts))

    def answers(self, points: Tensor) -> Tensor:
        """(B, 2) -> (B, E): of every expert, asked or not. A real layer would run the chosen ones alone."""
        hidden = torch.einsum("bi,eih->beh", points, self.into) + self.bias
        return torch.einsum("beh,eh->be", F.relu(hidden), self.out) + self.shift

    def forward(self, points: Tensor, top: int, capacity: float | None = None) -> tuple[Tensor, Routing]:
        routing = route(self.router(points), top, capacity)
        # A point that every chosen expert refused gets nothing: its logit is 0, which is no answer at all.
        return (self.answers(points).gather(1, routing.experts) * routing.weights).sum(dim=1), routing


class ToyDense(nn.Module):
    """(B, 2) -> (B,): one layer of hidden units, all of which work for every point."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(2, hidden), nn.Linear(hidden, 1)
        nn.init.normal_(self.into.weight, std=2.0)  # as the experts', so that only the division differs
        nn.init.normal_(self.into.bias)
        nn.init.normal_(self.out.weight, std=1 / math.sqrt(hidden))

    def forward(self, points: Tensor) -> Tensor:
        return self.out(F.relu(self.into(points)))[:, 0]


@dataclass(frozen=True)
class Bill:
    """What a network costs. parameters: all of them; products: multiplications for one point."""

    parameters: int
    products: int


def bill(experts: int, hidden: int, top: int) -> Bill:
    """Of ToyExperts with the `top` experts at work: the router, the chosen experts, and their weights."""
    return Bill(experts * (4 * hidden + 1) + 3 * experts, 2 * experts + top * (3 * hidden + 1))


def dense_bill(hidden: int) -> Bill:
    """Of ToyDense."""
    return Bill(4 * hidden + 1, 3 * hidden)


def dense_of_size(parameters: int) -> int:
    """Hidden units of the dense network with the nearest number of parameters."""
    return max(1, round((parameters - 1) / 4))


def dense_of_cost(products: int) -> int:
    """Hidden units of the dense network with the nearest number of multiplications."""
    return max(1, round(products / 3))
