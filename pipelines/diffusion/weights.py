"""Reading and writing the diffusers folder layout: model_index.json and a folder each for the parts.

Our parameter names are the published ones, so a file is nearly a state dict; the exceptions are the table below.
Loading is strict both ways: a key is loaded, renamed, or ignored for a written reason, and anything else raises with
the list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.common.convert import KeyMap

from .clip_text import CLIPTextEncoder
from .config import CLIPTextConfig, DiffusionConfig, ScheduleConfig, UNetConfig, VAEConfig
from .unet import UNet
from .vae import AutoencoderKL

# (pattern, replacement): what older or other files call the same parameter.
RENAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "text_encoder": ((r"^text_model\.", ""),),  # written by transformers before and, in part, after version 5
    "unet": (),
    "vae": (  # files from before diffusers renamed its attention
        (r"(attentions\.\d+)\.query\.", r"\1.to_q."),
        (r"(attentions\.\d+)\.key\.", r"\1.to_k."),
        (r"(attentions\.\d+)\.value\.", r"\1.to_v."),
        (r"(attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
    ),
}
IGNORED: dict[str, tuple[tuple[str, str], ...]] = {
    "text_encoder": (
        (r"(^|\.)embeddings\.position_ids$", "a buffer of 0, 1, 2, ..., which is computed"),
        (r"^text_projection\.", "maps to the space shared with pictures, which the denoiser doesn't read"),
    ),
    "unet": (),
    "vae": (),
}
FILES = {
    "text_encoder": ("model.safetensors", "model.fp16.safetensors"),
    "unet": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"),
    "vae": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"),
}

# What our networks do where a config.json could ask for something else.
BUILT: dict[str, dict[str, Any]] = {
    "text_encoder": {},
    "unet": {
        "act_fn": "silu",
        "addition_embed_type": None,
        "center_input_sample": False,
        "class_embed_type": None,
        "conv_in_kernel": 3,
        "downsample_padding": 1,
        "dual_cross_attention": False,
        "encoder_hid_dim": None,
        "mid_block_scale_factor": 1,
        "num_class_embeds": None,
        "only_cross_attention": False,
        "resnet_time_scale_shift": "default",
        "time_embedding_type": "positional",
        "transformer_layers_per_block": 1,
    },
    "vae": {"act_fn": "silu", "use_quant_conv": True, "use_post_quant_conv": True, "shift_factor": None},
    "scheduler": {"beta_schedule": "scaled_linear", "trained_betas": None, "rescale_betas_zero_snr": False},
}

Config = TypeVar("Config", CLIPTextConfig, UNetConfig, VAEConfig, ScheduleConfig)


def read_config(folder: Path) -> DiffusionConfig:
    """The sizes of every part of a model folder. Raises ValueError where a file asks for what isn't built here."""
    scheduler = folder / "scheduler" / "scheduler_config.json"
    published = {
        "text_encoder": _read_json(folder / "text_encoder" / "config.json"),
        "unet": _read_json(folder / "unet" / "config.json"),
        "vae": _read_json(folder / "vae" / "config.json"),
        "scheduler": _read_json(scheduler) if scheduler.exists() else {},
    }
    for part, only in BUILT.items():
        for key, value in only.items():
            if published[part].get(key, value) != value:
                raise ValueError(f"{part} asks for {key} = {published[part][key]!r}, and only {value!r} is built here")
    return DiffusionConfig(
        text=_fill(CLIPTextConfig, published["text_encoder"]),
        unet=_fill(UNetConfig, published["unet"]),
        vae=_fill(VAEConfig, published["vae"]),
        schedule=_fill(ScheduleConfig, published["scheduler"]),
    )


def load_text_encoder(folder: Path, cfg: CLIPTextConfig) -> CLIPTextEncoder:
    """From `folder`/text_encoder, float32 on the CPU."""
    return _load(CLIPTextEncoder(cfg), folder, "text_encoder")


def load_unet(folder: Path, cfg: UNetConfig) -> UNet:
    """From `folder`/unet, float32 on the CPU."""
    return _load(UNet(cfg), folder, "unet")


def load_vae(folder: Path, cfg: VAEConfig) -> AutoencoderKL:
    """From `folder`/vae, float32 on the CPU."""
    return _load(AutoencoderKL(cfg), folder, "vae")


def convert(part: str, state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict under our names; expected: the module's own. ConversionError lists every misfit."""
    keys = KeyMap()
    for pattern, replacement in RENAMES[part]:
        keys.rename(pattern, replacement)
    for pattern, reason in IGNORED[part]:
        keys.ignore(pattern, reason)
    if part == "vae":
        keys.squeeze(r"attentions\.\d+\.to_(q|k|v|out\.0)\.weight$")  # 1x1 convolutions in the first files
    return keys.apply(state, expected)


def write_folder(
    folder: Path,
    cfg: DiffusionConfig,
    parts: dict[str, nn.Module],
    dtype: torch.dtype = torch.float32,
    end_id: int = 2,
) -> None:
    """Writes the folder that diffusers' StableDiffusionPipeline reads, without the tokenizer's files."""
    configs = _published_configs(cfg, end_id)
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


def _published_configs(cfg: DiffusionConfig, end_id: int) -> dict[str, dict[str, Any]]:
    levels = len(cfg.vae.block_out_channels)
    text_ids = {"bos_token_id": end_id - 1, "eos_token_id": end_id, "pad_token_id": end_id}
    return {
        "text_encoder": {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            **asdict(cfg.text),
            **text_ids,
            "projection_dim": cfg.text.hidden_size,
        },
        "unet": {"_class_name": "UNet2DConditionModel", **asdict(cfg.unet)},
        "vae": {
            "_class_name": "AutoencoderKL",
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            **asdict(cfg.vae),
        },
        "scheduler": {
            "_class_name": "DPMSolverMultistepScheduler",
            "beta_schedule": "scaled_linear",
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
            "timestep_spacing": "leading",
            **asdict(cfg.schedule),
        },
    }


def _load(module: Any, folder: Path, part: str) -> Any:
    path = next((folder / part / name for name in FILES[part] if (folder / part / name).exists()), None)
    if path is None:
        raise FileNotFoundError(f"the model folder has no {part}/{FILES[part][0]}")
    module.load_state_dict(convert(part, load_file(path), module.state_dict()))
    return module.eval()


def _fill(kind: type[Config], published: dict[str, Any]) -> Config:
    """A configuration from a published file: fields by name, lists as tuples, absent ones left at their defaults."""
    known = {each.name for each in fields(kind)}
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in published.items() if key in known
    }
    return kind(**values)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
