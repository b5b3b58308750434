"""A small network learns features of two or three numbers from scikit-learn's digits, under any of the losses.

Beside its own digits it is asked of digits that took no part in the training, as a face network is asked of people it
never saw: what looks well apart on the circle need not tell those apart.

B samples, C classes, D feature dimensions, N test pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.common.device import generator

from . import one_core
from .config import MarginRecipe
from .margin_contract import TESTED, Moment, Probe
from .margin_softmax import CenterLoss, LargeMarginSoftmax, MarginLoss, build

SIDE = 8  # pixels
LOOK = 25  # steps between two looks
BLEND = 5.0  # L- and A-Softmax are never trained on psi alone: at the end cos t weighs five times as much


@dataclass(frozen=True)
class Digits:
    """pixels (n, 64) float32 in [0, 1], labels (n,) int64: of the part for training, and of the part for testing."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


@cache
def digits() -> Digits:
    """scikit-learn's copy of the optical digits (Alpaydin and Kaynak 1998): 1797 pictures of 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    pixels, labels = (pixels / 16).astype(np.float32), labels.astype(np.int64)
    return Digits(pixels[:-TESTED], labels[:-TESTED], pixels[-TESTED:], labels[-TESTED:])


class Encoder(nn.Module):
    """(B, 64) -> (B, D). Two hidden layers, of 128 and 64; nothing bounds or normalises the features."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(SIDE * SIDE, 128), nn.PReLU(), nn.Linear(128, 64), nn.PReLU(), nn.Linear(64, dimension)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


def train(recipe: MarginRecipe) -> Iterator[Moment]:
    """Train; a look before the first step, one every LOOK steps, and one at the end. Leaving it stops the work."""
    data, classes = digits(), 10 - recipe.unseen
    seen = data.train_labels < classes
    pixels, labels = torch.from_numpy(data.train[seen]), torch.from_numpy(data.train_labels[seen])
    with one_core.seeded(recipe.seed):
        network = Encoder(recipe.dimension)
        loss = build(recipe.loss, classes, recipe.dimension, recipe.margin, recipe.scale)
    optimiser = torch.optim.AdamW([*network.parameters(), *loss.parameters()], 2e-3, weight_decay=5e-4, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=recipe.steps)
    source = generator(recipe.seed)
    losses: list[float] = []
    yield _look(recipe, 0, losses, network, loss)
    for done in range(1, recipe.steps + 1):
        with one_core.step():
            if isinstance(loss, LargeMarginSoftmax):
                loss.blend = blend(done / recipe.steps)
            pick = torch.randint(len(labels), (recipe.batch,), generator=source)
            features = network(pixels[pick])
            value = loss(features, labels[pick])
            optimiser.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_([*network.parameters(), *loss.parameters()], 10.0)
            optimiser.step()
            schedule.step()
            loss.after_step(features.detach(), labels[pick])
            losses.append(float(value.detach()))
        if done % LOOK == 0 or done == recipe.steps:
            yield _look(recipe, done, list(losses), network, loss)


def blend(share: float) -> float:
    """lambda of L- and A-Softmax after that share of the training: from 1000 down to where SphereFace's code ends."""
    return max(BLEND, 1000.0 * (1.0 - share) ** 20)


@one_core.step()
@torch.no_grad()
def _look(recipe: MarginRecipe, step: int, losses: list[float], network: Encoder, loss: MarginLoss) -> Moment:
    data, classes = digits(), 10 - recipe.unseen
    features = network(torch.from_numpy(data.test))
    decided = loss.logits(features).argmax(dim=1).numpy()
    known = data.test_labels < classes
    bias = getattr(loss, "bias", None)
    found = features.numpy()
    return Moment(
        recipe, step, losses, found, data.test_labels, loss.weight.detach().numpy().copy(),
        None if bias is None else bias.detach().numpy().copy(),
        float((decided == data.test_labels)[known].mean()),
        equal_error_rate(found, data.test_labels, known),
        equal_error_rate(found, data.test_labels, ~known),
        centres=loss.centres.numpy().copy() if isinstance(loss, CenterLoss) else None,
    )  # fmt: skip


def equal_error_rate(features: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> float:
    """The share of errors at the threshold where as many equal pairs are refused as different ones are taken.

    features (N, D) are compared by the cosine of their angle, each of the chosen ones, (N,) bool, with every other. NaN
    if there are no equal or no different pairs.
    """
    features, labels = features[chosen], labels[chosen]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    upper = np.triu(np.ones((len(labels), len(labels)), bool), 1)
    score, same = (unit @ unit.T)[upper], (labels[:, None] == labels[None, :])[upper]
    if same.all() or not same.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    taken = np.cumsum(~same[order]) / (~same).sum()
    refused = 1 - np.cumsum(same[order]) / same.sum()
    place = int(np.argmax(taken >= refused))
    return float((taken[place] + refused[place]) / 2)


def restored(moment: Moment, margin: float | None = None, scale: float | None = None) -> MarginLoss:
    """The loss of a moment, perhaps under another margin or scale; L- and A-Softmax with the blend of the end."""
    recipe = moment.recipe
    loss = build(
        recipe.loss, len(moment.weights), recipe.dimension, recipe.margin if margin is None else margin,
        recipe.scale if scale is None else scale,
    )  # fmt: skip
    with torch.no_grad():
        loss.weight.copy_(torch.from_numpy(moment.weights))
        if moment.bias is not None:
            loss.bias.copy_(torch.from_numpy(moment.bias))  # type: ignore[union-attr, operator]
        if isinstance(loss, CenterLoss) and moment.centres is not None:
            loss.centres.copy_(torch.from_numpy(moment.centres))
    if isinstance(loss, LargeMarginSoftmax):
        loss.blend = BLEND
    return loss


@one_core.step()
@torch.no_grad()
def territory(loss: MarginLoss, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, D) -> who wins each point, (n,), and whether it would win with its margin too, (n,) bool."""
    features = torch.from_numpy(points.astype(np.float32))
    winner = loss.logits(features).argmax(dim=1)
    return winner.numpy(), (loss.logits(features, winner).argmax(dim=1) == winner).numpy()


def probe(moment: Moment, place: int, margin: float | None = None, scale: float | None = None) -> Probe | None:
    """The place-th test picture. None if its digit took no part in the training: then no answer is right."""
    label = int(moment.labels[place])
    if label >= len(moment.weights):
        return None
    loss, right = restored(moment, margin, scale), torch.tensor([label])
    feature = torch.from_numpy(moment.features[place : place + 1]).requires_grad_()
    value = loss(feature, right)
    (gradient,) = torch.autograd.grad(value, feature)
    without = nn.functional.cross_entropy(loss.logits(feature), right)
    (unmoved,) = torch.autograd.grad(without, feature)
    with torch.no_grad():
        angles = torch.rad2deg(torch.acos(loss.cosines(feature).clamp(-1, 1)))[0]
        plain, told = loss.logits(feature)[0], loss.logits(feature, right)[0]
    return Probe(
        label, angles.numpy(), plain.numpy(), told.numpy(), float(value.detach()), gradient[0].numpy(),
        unmoved[0].numpy(),
    )  # fmt: skip


@torch.no_grad()
def curve(name: str, margin: float, degrees: np.ndarray, blended: bool = False) -> np.ndarray:
    """What the right class has in place of cos t, at each angle (n,) from 0 to 180 degrees; before any scale. blended:
    as L- and A-Softmax are trained at the end."""
    loss = build(name, 2, 2, margin, 1.0)
    if blended and isinstance(loss, LargeMarginSoftmax):
        loss.blend = BLEND
    return loss.psi(torch.cos(torch.deg2rad(torch.from_numpy(degrees)))).numpy()
