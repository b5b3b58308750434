"""Pictures between arrays and tensors, and quick looks at latents. torch only when asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.common import catalogue
from pipelines.common.checkpoint import locate, paths
from pipelines.common.errors import UserError

from .config import VAEConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SMALL = 128  # channels up to which a decoder is its own preview: the bundled one takes some milliseconds
# Red, green and blue in [-1, 1] of each latent channel of Stable Diffusion 1.x, fitted by a user of the library
# (discuss.huggingface.co/t/decoding-latents-to-rgb-without-upscaling/23204); 2.x kept the autoencoder.
COLOURS = ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473))
SCALING = 0.18215  # of the latents that these colours, and the tiny autoencoder, are for


def to_tensor(image: np.ndarray, factor: int, device: str | torch.device = "cpu") -> Tensor:
    """(H, W, 3) uint8 RGB -> (1, 3, H, W) float32 in [-1, 1].

    ValueError: of another kind, or a side is no multiple of `factor`.
    """
    import torch

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"not an RGB picture in bytes: {image.dtype} {image.shape}")
    if 0 in image.shape or image.shape[0] % factor or image.shape[1] % factor:
        raise ValueError(f"sides {image.shape[:2]} are no multiples of {factor}")
    pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None]
    return pixels.float() / 127.5 - 1.0


def to_image(pixels: Tensor) -> np.ndarray:
    """(1, 3, H, W) about [-1, 1] -> (H, W, 3) uint8 RGB, clipped. What is no number becomes grey."""
    levels = (pixels[0].float().nan_to_num(0.0) * 127.5 + 127.5).clamp(0.0, 255.0).round()
    return levels.permute(1, 2, 0).byte().cpu().numpy()


def rough(latents: Tensor) -> np.ndarray:
    """(1, 4, h, w) of Stable Diffusion, scaled -> (h, w, 3) uint8: each cell's colour, by a matrix."""
    import torch

    colours = torch.tensor(COLOURS, device=latents.device)
    return to_image(torch.einsum("blhw,lc->bchw", latents.float(), colours))


class Preview:
    """Quick looks at the latents of one autoencoder. Keeps nothing of a picture."""

    def __init__(self, config: VAEConfig, device: str | torch.device = "cpu") -> None:
        self.config, self.device = config, device
        self._tiny: Any = None
        self._damaged = False

    def show(self, latents: Tensor, decode: Callable[[Tensor], np.ndarray]) -> np.ndarray:
        """(1, L, h, w) scaled -> (h * f, w * f, 3) uint8; f is the autoencoder's factor, or 1 for a rough look.

        By the decoder itself where it is small; else by the tiny autoencoder where it is on this machine; else by a
        matrix, which is known for Stable Diffusion's latents only; else by the decoder all the same.
        """
        import torch

        cfg = self.config
        known = cfg.latent_channels == len(COLOURS) and cfg.scaling_factor == SCALING
        if max(cfg.block_out_channels) <= SMALL or not known:
            return decode(latents)
        tiny = self._load()
        if tiny is None:
            return rough(latents)
        with torch.no_grad():
            return to_image(tiny.decode(latents.to(self.device, torch.float32)))

    def _load(self) -> Any:
        """The tiny autoencoder once it is here; a damaged one is as good as none, since a run needs no previews."""
        if self._tiny is None and not self._damaged:
            entry = next((each for each in catalogue.entries("diffusion", "preview") if locate(each)), None)
            if entry is not None:
                from . import weights

                try:
                    tiny = weights.load_taesd(paths(entry)["model"])
                    self._tiny = tiny.requires_grad_(False).to(self.device)
                except UserError:
                    self._damaged = True
        return self._tiny
