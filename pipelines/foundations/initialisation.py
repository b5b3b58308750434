"""How large random weights must be: a stack of Transformer layers under the known recipes, measured untrained.

A sum of n products of independent numbers of mean 0 and variance 1 has variance n. So a layer divides by the root of
what it adds up, in the weights (Xavier, He), in the sum itself (NTK), or by a norm afterwards; and attention divides
the products of queries and keys by sqrt(d), or T5 makes the query's weights that much smaller.

    one     weights of variance 1: nothing is done
    lecun   1 / n_in                         LeCun et al. 1998
    xavier  2 / (n_in + n_out)               Glorot and Bengio 2010, eq. 16
    he      2 / n_in, for ReLU               He et al. 2015, eq. 10
    ntk     variance 1, and the sum is divided by sqrt(n_in)     Jacot et al. 2018
    t5      1 / n_in, and the query's 1 / (n_in d); attention does not divide      Raffel et al. 2020, Mesh TensorFlow

B texts, T places, D width, h heads, d = D / h, F hidden units of the feed-forward half.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import StackOptions


def deviation(scheme: str, inputs: int, outputs: int, head: int = 0) -> float:
    """The standard deviation of a weight matrix (outputs, inputs). head: d, for a query's. KeyError: no such scheme."""
    variance = {
        "one": 1.0,
        "lecun": 1 / inputs,
        "xavier": 2 / (inputs + outputs),
        "he": 2 / inputs,
        "ntk": 1.0,
        "t5": 1 / (inputs * head) if head else 1 / inputs,
    }[scheme]
    return math.sqrt(variance)


class Scaled(nn.Module):
    """(..., inputs) -> (..., outputs): a matrix without biases under one of the schemes. gain: DeepNorm's beta."""

    def __init__(self, scheme: str, inputs: int, outputs: int, head: int = 0, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * deviation(scheme, inputs, outputs, head) * gain)
        self.divisor = math.sqrt(inputs) if scheme == "ntk" else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) / self.divisor


class Layer(nn.Module):
    """Attention, then two matrices with a ReLU between them, each beside the stream that it adds to."""

    def __init__(self, options: StackOptions) -> None:
        super().__init__()
        width, scheme, head = options.width, options.scheme, options.width // options.heads
        self.options, self.head = options, head
        self.divides = options.divide and scheme != "t5"
        self.keep, gain = deepnorm(options.depth) if options.norm == "deepnorm" else (1.0, 1.0)
        self.query = Scaled(scheme, width, width, head)
        self.key = Scaled(scheme, width, width)
        self.value = Scaled(scheme, width, width, gain=gain)
        self.mix = Scaled(scheme, width, width, gain=gain)
        self.into = Scaled(scheme, width, 4 * width, gain=gain)
        self.out = Scaled(scheme, 4 * width, width, gain=gain)

    def weights(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, h, T, T): whom each place attends to; every row adds up to one."""
        query, key = (self._heads(part(x)) for part in (self.query, self.key))
        products = query @ key.transpose(-1, -2)
        return (products / math.sqrt(self.head) if self.divides else products).softmax(dim=-1)

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) -> the same, and the weights."""
        weights = self.weights(x)
        mixed = weights @ self._heads(self.value(x))
        return self.mix(mixed.transpose(1, 2).flatten(2)), weights

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pre, post = self.options.norm == "pre", self.options.norm in ("post", "deepnorm")
        change, weights = self.attend(_norm(x) if pre else x)
        x = self.keep * x + change
        x = _norm(x) if post else x
        x = self.keep * x + self.out(F.relu(self.into(_norm(x) if pre else x)))
        return (_norm(x) if post else x), weights

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, h, T, d)."""
        return x.unflatten(2, (self.options.heads, self.head)).transpose(1, 2)


def deepnorm(depth: int) -> tuple[float, float]:
    """alpha, beta of an encoder alone, of `depth` layers: LN(alpha x + f(x)), with the values, the mixing and the
    feed-forward weights made beta times as large (Wang et al. 2022, table in figure 2)."""
    return (2 * depth) ** 0.25, (8 * depth) ** -0.25


def _norm(x: Tensor) -> Tensor:
    """Layer norm without weights."""
    return F.layer_norm(x, x.shape[-1:])


@torch.no_grad()
def evenness(weights: Tensor) -> float:
    """The mean entropy of attention, (..., T) weights of T places that add up to one, as a share of the most: log T."""
    entropy = -(weights * weights.clamp_min(1e-30).log()).sum(-1).mean()
    return float(entropy) / math.log(weights.shape[-1])


@dataclass(frozen=True)
class Measured:
    """Of each layer: variance of the stream behind it; entropy of its attention as a share of log T, 1 is even, 0 is
    one place; gradient: length of the loss's slope for the stream before it. depth numbers each."""

    variance: list[float]
    entropy: list[float]
    gradient: list[float]


def measure(options: StackOptions, seed: int = 0) -> Measured:
    """Run a random stack once, forwards and backwards, on inputs of variance 1. The loss is a random direction of the
    stream behind the last layer at the last place, as a readout of one number with weights of variance 1 / D would be.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [Layer(options) for _ in range(options.depth)]
        x = torch.randn(options.batch, options.length, options.width)
        readout = torch.randn(options.width) / math.sqrt(options.width)
    streams: list[Tensor] = []
    variance: list[float] = []
    entropy: list[float] = []
    for layer in layers:
        x = x.detach().requires_grad_() if not streams else x
        x.retain_grad()
        streams.append(x)
        x, weights = layer(x)
        variance.append(float(x.detach().var()))
        entropy.append(evenness(weights))
    (x[:, -1] @ readout).mean().backward()
    gradient = [float(each.grad.norm()) if each.grad is not None else 0.0 for each in streams]
    return Measured(variance, entropy, gradient)
