"""The recipes of the autoregressive models: stochastic gradient descent on exact nats, on freshly binarised MNIST.

Every step draws its pictures' pixels anew from their greys, so that no picture is seen twice; the papers trained on one
draw. Judged on one fixed draw of the 10,000 test pictures (seed 0). 50,000 pictures train, the last 10,000 of MNIST's
training set choose the recipe.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.common.training import Machine, Trainer, TrainOptions

from .autoregressive import Autoregressive, OrderlessNade, log_likelihood, pixel_nats
from .pixels import MODELS, PixelModel, black_and_white, build, orders, pack, unpack

KEPT_BACK = 10_000  # of the training set, to choose by
CHECKED = 1_000  # of those, at each check
TEST_SEED = 0
TEST_ORDERS = 8  # of the orderless model, whose mixture is judged


@dataclass(frozen=True)
class Recipe:
    """steps: all of them; the rate falls evenly from `rate` to nothing. batch: pictures a step."""

    steps: int
    rate: float
    batch: int = 100


RECIPES: dict[str, Recipe] = {
    "fvsbn": Recipe(20_000, 5e-3),
    "fvsbn-columns": Recipe(4_000, 5e-3),
    "fvsbn-spiral": Recipe(4_000, 5e-3),
    "fvsbn-random": Recipe(4_000, 5e-3),
    "nade": Recipe(10_000, 2e-3),
    "made": Recipe(20_000, 2e-3),
    "made-32": Recipe(20_000, 2e-3, batch=200),  # what is shipped began, by --init, from 15,000 steps of 100
    "orderless": Recipe(20_000, 2e-3),
}


def recipe(name: str) -> Recipe:
    """Of a model of `pixels.MODELS`: its own, or that of its kind."""
    return RECIPES.get(name) or RECIPES[MODELS[name].kind]


class Objective:
    """Mean nats of a batch: exact, but of one of the orders (step by step another), or the orderless estimate."""

    def __init__(self, network: Autoregressive, model: PixelModel, images: np.ndarray, machine: Machine) -> None:
        self.network, self.model, self.images, self.machine = network, model, images, machine

    def __call__(self, rng: np.random.Generator, count: int) -> dict[str, Tensor]:
        chosen = self.images[rng.integers(0, len(self.images), count)]
        x = torch.from_numpy(black_and_white(chosen, self.model.binarise, rng)).float().to(self.machine.device)
        if isinstance(self.network, OrderlessNade):
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            nats = self.network.loss(x, generator)
        else:
            nats = pixel_nats(self.network, x, int(rng.integers(len(self.network.orders)))).sum(dim=1)
        return {"loss": nats.mean()}


def pictures(folder: Path, part: str) -> np.ndarray:
    """(N, 784) uint8 of MNIST's train or test set."""
    with np.load(folder / f"{part}.npz") as file:
        return file["images"].reshape(-1, 784)


@torch.no_grad()
def mean_nats(network: Autoregressive, x: np.ndarray, batch: int = 250) -> float:
    """-log p of pictures (N, D) bool, the mean over them."""
    parts = [log_likelihood(network, torch.from_numpy(x[k : k + batch]).float()) for k in range(0, len(x), batch)]
    return -float(torch.cat(parts).double().mean())


@torch.no_grad()
def estimated_nats(network: OrderlessNade, x: np.ndarray, draws: int = 20) -> float:
    """Mean nats over all orders, estimated with `draws` sets of known pixels for each picture."""
    generator = torch.Generator().manual_seed(0)
    given = torch.from_numpy(x).float()
    return float(torch.stack([network.loss(given, generator).mean() for _ in range(draws)]).mean())


def train(name: str, data: Path, out: Path, minutes: float, init: Path | None = None) -> None:
    """Train one model, or go on with it, until its steps or the minutes are over. The log is OUT/pixels-NAME.csv.

    init: a folder with an exported model of the name, which a new run begins from.
    """
    model, how = MODELS[name], recipe(name)
    machine = Machine(torch.device("cpu"), 1, nullcontext)
    options = TrainOptions(
        how.rate, how.batch, warmup=100, ema_decay=0.999, clip=20.0, minutes=minutes, finish=how.steps,
        log_every=500, check_every=2_500,
    )  # fmt: skip
    torch.manual_seed(options.seed)
    network = build(model)
    if init is not None:
        unpack(network, load_file(init / f"{name}.safetensors"))
    images = pictures(data, "train")
    rng = np.random.default_rng(TEST_SEED)
    kept = black_and_white(images[-KEPT_BACK:][:CHECKED], model.binarise, rng)
    trainer = Trainer(out, f"pixels-{name}", network, options, machine, ("loss", "nats"), adam=lambda _: True)

    def check(step: int) -> dict[str, float]:
        if isinstance(network, OrderlessNade):
            return {"nats": estimated_nats(network, kept)}
        return {"nats": mean_nats(network, kept)}

    trainer.run(Objective(network, model, images[:-KEPT_BACK], machine), check)


def trained(name: str, out: Path) -> Autoregressive:
    """The averaged weights of a run."""
    network = build(MODELS[name])
    saved = torch.load(out / f"pixels-{name}.pt", map_location="cpu", weights_only=True)
    with torch.no_grad():
        for key, value in network.named_parameters():
            value.copy_(saved["ema"][key])
    return network.eval()


def test_nats(name: str, network: Autoregressive, data: Path) -> float:
    """Of all 10,000 test pictures. The orderless model's are those of the mixture of TEST_ORDERS random orders."""
    x = black_and_white(pictures(data, "test"), MODELS[name].binarise, np.random.default_rng(TEST_SEED))
    if isinstance(network, OrderlessNade):
        chosen = orders(PixelModel("orderless", "", order="random", count=TEST_ORDERS))
        network.orders = torch.from_numpy(chosen)
    return mean_nats(network, x)


def export(name: str, data: Path, out: Path, weights: Path) -> dict[str, float]:
    """Write WEIGHTS/NAME.safetensors in 8 bits; returns test nats before and after, also in WEIGHTS/NAME.json."""
    network = trained(name, out)
    whole = test_nats(name, network, data)
    packed = pack(network)
    weights.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in packed.items()}, weights / f"{name}.safetensors")
    again = build(MODELS[name]).eval()
    unpack(again, packed)
    found = {"test_nats_float": round(whole, 3), "test_nats": round(test_nats(name, again, data), 3)}
    steps = torch.load(out / f"pixels-{name}.pt", map_location="cpu", weights_only=True)["step"]
    (weights / f"{name}.json").write_text(json.dumps({**found, "steps": steps}) + "\n")
    return found
