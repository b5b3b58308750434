"""The configuration files of the diffusers folder layout -> our dataclasses, and back. No torch."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from pipelines.common.checkpoint import read_json
from pipelines.common.errors import UserError

from .checks import whole, within
from .config import CLIPTextConfig, DiffusionConfig, ScheduleConfig, TAESDConfig, UNetConfig, VAEConfig

# What may stand in a field, the first being what an absent one means.
CHOICES: tuple[tuple[str, str, tuple[str | None, ...]], ...] = (
    ("text_encoder", "hidden_act", ("quick_gelu", "gelu")),
    ("scheduler", "prediction_type", ("epsilon", "v_prediction")),
    ("scheduler", "timestep_spacing", (None, "leading", "linspace", "trailing")),
)
LEAST_BETA, MOST_TIMESTEPS = 1e-9, 100_000  # of noise schedules: Stable Diffusion has 0.00085 and 1,000
VAE_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}

# What our networks do where a config.json could ask for something else.
BUILT: dict[str, dict[str, Any]] = {
    "text_encoder": {"model_type": "clip_text_model"},
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "addition_embed_type": None,
        "attention_type": "default",
        "center_input_sample": False,
        "class_embed_type": None,
        "class_embeddings_concat": False,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "cross_attention_norm": None,
        "downsample_padding": 1,
        "dual_cross_attention": False,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "mid_block_only_cross_attention": None,
        "mid_block_scale_factor": 1,
        "num_attention_heads": None,
        "num_class_embeds": None,
        "only_cross_attention": False,
        "resnet_out_scale_factor": 1.0,
        "resnet_skip_time_act": False,
        "resnet_time_scale_shift": "default",
        "reverse_transformer_layers_per_block": None,
        "time_embedding_act_fn": None,
        "time_embedding_dim": None,
        "time_embedding_type": "positional",
        "timestep_post_act": None,
        "transformer_layers_per_block": 1,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "latents_mean": None,
        "latents_std": None,
        "shift_factor": None,
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    },
    "scheduler": {"beta_schedule": "scaled_linear", "trained_betas": None, "rescale_betas_zero_snr": False},
    "taesd": {
        "_class_name": "AutoencoderTiny",
        "act_fn": "relu",
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
        "upsample_fn": "nearest",
        "upsampling_scaling_factor": 2,
    },
}

Config = TypeVar("Config", CLIPTextConfig, UNetConfig, VAEConfig, ScheduleConfig, TAESDConfig)


def read_config(folder: Path) -> DiffusionConfig:
    """The sizes of every part of a model folder.

    UserError: a file is missing or damaged, or asks for what isn't built here.
    """
    scheduler = folder / "scheduler" / "scheduler_config.json"
    text = _checked("text_encoder", _read(folder / "text_encoder" / "config.json", folder))
    unet = _checked("unet", _read(folder / "unet" / "config.json", folder))
    vae = _checked("vae", _read(folder / "vae" / "config.json", folder))
    schedule = _checked("scheduler", _read(scheduler, folder) if scheduler.exists() else {})
    for key, kind in VAE_BLOCKS.items():
        if any(each != kind for each in vae.get(key) or ()):
            raise _refused("vae", key, vae[key], kind)
    if not whole(unet.get("sample_size", 64), 1):
        raise _refused("unet", "sample_size", unet["sample_size"], "one number")
    cfg = DiffusionConfig(
        text=_fill(CLIPTextConfig, text),
        unet=_fill(UNetConfig, unet),
        vae=_fill(VAEConfig, vae),
        schedule=_fill(ScheduleConfig, schedule),
    )
    if cfg.unet.in_channels != cfg.vae.latent_channels or cfg.unet.out_channels != cfg.vae.latent_channels:
        asked = f"{cfg.unet.in_channels} channels to {cfg.unet.out_channels}"  # models for inpainting or depth alone
        raise UserError(f"This model can't be read: its unet takes {asked}, its vae has {cfg.vae.latent_channels}.")
    if cfg.unet.cross_attention_dim != cfg.text.hidden_size:
        raise UserError("This model can't be read: its unet and its text_encoder have different widths.")
    if not _is_schedule(cfg.schedule):
        raise UserError("This model can't be read: the numbers of its scheduler describe no noise schedule.")
    return cfg


def _is_schedule(cfg: ScheduleConfig) -> bool:
    """Whether noise rises from above nothing over some training steps."""
    return (
        whole(cfg.num_train_timesteps, 2, MOST_TIMESTEPS)
        and whole(cfg.steps_offset, 0, cfg.num_train_timesteps - 2)
        and within(cfg.beta_start, LEAST_BETA, 1)
        and within(cfg.beta_end, cfg.beta_start, 1 - LEAST_BETA)
    )


def read_taesd_config(path: Path) -> TAESDConfig:
    """From the config.json beside the tiny autoencoder. UserError: as `read_config`."""
    return _fill(TAESDConfig, _checked("taesd", _read(path, path.parent)))


def _read(path: Path, folder: Path) -> dict[str, Any]:
    """A JSON object of a model folder. UserError: the file is missing or is none."""
    return read_json(path, path.relative_to(folder).as_posix(), "model folder")


def published_configs(cfg: DiffusionConfig, end_id: int) -> dict[str, dict[str, Any]]:
    """The files that diffusers and transformers read, by part. end_id: of the end mark, after the start mark's."""
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
            **{key: [kind] * levels for key, kind in VAE_BLOCKS.items()},
            **asdict(cfg.vae),
        },
        "scheduler": {
            "_class_name": "DPMSolverMultistepScheduler",
            "beta_schedule": "scaled_linear",
            "clip_sample": False,
            **{key: value for key, value in asdict(cfg.schedule).items() if value is not None},
        },
    }


def _checked(part: str, published: dict[str, Any]) -> dict[str, Any]:
    for key, value in BUILT[part].items():
        if published.get(key, value) != value:
            raise _refused(part, key, published[key], repr(value))
    for where, key, known in CHOICES:
        if where == part and published.get(key, known[0]) not in known:
            raise _refused(part, key, published[key], " or ".join(each for each in known if each))
    return published


def _refused(part: str, key: str, asked: Any, built: str) -> UserError:
    return UserError(
        f"This model can't be read: its {part} asks for {key} = {str(asked)[:60]!r}, only {built} is built."
    )


def _fill(kind: type[Config], published: dict[str, Any]) -> Config:
    """A configuration from a published file: fields by name, lists as tuples, absent ones left at their defaults."""
    known = {each.name for each in fields(kind)}
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in published.items() if key in known
    }
    return kind(**values)
