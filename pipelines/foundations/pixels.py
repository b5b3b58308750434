"""Which autoregressive models are shipped, in which orders they read, and how a picture becomes black and white.

D is 784: MNIST's 28 by 28 pixels. Loads torch only when a model is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipelines.common.errors import UserError

if TYPE_CHECKING:
    from .autoregressive import Autoregressive

SIDE = 28
ORDERS = ("rows", "columns", "spiral", "random")

Kind = Literal["fvsbn", "nade", "made", "orderless"]


@dataclass(frozen=True)
class PixelModel:
    """One trained model. order: of its pixels; several are `count` drawn orders. hidden: widths of the layers.

    binarise: of its training pictures, see `black_and_white`. paper: what the papers report in nats, and where.
    """

    kind: Kind
    title: str
    hidden: tuple[int, ...] = ()
    order: str = "rows"
    count: int = 1
    binarise: str = "stochastic"
    paper: float | None = None
    source: str = ""


MODELS: dict[str, PixelModel] = {
    "fvsbn": PixelModel("fvsbn", "FVSBN", paper=97.45, source="Germain et al. 2015, table 6"),
    "fvsbn-columns": PixelModel("fvsbn", "FVSBN by columns", order="columns"),
    "fvsbn-spiral": PixelModel("fvsbn", "FVSBN from the middle", order="spiral"),
    "fvsbn-random": PixelModel("fvsbn", "FVSBN in a random order", order="random"),
    "made": PixelModel("made", "MADE, one mask", (1000,), paper=88.40, source="Germain et al. 2015, table 6"),
    "made-32": PixelModel(
        "made", "MADE, 32 masks", (1000, 1000), "random", 32, paper=86.64, source="Germain et al. 2015, table 6"
    ),
    "orderless": PixelModel(
        "orderless", "Orderless deep NADE", (500, 500), paper=None, source="Uria, Murray and Larochelle 2014"
    ),
    "nade": PixelModel("nade", "NADE", (500,), paper=88.33, source="Larochelle and Murray 2011"),
    "fvsbn-threshold": PixelModel("fvsbn", "FVSBN, threshold", binarise="threshold"),
    "nade-threshold": PixelModel("nade", "NADE, threshold", (500,), binarise="threshold"),
}


def order(name: str, seed: int = 0, side: int = SIDE) -> np.ndarray:
    """(side²,) int64: the pixel (in reading order) that is visited at each step. UserError: no such order.

    rows, columns: as one reads. spiral: from the middle outwards. random: a permutation of the seed.
    """
    grid = np.arange(side * side).reshape(side, side)
    if name == "rows":
        return grid.ravel()
    if name == "columns":
        return grid.T.ravel()
    if name == "spiral":
        y, x = np.indices(grid.shape) - (side - 1) / 2
        return np.lexsort((np.arctan2(y, x).ravel(), np.maximum(abs(x), abs(y)).ravel()))
    if name == "random":
        return np.random.default_rng(seed).permutation(side * side)
    raise UserError(f"The order of pixels must be one of {', '.join(ORDERS)}.")


def orders(model: PixelModel, side: int = SIDE) -> np.ndarray:
    """(R, side²) int64: those of a model."""
    return np.stack([order(model.order, seed, side) for seed in range(model.count)])


def black_and_white(images: np.ndarray, how: str, rng: np.random.Generator) -> np.ndarray:
    """uint8 grey of any shape -> bool. stochastic: a pixel is white with its grey as the probability, drawn anew each
    time (Salakhutdinov and Murray 2008 drew once); threshold: white from 128 on."""
    if how == "threshold":
        return images >= 128
    if how == "stochastic":
        return rng.random(images.shape, dtype=np.float32) * 255 < images
    raise ValueError(f"pictures are made black and white by stochastic or threshold, not {how!r}")


def build(model: PixelModel, side: int = SIDE) -> Autoregressive:
    """The network with its first weights."""
    import torch

    from .autoregressive import Fvsbn, Made, Nade, OrderlessNade

    found = torch.from_numpy(orders(model, side))
    if model.kind == "fvsbn":
        return Fvsbn(found)
    if model.kind == "nade":
        return Nade(found, *model.hidden)
    if model.kind == "made":
        return Made(found, model.hidden)
    return OrderlessNade(found, model.hidden)


# --- on disk: 8 bits a weight, and none of those that a mask makes nothing of --------------------------------


def _kept(network: Any, name: str) -> Any:
    """The mask (outputs, inputs) of a weight, or None. What no order of the model uses is not kept."""
    if name == "weight":  # FVSBN
        return network.mask
    if not hasattr(network, "hears") or not (name == "direct" or name.endswith(".weight")):
        return None
    depth = None if name == "direct" else int(name.split(".")[1])
    whole = network.hears(depth, 0)
    for which in range(1, len(network.orders)):
        whole = whole | network.hears(depth, which)
    return whole


def pack(network: Autoregressive) -> dict[str, Any]:
    """Tensors to save, see `quantised.pack`."""
    from . import quantised

    return quantised.pack(network, lambda name: _kept(network, name))


def unpack(network: Autoregressive, packed: Mapping[str, Any]) -> None:
    """Fill the network. ValueError: see `quantised.unpack`."""
    from . import quantised

    quantised.unpack(network, packed, lambda name: _kept(network, name))
