"""What a visitor can set on the pages that train live, with the ends of each slider. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pipelines.common.errors import UserError

# Trainings and measurements that take long have a group of their own: they take the device step by step, so that the
# work of other tabs goes on between two steps and does not queue behind a training that opens by itself.
LIVE: dict[str, Any] = {"concurrency_id": "foundations", "concurrency_limit": 3}


@dataclass(frozen=True)
class Range:
    """A slider: its ends, its step, and where it stands at first."""

    low: float
    high: float
    step: float
    value: float


@dataclass(frozen=True)
class MarginKind:
    """One loss of margin_softmax.LOSSES. title: as the papers call it. margin: None where it has none. scaled: it has
    an s. formula: of the right class's logit. source: the paper."""

    title: str
    margin: Range | None
    scaled: bool
    formula: str
    source: str


MARGIN_LOSSES: dict[str, MarginKind] = {
    "softmax": MarginKind("Softmax", None, False, "W·x + b", "DeepFace, DeepID 2014"),
    "center": MarginKind("Center loss", Range(0, 1, 0.01, 0.1), False, "W·x + b, and m/2 |x − c|²", "Wen et al. 2016"),
    "l-softmax": MarginKind("L-Softmax", Range(1, 4, 1, 2), False, "|W| |x| ψ(θ)", "Liu et al. 2016"),
    "a-softmax": MarginKind("A-Softmax (SphereFace)", Range(1, 4, 1, 4), False, "|x| ψ(θ)", "Liu et al. 2017"),
    "am-softmax": MarginKind(
        "AM-Softmax (CosFace)", Range(0, 0.6, 0.01, 0.2), True, "s (cos θ − m)", "Wang et al. 2018, both"
    ),
    "arcface": MarginKind("ArcFace", Range(0, 1, 0.01, 0.3), True, "s cos(θ + m)", "Deng et al. 2019"),
}  # fmt: skip
SCALE = Range(1, 64, 1, 16)


@dataclass(frozen=True)
class MarginRecipe:
    """One training on the digits. margin, scale: see margin_softmax. dimension: of the features, 2 or 3. unseen: how
    many digits, from 9 down, take no part in it."""

    loss: str = "arcface"
    margin: float = 0.3
    scale: float = 16.0
    dimension: int = 2
    unseen: int = 2
    steps: int = 600
    seed: int = 0
    batch: int = 128

    def checked(self) -> MarginRecipe:
        """Itself. UserError: a number is outside what its slider offers."""
        kind = MARGIN_LOSSES.get(self.loss)
        if kind is None:
            raise UserError("Choose one of the losses in the list.")
        if kind.margin is not None:
            within(self.margin, kind.margin.low, kind.margin.high, "margin")
        within(self.scale, SCALE.low, SCALE.high, "scale")
        within(self.unseen, 0, 3, "number of digits kept out")
        within(self.steps, 1, 3000, "number of steps")
        within(self.seed, 0, 2**31 - 1, "seed")
        if self.dimension not in (2, 3):
            raise UserError("The features have two or three dimensions.")
        return self


def within(value: float | None, low: float, high: float, name: str) -> float:
    """The value. UserError, in one sentence: it is no number from low to high."""
    if not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
        raise UserError(f"The {name} must be a number from {low:g} to {high:g}.")
    return value


@dataclass
class Knobs:
    """The switches of the toy experts, which may be turned while it trains. top: experts asked for a point. capacity:
    room of an expert in even shares, None for no limit. balance: weight of the balance loss, 0 for none."""

    top: int = 1
    capacity: float | None = None
    balance: float = 0.05

    def checked(self, experts: int) -> Knobs:
        """Itself. UserError: a number is outside what its slider offers."""
        within(self.top, 1, min(2, experts), "number of experts that are asked")
        if self.capacity is not None:
            within(self.capacity, 0.25, 4, "capacity")
        within(self.balance, 0, 1, "weight of the balance loss")
        return self


@dataclass(frozen=True)
class ExpertsRecipe:
    """One training of the toy. top: for which the dense network of the same cost is built. batch: points of a step."""

    experts: int = 4
    hidden: int = 8
    top: int = 1
    steps: int = 600
    seed: int = 0
    batch: int = 256

    def checked(self) -> ExpertsRecipe:
        """Itself. UserError: a number is outside what its slider offers."""
        within(self.experts, 2, 8, "number of experts")
        within(self.hidden, 2, 32, "number of hidden units")
        within(self.steps, 1, 5000, "number of steps")
        within(self.seed, 0, 2**31 - 1, "seed")
        return self


SCHEMES = ("one", "lecun", "xavier", "he", "ntk", "t5")
NORMS = ("none", "pre", "post", "deepnorm")


@dataclass(frozen=True)
class StackOptions:
    """A random stack of Transformer layers. divide: attention divides by sqrt(d). batch texts of `length` places."""

    scheme: str = "xavier"
    norm: str = "pre"
    divide: bool = True
    depth: int = 12
    width: int = 64
    heads: int = 2
    length: int = 32
    batch: int = 4

    def checked(self) -> StackOptions:
        """Itself. UserError: a number is outside what its slider offers."""
        if self.scheme not in SCHEMES or self.norm not in NORMS:
            raise UserError("Choose the weights and the norm in the lists.")
        within(self.depth, 1, 48, "number of layers")
        within(self.width, 16, 256, "width")
        if self.width % self.heads:
            raise UserError("The width must be a multiple of the number of heads.")
        return self


RATE = 0.0015
RATES = (0.0003, 0.001, RATE, 0.003, 0.01, 0.03, 0.1, 0.3)


@dataclass(frozen=True)
class ScaleRecipe:
    """One training of scale_training, with and without the division. rate: of gradient descent with momentum; at RATE
    and with no norm the two differ most. Whether a single seed diverges is up to the last digits, and so to the
    processor: of 8 seeds 7 did without the division and none with it (at 0.001, 6 and none; at 0.003, all of both)."""

    norm: str = "none"
    rate: float = RATE
    steps: int = 300
    seed: int = 0
    depth: int = 4
    width: int = 64

    def checked(self) -> ScaleRecipe:
        """Itself. UserError: a number is outside what its slider offers."""
        if self.norm not in NORMS:
            raise UserError("Choose the norm in the list.")
        within(self.rate, RATES[0], RATES[-1], "learning rate")
        within(self.steps, 1, 1000, "number of steps")
        within(self.seed, 0, 2**31 - 1, "seed")
        return self
