"""diffusers' and transformers' networks behind the contract: `load` is what the pipeline calls for backend "reference".

The libraries run their own networks over the same files as ours, in float32; the tokens, the samplers and the quick
looks are ours. They are imported when something of them is loaded, so that the demo runs without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.common.catalogue import Entry
from pipelines.common.checkpoint import paths
from pipelines.common.errors import UserError
from pipelines.common.quiet import quiet

from . import preview, prompt
from .config import DiffusionConfig
from .contract import Precision, PromptTokens
from .layout import published_configs
from .local import config_of
from .tokenizer import CLIPTokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Networks = tuple[Any, Any, Any]  # text encoder, denoiser, autoencoder


def load(entry: Entry, device: str | torch.device = "cpu") -> ReferenceDiffusion:
    """Backend over one checkpoint of the catalogue; its files as `local.load` reads them.

    UserError: a library is not installed or cannot read them; a file is missing, damaged or of another network.
    """
    diffusers, transformers = _libraries()
    found = paths(entry)
    config = config_of(entry, found)
    tokenizer = prompt.load_tokenizer(found["vocab"].parent, config.text)
    try:
        with quiet(diffusers.utils.logging, transformers.utils.logging):
            if entry.layout == "original":
                networks = _from_one_file(found["model"], config)
            else:
                networks = (
                    _from_folder(transformers.CLIPTextModel, found["text_encoder"], "dtype"),
                    _from_folder(diffusers.UNet2DConditionModel, found["unet"], "torch_dtype"),
                    _from_folder(diffusers.AutoencoderKL, found["vae"], "torch_dtype"),
                )
    except (RuntimeError, ValueError, LookupError, TypeError, OSError, ImportError) as error:
        raise UserError("The library cannot load these weights; choose local.") from error
    return ReferenceDiffusion(config, tokenizer, networks, device)


def _libraries() -> tuple[Any, Any]:
    """diffusers and transformers, whose types are not looked into. UserError: one is not installed."""
    try:
        import diffusers
        import transformers
    except ImportError as error:
        raise UserError("diffusers or transformers is not installed here; choose local.") from error
    return diffusers, transformers


def _from_folder(kind: Any, path: Path, dtype: str) -> Any:
    """The library's network in float32 with every tensor of the file in it. dtype: what the library calls this.

    UserError: they do not fit.
    """
    import torch

    options = {dtype: torch.float32, "variant": "fp16" if path.suffixes[-2:-1] == [".fp16"] else None}
    network, report = kind.from_pretrained(
        path.parent, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
    )
    wrong = sum(len(report[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    if wrong:  # it would go on with random numbers in their place
        raise UserError(f"{path.parent.name} does not hold the network that is asked for: {wrong} keys do not fit.")
    return network


def _from_one_file(path: Path, config: DiffusionConfig) -> Networks:
    """The libraries' networks from the original layout, by diffusers' own conversion."""
    import diffusers
    import transformers
    from diffusers.loaders import single_file_utils as library

    from . import single_file

    published = single_file.tensors(path)
    single_file.split(published)  # refuses another architecture in a sentence
    configs = published_configs(config, config.text.vocab_size - 1)
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**configs["text_encoder"]))
    if library.is_open_clip_model(published):
        state = library.convert_open_clip_checkpoint(text, published)
    else:
        state = library.convert_ldm_clip_checkpoint(published)
    unet = diffusers.UNet2DConditionModel.from_config(configs["unet"])
    vae = diffusers.AutoencoderKL.from_config(configs["vae"])
    return (
        _filled(text, {key.removeprefix("text_model."): value for key, value in state.items()}),
        _filled(unet, library.convert_ldm_unet_checkpoint(published, asdict(config.unet))),
        _filled(vae, library.convert_ldm_vae_checkpoint(published, configs["vae"])),
    )


def _filled(network: Any, state: Mapping[str, Tensor]) -> Any:
    """A library's network with the tensors that it knows, float32. RuntimeError: one is missing or of another shape.

    What it does not know is what `single_file` ignores with a reason: the conversion keeps the projection of CLIP and
    the tower's last layer.
    """
    names = network.state_dict().keys()
    network.load_state_dict({key: value for key, value in state.items() if key in names})
    return network


class ReferenceDiffusion:
    """The libraries' networks of one checkpoint, with the methods of ours. Keeps nothing of a picture."""

    def __init__(
        self, config: DiffusionConfig, tokenizer: CLIPTokenizer, networks: Networks, device: str | torch.device = "cpu"
    ) -> None:
        self.config, self.tokenizer, self.device = config, tokenizer, str(device)
        self._text, self._unet, self._vae = (each.to(device).eval().requires_grad_(False) for each in networks)
        self._preview = preview.Preview(config.vae, device)

    def tokens(self, text: str) -> tuple[PromptTokens, tuple[int, ...]]:
        """As ours, and by our tokenizer."""
        return prompt.read(self.tokenizer, text)

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """What the denoiser reads of each prompt: (B, T, D)."""
        import torch

        with torch.no_grad():
            ids = torch.tensor([self.tokens(each)[1] for each in prompts], device=self.device)
            return self._text(ids).last_hidden_state.cpu()

    def denoise(
        self, latents: Tensor, timestep: float, text: Tensor, guidance: float | None = None,
        record: Any = None, precision: Precision = "float32",
    ) -> Tensor:  # fmt: skip
        """As ours. UserError: a record or reduced precision is asked for."""
        import torch
        from diffusers import StableDiffusionPipeline

        if record is not None:
            raise UserError("Only our own networks can be looked into; choose local.")
        if precision != "float32":
            raise UserError("The reference runs in float32; choose local for reduced precision.")
        width, embedded = self.config.unet.time_cond_proj_dim, None
        if width is not None and guidance is not None:
            scales = torch.full((latents.shape[0],), float(guidance) - 1.0)
            embed: Any = StableDiffusionPipeline.get_guidance_scale_embedding  # needs no pipeline
            embedded = embed(None, scales, width).to(self.device)
        with torch.no_grad():
            steps = torch.tensor(float(timestep), device=self.device)
            given = latents.to(self.device, torch.float32), steps, text.to(self.device, torch.float32)
            return self._unet(*given, timestep_cond=embedded).sample.cpu()

    def encode(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 RGB -> (1, L, h, w) scaled: the mean of what the encoder says. ValueError: as ours."""
        import torch

        with torch.no_grad():
            pixels = preview.to_tensor(image, self.config.vae.factor, self.device)
            return (self._vae.encode(pixels).latent_dist.mode() * self.config.vae.scaling_factor).cpu()

    def decode(self, latents: Tensor) -> np.ndarray:
        """(1, L, h, w) scaled -> (H, W, 3) uint8 RGB."""
        import torch

        with torch.no_grad():
            scaled = latents.to(self.device, torch.float32) / self.config.vae.scaling_factor
            return preview.to_image(self._vae.decode(scaled).sample)

    def preview(self, latents: Tensor) -> np.ndarray:
        """(1, L, h, w) scaled -> (h * f, w * f, 3) uint8 RGB, quickly and perhaps smaller: see `preview.Preview`."""
        return self._preview.show(latents, self.decode)
