"""Autoregressive models of black and white pictures: p(x) = Π p(x_d | the pixels before d), exact and without sampling.

FVSBN (Frey 1998; Gan et al. 2015), a logistic regression for each pixel; NADE (Larochelle and Murray 2011), whose
pixels share one hidden layer; MADE (Germain et al. 2015), an autoencoder whose masks leave each output only the pixels
before it; and the orderless deep NADE (Uria, Murray and Larochelle 2014), which guesses any pixels from any others.

Letters: B pictures, D pixels, H hidden units. Pictures are (B, D) float of 0 and 1 in reading order whatever the order
of the model: `orders` (R, D) says which pixel is visited at each step, for each of the model's R orders.

Each model has two forms that tests hold equal. `logits` answers for all pixels at once. A walk (`begin`, `ask`, `tell`)
visits them one by one and keeps a running state, so that drawing a picture costs what judging one does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def places(order: Tensor) -> Tensor:
    """(D,) the step at which each pixel is visited: the inverse of an order."""
    return torch.argsort(order)


def _stack(sizes: Sequence[int]) -> Sequence[nn.Linear]:
    """Layers from each size to the next, without bias at first."""
    layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
    for layer in layers:
        nn.init.zeros_(cast(nn.Linear, layer).bias)
    return cast("Sequence[nn.Linear]", layers)


class Autoregressive(nn.Module):
    """What the models share. orders (R, D) int64: the pixel visited at each step."""

    orders: Tensor

    def __init__(self, orders: Tensor) -> None:
        super().__init__()
        self.pixels = orders.shape[1]
        self.register_buffer("orders", orders, persistent=False)

    def logits(self, x: Tensor, which: int = 0) -> Tensor:
        """(B, D) log-odds of each pixel being 1, given those before it in order `which`."""
        raise NotImplementedError

    def begin(self, batch: int, which: int = 0) -> Tensor:
        """State of a walk for `batch` pictures of which nothing is known."""
        raise NotImplementedError

    def ask(self, state: Tensor, pixel: int, which: int = 0) -> Tensor:
        """(B,) log-odds of the pixel, given those told. It must be the next one of the order."""
        raise NotImplementedError

    def tell(self, state: Tensor, pixel: int, value: Tensor, which: int = 0) -> None:
        """Take the value (B,) of the pixel that was asked for last into the state, in place."""
        raise NotImplementedError


class Fvsbn(Autoregressive):
    """Fully visible sigmoid belief network: the log-odds of a pixel are a weighted sum of those before it."""

    mask: Tensor

    def __init__(self, orders: Tensor) -> None:
        """orders (1, D)."""
        super().__init__(orders)
        place = places(orders[0])
        self.register_buffer("mask", place[:, None] > place[None, :], persistent=False)  # output row, input column
        self.weight = nn.Parameter(torch.zeros(self.pixels, self.pixels))
        self.bias = nn.Parameter(torch.zeros(self.pixels))

    def logits(self, x: Tensor, which: int = 0) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)

    def begin(self, batch: int, which: int = 0) -> Tensor:
        return self.bias.repeat(batch, 1)

    def ask(self, state: Tensor, pixel: int, which: int = 0) -> Tensor:
        return state[:, pixel]

    def tell(self, state: Tensor, pixel: int, value: Tensor, which: int = 0) -> None:
        state.addr_(value, self.weight[:, pixel] * self.mask[:, pixel])


class Nade(Autoregressive):
    """Neural autoregressive distribution estimator, equations 6 and 7: h_d = sigmoid(c + Σ_{i before d} x_i W_i) and
    log-odds b_d + V_d · h_d. One W for all pixels, so that the hidden layer of the next is one addition away."""

    def __init__(self, orders: Tensor, hidden: int) -> None:
        """orders (1, D)."""
        super().__init__(orders)
        self.inward = nn.Parameter(torch.empty(self.pixels, hidden))  # W, a row a pixel
        self.outward = nn.Parameter(torch.empty(self.pixels, hidden))  # V, a row a pixel
        self.bias = nn.Parameter(torch.zeros(self.pixels))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        bound = math.sqrt(6 / (self.pixels + hidden))
        nn.init.uniform_(self.inward, -bound, bound)
        nn.init.uniform_(self.outward, -bound, bound)

    def logits(self, x: Tensor, which: int = 0) -> Tensor:
        order = self.orders[0]
        weights = self.inward[order], self.outward[order], self.hidden_bias
        found = _NadeScan.apply(x[:, order].T.contiguous(), *weights)  # (D, B) by step
        return found.T[:, places(order)] + self.bias

    def logits_at_once(self, x: Tensor) -> Tensor:
        """The same from the equations as they stand, with all D hidden layers in memory: (B, D, H)."""
        order = self.orders[0]
        drive = x[:, order, None] * self.inward[order]
        before = drive.cumsum(dim=1) - drive
        found = (torch.sigmoid(before + self.hidden_bias) * self.outward[order]).sum(dim=-1)
        return found[:, places(order)] + self.bias

    def begin(self, batch: int, which: int = 0) -> Tensor:
        return self.hidden_bias.repeat(batch, 1)

    def ask(self, state: Tensor, pixel: int, which: int = 0) -> Tensor:
        return torch.sigmoid(state) @ self.outward[pixel] + self.bias[pixel]

    def tell(self, state: Tensor, pixel: int, value: Tensor, which: int = 0) -> None:
        state.addr_(value, self.inward[pixel])


class _NadeScan(torch.autograd.Function):
    """Algorithm 1 of the NADE paper, forwards and backwards: O(DH) sums with O(H) memory a picture.

    Autograd would keep D hidden layers. Going back, the layer before is found by subtracting what was added.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, inward: Tensor, outward: Tensor, hidden_bias: Tensor) -> Tensor:
        """x (D, B) by step; inward and outward (D, H). Returns (D, B) without the pixel's own bias."""
        state = hidden_bias.repeat(x.shape[1], 1)  # (B, H)
        hidden, found = torch.empty_like(state), torch.empty_like(x)
        for step in range(len(x)):
            torch.sigmoid(state, out=hidden)
            torch.mv(hidden, outward[step], out=found[step])
            state.addr_(x[step], inward[step])
        ctx.save_for_backward(x, inward, outward, state)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        x, inward, outward, last = ctx.saved_tensors
        grad, state = grads[0].contiguous(), last.clone()
        hidden, back = torch.empty_like(state), torch.zeros_like(state)  # back: of the state after this step
        inward_grad, outward_grad = torch.empty_like(inward), torch.empty_like(outward)
        for step in range(len(x) - 1, -1, -1):
            torch.mv(back.T, x[step], out=inward_grad[step])
            state.addr_(x[step], inward[step], alpha=-1)
            torch.sigmoid(state, out=hidden)
            torch.mv(hidden.T, grad[step], out=outward_grad[step])
            back += torch.ops.aten.sigmoid_backward(torch.outer(grad[step], outward[step]), hidden)
        return None, inward_grad, outward_grad, back.sum(dim=0)


class Made(Autoregressive):
    """Masked autoencoder. A hidden unit has a degree k and may see the first k pixels of the order; it hears units of
    at most its degree, and an output hears units of a degree below its own place (equations 8, 9 and 13).

    With several orders each brings its own masks over the same weights (order- and connectivity-agnostic, section 4),
    and the model is their mixture. direct: an output hears the pixels before it without a detour too (section 3).
    """

    def __init__(self, orders: Tensor, hidden: tuple[int, ...], direct: bool = True, seed: int = 0) -> None:
        """hidden: widths of the hidden layers, 1 or more. seed: of the hidden units' degrees where orders are many;
        of a single order they are spread evenly."""
        super().__init__(orders)
        sizes = [self.pixels, *hidden, self.pixels]
        self.layers = _stack(sizes)
        self.direct = nn.Parameter(torch.zeros(self.pixels, self.pixels)) if direct else None
        self._kept: dict[int, tuple[tuple[int, int], Tensor]] = {}
        generator = torch.Generator().manual_seed(seed) if len(orders) > 1 else None
        drawn = [made_degrees(order, hidden, generator) for order in orders.cpu()]
        for depth, degrees in enumerate(zip(*drawn, strict=True)):  # masks themselves would be 32 times the weights
            self.register_buffer(f"degrees_{depth}", torch.stack(degrees), persistent=False)

    def hears(self, depth: int | None, which: int, rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
        """The bool mask (outputs, inputs) of a layer, or of the direct weights if depth is None; or a part of it."""
        output = depth is None or depth == len(self.layers) - 1
        above = getattr(self, f"degrees_{0 if depth is None or output else depth + 1}")[which, rows, None]
        below = getattr(self, f"degrees_{depth or 0}")[which, None, columns]
        return above > below if output else above >= below

    def weight(self, depth: int, which: int) -> Tensor:
        """The masked weight of a layer, (outputs, inputs)."""
        return self.layers[depth].weight * self.hears(depth, which)

    def _walked(self, depth: int, which: int) -> Tensor:
        """`weight`, kept of the order that was walked last: a walk asks for it at every pixel."""
        if torch.is_grad_enabled():
            return self.weight(depth, which)
        kept = self._kept.get(depth)
        now = (which, self.layers[depth].weight._version)  # the version counts changes in place
        if kept is None or kept[0] != now:
            kept = self._kept[depth] = (now, self.weight(depth, which))
        return kept[1]

    def logits(self, x: Tensor, which: int = 0) -> Tensor:
        last = len(self.layers) - 1
        y = x
        for depth in range(last):
            y = F.relu(F.linear(y, self.weight(depth, which), self.layers[depth].bias))
        y = F.linear(y, self.weight(last, which), self.layers[last].bias)
        if self.direct is not None:
            y = y + F.linear(x, self.direct * self.hears(None, which))
        return y

    def begin(self, batch: int, which: int = 0) -> Tensor:
        """The sums that enter the first hidden layer, and behind them what the pixels say to the outputs directly."""
        return torch.cat([self.layers[0].bias, self.layers[-1].bias]).repeat(batch, 1)

    def ask(self, state: Tensor, pixel: int, which: int = 0) -> Tensor:
        y, straight = F.relu(state[:, : -self.pixels]), state[:, pixel - self.pixels]
        last = len(self.layers) - 1
        for depth in range(1, last):
            y = F.relu(F.linear(y, self._walked(depth, which), self.layers[depth].bias))
        row = slice(pixel, pixel + 1)
        return y @ (self.layers[last].weight[row] * self.hears(last, which, row))[0] + straight

    def tell(self, state: Tensor, pixel: int, value: Tensor, which: int = 0) -> None:
        one = slice(pixel, pixel + 1)
        column = self.layers[0].weight[:, one] * self.hears(0, which, columns=one)
        state[:, : -self.pixels].addr_(value, column[:, 0])
        if self.direct is not None:
            column = self.direct[:, one] * self.hears(None, which, columns=one)
            state[:, -self.pixels :].addr_(value, column[:, 0])


def made_degrees(order: Tensor, hidden: tuple[int, ...], generator: torch.Generator | None) -> list[Tensor]:
    """int16 degrees of the inputs, place 1 visited first, and of each hidden layer: drawn from the lowest degree below
    (a unit of less would hear nobody) to D - 1, or without a generator laid out evenly."""
    pixels = len(order)
    degrees = [places(order) + 1]
    for width in hidden:
        low = min(int(degrees[-1].min()), pixels - 1)
        if generator is None:
            degrees.append(torch.linspace(low, pixels - 1, width).round().long())
        else:
            degrees.append(torch.randint(low, pixels, (width,), generator=generator))
    return [each.to(torch.int16) for each in degrees]


class OrderlessNade(Autoregressive):
    """Deep and orderless NADE: a plain network that is told which pixels are known (x·m and m, section 4), and guesses
    all others. So any order can be walked, and anything completed from anything."""

    def __init__(self, orders: Tensor, hidden: tuple[int, ...]) -> None:
        super().__init__(orders)
        sizes = [2 * self.pixels, *hidden, self.pixels]
        self.layers = _stack(sizes)

    def guess(self, x: Tensor, known: Tensor) -> Tensor:
        """(B, D) log-odds of every pixel given the known ones. known (B, D): 1 where it is."""
        return self._finish(self.layers[0](torch.cat([x * known, known], dim=1)))

    def _finish(self, state: Tensor) -> Tensor:
        y = F.relu(state)
        for layer in self.layers[1:-1]:
            y = F.relu(layer(y))
        return self.layers[-1](y)

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(B,) unbiased estimate of the nats over all orders, equation 14: d pixels are known, d even from 0 to D-1,
        and those of the others that come next stand for all steps: weight D / (D - d)."""
        batch, pixels = x.shape
        ranks = torch.rand(batch, pixels, generator=generator).argsort(dim=1).to(x.device)
        count = torch.randint(0, pixels, (batch, 1), generator=generator).to(x.device)
        known = (ranks < count).to(x.dtype)
        nats = F.binary_cross_entropy_with_logits(self.guess(x, known), x, reduction="none")
        return (nats * (1 - known)).sum(dim=1) * pixels / (pixels - count[:, 0])

    def logits(self, x: Tensor, which: int = 0) -> Tensor:
        return self.logits_in(x, self.orders[which])

    def logits_in(self, x: Tensor, order: Tensor) -> Tensor:
        """(B, D) in any order (D,). One pass a pixel: each needs its own set of known ones."""
        found = torch.empty_like(x)
        state = self.begin(len(x))
        for pixel in order.tolist():
            found[:, pixel] = self.ask(state, pixel)
            self.tell(state, pixel, x[:, pixel])
        return found

    def begin(self, batch: int, which: int = 0) -> Tensor:
        return self.layers[0].bias.repeat(batch, 1)

    def ask(self, state: Tensor, pixel: int, which: int = 0) -> Tensor:
        y = F.relu(state)
        for layer in self.layers[1:-1]:
            y = F.relu(layer(y))
        return y @ self.layers[-1].weight[pixel] + self.layers[-1].bias[pixel]

    def tell(self, state: Tensor, pixel: int, value: Tensor, which: int = 0) -> None:
        weight = self.layers[0].weight
        state.addr_(value, weight[:, pixel])
        state += weight[:, self.pixels + pixel]


# --- what one can ask of any of them ---------------------------------------------------------------------------------


def pixel_nats(model: Autoregressive, x: Tensor, which: int = 0) -> Tensor:
    """(B, D) nats that each pixel costs, -log p(x_d | those before it), in reading order."""
    return F.binary_cross_entropy_with_logits(model.logits(x, which), x, reduction="none")


def log_likelihood(model: Autoregressive, x: Tensor) -> Tensor:
    """(B,) log p(x) in nats: exact; with R orders that of their mixture in equal parts."""
    each = torch.stack([-pixel_nats(model, x, which).sum(dim=1) for which in range(len(model.orders))])
    return each.logsumexp(dim=0) - math.log(len(model.orders))


@torch.no_grad()
def complete(
    model: Autoregressive, given: Tensor, known: Tensor, generator: torch.Generator, temperature: float = 1.0,
    which: int = 0, order: Tensor | None = None,
) -> Iterator[tuple[int, Tensor]]:  # fmt: skip
    """Walk the order and draw each pixel that is not known: (pixel, its values (B,)) one after another.

    given (B, D) of 0 and 1; known (D,) bool. temperature 0 takes the likelier value. order (D,): another than the
    model's own, for the orderless one. A pixel drawn before a known one has not heard of it: exact completion needs an
    order with the known pixels first (see `known_first`).
    """
    state = model.begin(len(given), which)
    for pixel in (model.orders[which] if order is None else order).tolist():
        if known[pixel]:
            value = given[:, pixel]
        else:
            odds = model.ask(state, pixel, which)
            if temperature > 0:
                value = (torch.rand(len(given), generator=generator) < torch.sigmoid(odds / temperature).cpu()).to(odds)
            else:
                value = (odds > 0).to(odds)
        model.tell(state, pixel, value, which)
        yield pixel, value


def known_first(order: Tensor, known: Tensor) -> Tensor:
    """(D,) the order with the known pixels (D,) bool moved to its front."""
    return torch.cat([order[known[order]], order[~known[order]]])
