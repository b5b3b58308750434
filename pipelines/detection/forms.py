"""Which numbers a network runs in, and its fast form in them. torch only when asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipelines.common import catalogue
from pipelines.common.device import Device, pick
from pipelines.common.errors import UserError

from .config import DetrConfig, InputSize, NetworkConfig
from .contract import Precision

if TYPE_CHECKING:
    from torch import nn

    from .detr import Detr
    from .quantised import QuantisedBackbone

SCALING = InputSize(400, 667)  # size at which the example photos say how large the numbers of a network are


def device(precision: Precision, config: NetworkConfig) -> Device:
    """Where and in which numbers a network runs; dtype "int8" means bytes in the backbone and float32 behind it.

    Deformable DETR stays in float32: of its 25 ms bytes would save four, for a third of a point of AP.
    """
    if precision == "float32" or not isinstance(config, DetrConfig):
        return pick()
    from .quantised import usable

    return pick(reduced=True, integers=usable())


def reduced(network: Detr, dtype: str) -> Detr:
    """A copy of a fast form in smaller numbers. dtype: of `device`.

    UserError: 8-bit numbers are asked for and the example photos are missing, by which they are scaled.
    """
    import torch

    from .fused import cast, with_backbone

    if dtype != "int8":
        return cast(network, getattr(torch, dtype))
    return with_backbone(network, in_bytes(network.backbone))


def in_bytes(backbone: nn.Module) -> QuantisedBackbone:
    """A copy of a fast backbone in 8 bits, scaled by the example photos. UserError: these are missing."""
    import torch

    from .fused import FusedBackbone
    from .preprocess import prepare
    from .quantised import quantise

    assert isinstance(backbone, FusedBackbone)
    with torch.inference_mode():
        return quantise(backbone, [prepare([photo], SCALING).pixels for photo in examples()])


def examples() -> list[np.ndarray]:
    """The example photos, (H, W, 3) uint8 RGB."""
    folder = catalogue.ROOT / "assets" / "examples" / "detection"
    photos = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.jpg"))]
    if not photos:
        raise UserError("The example photos are missing, by which 8-bit numbers are scaled; choose float32.")
    return photos
