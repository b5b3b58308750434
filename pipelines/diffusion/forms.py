"""Which numbers the denoiser runs in, and its form in them. torch only when asked.

The text encoder runs once and the autoencoder twice a picture, and in smaller numbers the latter's smooth colours
show bands; so these two stay in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.common.device import Device, pick

from .contract import Precision

if TYPE_CHECKING:
    from .unet import UNet


def device(precision: Precision) -> Device:
    """Where and in which numbers the denoiser runs."""
    return pick(reduced=precision == "reduced")


def reduced(network: UNet, dtype: str) -> UNet:
    """A copy of a denoiser in smaller numbers and in its fast form, on its device. dtype: of `device`."""
    import torch

    from .fast import fuse
    from .unet import UNet

    with torch.device("meta"):
        copy = UNet(network.cfg)
    numbers = getattr(torch, dtype)
    state = {name: value.to(numbers) for name, value in network.state_dict().items()}
    copy.load_state_dict(state, strict=True, assign=True)
    return fuse(copy.eval().requires_grad_(False))
