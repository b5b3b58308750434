"""Our networks behind the contract: `load` is what the pipeline calls for backend "local"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.common.catalogue import Entry
from pipelines.common.checkpoint import paths

from . import forms, preview, prompt
from .config import PRESETS, DiffusionConfig
from .contract import Precision, PromptTokens
from .layout import read_config
from .tokenizer import CLIPTokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .clip_text import CLIPTextEncoder
    from .unet import Record, UNet
    from .vae import AutoencoderKL

    Networks = tuple[CLIPTextEncoder, UNet, AutoencoderKL]


def load(entry: Entry, device: str | torch.device = "cpu") -> LocalDiffusion:
    """Backend over one checkpoint of the catalogue.

    Layout "diffusers": its files "model_index", "text_encoder", "unet" and "vae", with the others of a model folder
    where that has them. Layout "original": "model", one file for all, and "vocab" of a tokenizer's folder.
    UserError: a file is missing, damaged, unsafe to read or of another network.
    """
    found = paths(entry)
    config = config_of(entry, found)
    tokenizer = prompt.load_tokenizer(found["vocab"].parent, config.text)
    return LocalDiffusion(config, tokenizer, _networks(entry, found, config), device)


def config_of(entry: Entry, found: dict[str, Path]) -> DiffusionConfig:
    """The sizes of an entry's networks. found: its files by name. UserError: as `load`."""
    return PRESETS[entry.preset] if entry.layout == "original" else read_config(found["model_index"].parent)


def _networks(entry: Entry, found: dict[str, Path], config: DiffusionConfig) -> Networks:
    from . import single_file, weights

    if entry.layout == "original":
        return single_file.load(found["model"], config)
    return (
        weights.load_part(found["text_encoder"], "text_encoder", config.text),
        weights.load_part(found["unet"], "unet", config.unet),
        weights.load_part(found["vae"], "vae", config.vae),
    )


class LocalDiffusion:
    """The networks of one checkpoint, the denoiser in each precision that was asked for so far.

    Keeps nothing of a picture. Tensors that come in may be on any device; what goes out is on the CPU in float32.
    Letters: B batch, T tokens, D width, L latent channels, h and w the latent's sides.
    """

    def __init__(
        self, config: DiffusionConfig, tokenizer: CLIPTokenizer, networks: Networks, device: str | torch.device = "cpu"
    ) -> None:
        self.config, self.tokenizer, self.device = config, tokenizer, str(device)
        from .fast import fuse

        text_encoder, unet, vae = networks
        for each in networks:
            each.to(device).eval().requires_grad_(False)
        self._text, self._vae = text_encoder, fuse(vae)
        self._unets: dict[str, UNet] = {"float32": fuse(unet)}
        self._preview = preview.Preview(config.vae, device)

    def unet(self, precision: Precision = "float32") -> UNet:
        """The denoiser in a precision: see `forms.device`."""
        dtype = forms.device(precision).dtype
        if dtype not in self._unets:
            self._unets[dtype] = forms.reduced(self._unets["float32"], dtype)
        return self._unets[dtype]

    def tokens(self, text: str) -> tuple[PromptTokens, tuple[int, ...]]:
        """A prompt's pieces, and the T ids that the text encoder gets of it: see `prompt.read`."""
        return prompt.read(self.tokenizer, text)

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """What the denoiser reads of each prompt: (B, T, D)."""
        import torch

        with torch.no_grad():
            ids = torch.tensor([self.tokens(each)[1] for each in prompts], device=self.device)
            return self._text(ids).cpu()

    def denoise(
        self, latents: Tensor, timestep: float, text: Tensor, guidance: float | None = None,
        record: Record | None = None, precision: Precision = "float32",
    ) -> Tensor:  # fmt: skip
        """What the denoiser says of latents (B, L, h, w) that are as noisy as at `timestep`, given text (B, T, D):
        noise or velocity (B, L, h, w).

        guidance: the scale, for networks that were taught to follow it (LCM); others do not look at it. record: gets
        where the cross-attentions look.
        """
        import torch

        from .unet import guidance_embedding

        network, width = self.unet(precision), self.config.unet.time_cond_proj_dim
        dtype, batch = network.conv_in.weight.dtype, latents.shape[0]
        with torch.no_grad():
            steps = torch.full((batch,), float(timestep), device=self.device)
            embedded = None
            if width is not None and guidance is not None:
                scales = torch.full((batch,), float(guidance))
                embedded = guidance_embedding(scales, width).to(self.device, dtype)
            given = latents.to(self.device, dtype), steps, text.to(self.device, dtype)
            return network(*given, embedded, record).float().cpu()

    def encode(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 RGB -> (1, L, h, w) scaled: the mean of what the encoder says.

        ValueError: a side is no multiple of the autoencoder's factor.
        """
        import torch

        with torch.no_grad():
            pixels = preview.to_tensor(image, self.config.vae.factor, self.device)
            return (self._vae.encode(pixels).mean * self.config.vae.scaling_factor).cpu()

    def decode(self, latents: Tensor) -> np.ndarray:
        """(1, L, h, w) scaled -> (H, W, 3) uint8 RGB."""
        import torch

        with torch.no_grad():
            scaled = latents.to(self.device, torch.float32) / self.config.vae.scaling_factor
            return preview.to_image(self._vae.decode(scaled))

    def preview(self, latents: Tensor) -> np.ndarray:
        """(1, L, h, w) scaled -> (h * f, w * f, 3) uint8 RGB, quickly and perhaps smaller: see `preview.Preview`."""
        return self._preview.show(latents, self.decode)
