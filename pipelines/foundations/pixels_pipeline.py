"""The shipped autoregressive models at work on one drawing: its nats, and its completions, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.common import backends, catalogue, checkpoint
from pipelines.common.device import generator
from pipelines.common.errors import UserError

from . import one_core
from .pixels import MODELS, build, order, unpack

if TYPE_CHECKING:
    from .autoregressive import Autoregressive

ROLE = "pixels"
MOST = 8  # completions of one model at a time


def present() -> dict[str, catalogue.Entry]:
    """Name in `pixels.MODELS` -> entry, of the models that are on this machine, in the catalogue's order."""
    return {
        entry.preset: entry
        for entry in catalogue.entries("foundations", ROLE)
        if entry.preset in MODELS and checkpoint.locate(entry) is not None
    }


def load(name: str) -> Autoregressive:
    """The network, shared by all visitors and never changed. UserError: it is not here."""
    found = present()
    if name not in found:
        raise UserError(f"There is no model called “{str(name)[:40]}” here; choose one of: {', '.join(found)}.")
    entry = found[name]
    return backends.shared().get(("foundations", entry.id), lambda: _read(entry), 4 * entry.size)


def _read(entry: catalogue.Entry) -> Autoregressive:
    from safetensors.torch import load_file

    network = build(MODELS[entry.preset])
    unpack(network, load_file(checkpoint.paths(entry)["model"]))
    return network.eval()


def nats(name: str, pictures: np.ndarray, visit: str) -> np.ndarray:
    """(N, 28, 28) what each pixel of (N, 28, 28) bool pictures costs a model, in nats.

    visit: the order for the orderless model; the others have their own. Of a mixture of orders the nats add up to
    those of the mixture: each order's are weighted by how likely it is, given the whole picture, that it was this one.
    """
    import torch
    import torch.nn.functional as F

    from .autoregressive import OrderlessNade, pixel_nats

    network, x = load(name), torch.from_numpy(pictures.reshape(len(pictures), -1)).float()
    with one_core.step(), torch.no_grad():
        if isinstance(network, OrderlessNade):
            answered = network.logits_in(x, torch.from_numpy(order(visit)))
            found = F.binary_cross_entropy_with_logits(answered, x, reduction="none")
        else:
            each = torch.stack([pixel_nats(network, x, which) for which in range(len(network.orders))])  # (R, N, D)
            total = -each.sum(dim=2)  # (R, N)
            mixed = np.log(len(total)) - total.logsumexp(dim=0)  # (N,)
            found = (each * total.softmax(dim=0)[:, :, None]).sum(dim=0)
            found *= (mixed / found.sum(dim=1))[:, None]  # the nats that not knowing the order costs, in proportion
    return found.reshape(pictures.shape).numpy()


@dataclass(frozen=True)
class Progress:
    """A model's completions so far. pictures (N, 28, 28) bool; reached (28, 28) bool: drawn by now. unheard: pixels
    that are kept, but come after the first drawn one in the model's order, which so has not heard of them."""

    name: str
    pictures: np.ndarray
    reached: np.ndarray
    unheard: int
    done: bool


def completions(
    name: str, drawing: np.ndarray, known: np.ndarray, visit: str, temperature: float, count: int, seed: int,
    halted: Callable[[], bool] = lambda: False, every: int = 56,
) -> Iterator[Progress]:  # fmt: skip
    """Complete a drawing (28, 28) bool `count` times from its known pixels (28, 28) bool; a report each `every` pixels.

    visit: the order for the orderless model, which takes the known pixels first whatever it is; a mixture of orders
    walks one of them, drawn with the seed. halted: asked at each report. UserError: no such model, temperature outside
    0 to 5, count outside 1 to MOST.
    """
    import torch

    from .autoregressive import OrderlessNade, complete, known_first

    if not 0 <= temperature <= 5:
        raise UserError("The temperature must lie between 0 and 5.")
    if not 1 <= count <= MOST:
        raise UserError(f"Between 1 and {MOST} completions can be drawn at a time.")
    network, flat = load(name), torch.from_numpy(known.ravel().copy())
    visits = known_first(torch.from_numpy(order(visit)), flat) if isinstance(network, OrderlessNade) else None
    source, which = generator(seed), 0
    if len(network.orders) > 1:  # of a mixture: one of its orders, all of which are equally likely
        which = int(torch.randint(len(network.orders), (1,), generator=source))
    given = torch.from_numpy(drawing.ravel().copy()).float().repeat(count, 1)
    pictures, reached = np.repeat(drawing[None] & known, count, axis=0), np.zeros(known.size, bool)
    walked = (network.orders[which] if visits is None else visits).numpy()
    unheard = _unheard(walked, known.ravel())
    steps: Iterator[tuple[int, Any]] = complete(
        network, given, flat, source, temperature, which, visits
    )  # fmt: skip
    for number in range(0, known.size, every):
        with one_core.step():
            for pixel, value in (next(steps) for _ in range(min(every, known.size - number))):
                pictures.reshape(count, -1)[:, pixel], reached[pixel] = value.numpy() > 0, True
        done = number + every >= known.size
        yield Progress(name, pictures.copy(), reached.reshape(known.shape).copy(), unheard, done)
        if halted():
            return


def _unheard(walked: np.ndarray, known: np.ndarray) -> int:
    drawn = np.flatnonzero(~known[walked])
    return 0 if not len(drawn) else int(known[walked][drawn[0] :].sum())
