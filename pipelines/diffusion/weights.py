"""Published files -> networks, and back: the diffusers folder layout (model_index.json and a folder each for the
parts) and the tiny autoencoder. The original layout, one file for all, is `single_file`'s.

Our parameter names are the published ones, so a file is nearly a state dict; the exceptions are the table below.
Loading is strict both ways: a key is loaded, renamed, or ignored for a written reason, and anything else raises with
the list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines.common.checkpoint import read
from pipelines.common.convert import ConversionError, KeyMap
from pipelines.common.errors import UserError

from .clip_text import CLIPTextEncoder
from .config import CLIPTextConfig, DiffusionConfig, TAESDConfig, UNetConfig, VAEConfig
from .layout import published_configs, read_taesd_config
from .layout import read_config as read_config  # part of what a folder holds: callers find it here
from .taesd import AutoencoderTiny
from .unet import UNet
from .vae import AutoencoderKL

Part = Literal["text_encoder", "unet", "vae"]
Table = tuple[tuple[str, str], ...]  # (pattern, replacement), run in this order
PARTS: tuple[Part, ...] = ("text_encoder", "unet", "vae")

# What older or other files call the same parameter.
RENAMES: dict[str, Table] = {
    "text_encoder": ((r"^text_model\.", ""),),  # written by transformers before and, in part, after version 5
    "unet": (),
    "vae": (  # files from before diffusers renamed its attention
        (r"(attentions\.\d+)\.query\.", r"\1.to_q."),
        (r"(attentions\.\d+)\.key\.", r"\1.to_k."),
        (r"(attentions\.\d+)\.value\.", r"\1.to_v."),
        (r"(attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
    ),
    "taesd": (),
}
IGNORED: dict[str, tuple[tuple[str, str], ...]] = {
    "text_encoder": (
        (r"(^|\.)embeddings\.position_ids$", "a buffer of 0, 1, 2, ..., which is computed"),
        (r"^text_projection\.", "maps to the space shared with pictures, which the denoiser doesn't read"),
    ),
    "unet": (),
    "vae": (),
    "taesd": (),
}
# The first of these that is there is read: the float32 file, then the float16 variant, which holds the same, rounded.
FILES = {
    "text_encoder": ("model.safetensors", "model.fp16.safetensors"),
    "unet": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"),
    "vae": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"),
}


def part_file(folder: Path, part: Part) -> Path:
    """The file of a part that is read. UserError: the folder has none."""
    path = next((folder / part / name for name in FILES[part] if (folder / part / name).is_file()), None)
    if path is None:
        raise UserError(f"The model folder has no {part}/{FILES[part][0]}: fetch these weights again.")
    return path


def load_text_encoder(folder: Path, cfg: CLIPTextConfig) -> CLIPTextEncoder:
    """From `folder`/text_encoder, float32 on the CPU. UserError: as `load_part`."""
    return load_part(part_file(folder, "text_encoder"), "text_encoder", cfg)


def load_unet(folder: Path, cfg: UNetConfig) -> UNet:
    """From `folder`/unet, float32 on the CPU. UserError: as `load_part`."""
    return load_part(part_file(folder, "unet"), "unet", cfg)


def load_vae(folder: Path, cfg: VAEConfig) -> AutoencoderKL:
    """From `folder`/vae, float32 on the CPU. UserError: as `load_part`."""
    return load_part(part_file(folder, "vae"), "vae", cfg)


def load_part(path: Path, part: Part, cfg: CLIPTextConfig | UNetConfig | VAEConfig) -> Any:
    """One part from its file, in eval mode and float32 on the CPU, whatever the file's numbers are.

    UserError: the file is missing or damaged, or `cfg` describes another network, or none.
    """
    return fill(build(part, cfg), keymap(part), read(path), f"{part}/{path.name}")


def load_taesd(path: Path) -> AutoencoderTiny:
    """The tiny autoencoder with config.json beside it, as `load_part`. UserError: likewise."""
    cfg = read_taesd_config(path.with_name("config.json"))
    return fill(build("taesd", cfg), keymap("taesd"), read(path), path.name)


def load_taesd_halves(encoder: Path, decoder: Path) -> AutoencoderTiny:
    """The tiny autoencoder from its author's own two files, as `load_part`. UserError: likewise.

    Their names are places in a sequence, in which the decoder's first is the bending of the latents.
    """
    state: dict[str, Tensor] = {}
    for half, path, before in (("encoder", encoder, 0), ("decoder", decoder, 1)):
        for key, value in read(path).items():
            place, _, rest = key.partition(".")
            name = f"{half}.layers.{int(place) - before}.{rest}" if place.isdigit() else f"{half}.{key}"
            state[name] = value
    return fill(build("taesd", TAESDConfig()), keymap("taesd"), state, decoder.name)


def build(part: str, cfg: Any) -> nn.Module:
    """The network of a part on meta: no random numbers, no memory. UserError: nothing is built with such sizes."""
    kinds: dict[str, Any] = {
        "text_encoder": CLIPTextEncoder, "unet": UNet, "vae": AutoencoderKL, "taesd": AutoencoderTiny,
    }  # fmt: skip
    try:
        with torch.device("meta"):
            return kinds[part](cfg)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"This model can't be read: the configuration of its {part} describes no network.") from error


def fill(module: nn.Module, keys: KeyMap, published: Mapping[str, Any], said: str) -> Any:
    """Puts a file's tensors into a network that may be on meta, as float32 and in eval mode. said: the file's name.

    Every tensor is copied out of the file, which may be written anew while the network lives, as training does.
    UserError: they are no tensors, or those of another network.
    """
    if not all(isinstance(value, Tensor) for value in published.values()):
        raise UserError(f"{said} is no file of weights: it does not hold tensors by name.")
    try:
        state = keys.apply(published, module.state_dict())
    except ConversionError as error:
        count, first, *_ = str(error).splitlines()  # the whole list is in the cause
        raise UserError(
            f"{said} does not hold the network that is asked for: {count.rstrip(':')}, the first is “{first}”."
        ) from error
    for key in state:
        state[key] = state[key].to(torch.float32, copy=True)
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval()


def keymap(part: str, before: Table = ()) -> KeyMap:
    """The table from the published names of a part to ours. before: renames of another layout, which run first."""
    keys = KeyMap()
    for pattern, replacement in (*before, *RENAMES[part]):
        keys.rename(pattern, replacement)
    for pattern, reason in IGNORED[part]:
        keys.ignore(pattern, reason)
    if part == "vae":
        keys.squeeze(r"attentions\.\d+\.to_(q|k|v|out\.0)\.weight$")  # 1x1 convolutions in the first files
    return keys


def convert(part: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict under our names; expected: the module's own. ConversionError lists every misfit."""
    return keymap(part).apply(state, expected)


def write_folder(
    folder: Path,
    cfg: DiffusionConfig,
    parts: dict[str, nn.Module],
    dtype: torch.dtype = torch.float32,
    end_id: int = 2,
) -> None:
    """Writes the folder that diffusers' StableDiffusionPipeline reads, without the tokenizer's files."""
    configs = published_configs(cfg, end_id)
    configs["text_encoder"]["dtype"] = str(dtype).removeprefix("torch.")  # else the library reads this part as float32
    for part, config in configs.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for part, module in parts.items():
        prefix = "text_model." if part == "text_encoder" else ""
        state = {
            prefix + key: value.detach().to("cpu", dtype).contiguous() for key, value in module.state_dict().items()
        }
        path = folder / part / FILES[part][0]
        save_file(state, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors writes for the owner only
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.30.0",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
