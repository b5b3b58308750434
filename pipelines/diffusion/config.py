"""Sizes of the networks, as frozen dataclasses. No torch here, so the page can list models before any library is
loaded.

Every field is named as in the published `config.json` of the diffusers folder layout wherever that has the field, so
`weights.py` can fill these classes from such a file by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

DOWN = "DownBlock2D"
CROSS_DOWN = "CrossAttnDownBlock2D"
UP = "UpBlock2D"
CROSS_UP = "CrossAttnUpBlock2D"
CROSS_MID = "UNetMidBlock2DCrossAttn"


@dataclass(frozen=True)
class CLIPTextConfig:
    """CLIP's text tower (Radford et al. 2021, section 2.4). The defaults are ViT-L/14, as in Stable Diffusion 1.x."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"  # OpenCLIP's towers (Stable Diffusion 2.x) use "gelu"
    layer_norm_eps: float = 1e-5


@dataclass(frozen=True)
class UNetConfig:
    """The denoiser (Rombach et al. 2022, section 3.3). The defaults are Stable Diffusion 1.x.

    `attention_head_dim` is the number of heads, in spite of its name: the published files say 8 where there are eight
    heads, and the library kept the mistake so as to keep reading them. One number, or one a level.
    """

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = (CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN)
    mid_block_type: str | None = CROSS_MID
    up_block_types: tuple[str, ...] = (UP, CROSS_UP, CROSS_UP, CROSS_UP)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    attention_head_dim: int | tuple[int, ...] = 8
    cross_attention_dim: int = 768
    use_linear_projection: bool = False
    time_cond_proj_dim: int | None = None  # LCM feeds the guidance scale in through this
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: float = 0

    def heads(self, level: int) -> int:
        """Attention heads at a level, 0 being the finest."""
        heads = self.attention_head_dim
        return heads if isinstance(heads, int) else heads[level]


@dataclass(frozen=True)
class VAEConfig:
    """The KL autoencoder (Rombach et al. 2022, section 3.1). The defaults are Stable Diffusion 1.x."""

    sample_size: int = 512
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    scaling_factor: float = 0.18215  # latents times this have about unit variance

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along a side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class TAESDConfig:
    """The tiny autoencoder for previews (Bohan 2023, TAESD). The defaults are the published ones; it reads and writes
    the scaled latents of Stable Diffusion 1.x and 2.x."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)


@dataclass(frozen=True)
class ScheduleConfig:
    """The noise schedule: "scaled_linear" is linear in the square root of beta (Rombach et al. 2022, their code), and
    what Stable Diffusion 1.x publishes about how samplers walk it."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction_type: str = "epsilon"  # or "v_prediction" (Salimans & Ho 2022, section 4)
    timestep_spacing: str | None = None  # "leading", "linspace" or "trailing"; None: each sampler's own
    steps_offset: int = 1  # added to the training steps in "leading"
    set_alpha_to_one: bool = False  # DDIM and PNDM end at a clean picture, not at the first training step's noise


@dataclass(frozen=True)
class DiffusionConfig:
    """Everything that a folder in the diffusers layout holds."""

    text: CLIPTextConfig = field(default_factory=CLIPTextConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


TINY = DiffusionConfig(
    text=CLIPTextConfig(
        vocab_size=600,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
    ),
    unet=UNetConfig(
        sample_size=8,
        down_block_types=(CROSS_DOWN, DOWN),
        up_block_types=(UP, CROSS_UP),
        block_out_channels=(32, 64),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=32,
        norm_num_groups=8,
    ),
    vae=VAEConfig(sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8),
    schedule=ScheduleConfig(timestep_spacing="leading"),
)

# The bundled model. Attention only at 8x8 and 4x4: at 16x16 it would make training a quarter slower. beta_end is larger
# than the usual 0.012, at which the last step still holds 7 % of the picture (1.5 % here), so that sampling may start
# from pure noise without the usual schedule's pull towards medium brightness (Lin et al. 2024, section 2).
EMOJI = DiffusionConfig(
    text=CLIPTextConfig(
        vocab_size=3072,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=32,
    ),
    unet=UNetConfig(
        sample_size=16,
        down_block_types=(DOWN, CROSS_DOWN, CROSS_DOWN),
        up_block_types=(CROSS_UP, CROSS_UP, UP),
        block_out_channels=(128, 192, 256),
        layers_per_block=1,
        attention_head_dim=(2, 3, 4),
        cross_attention_dim=256,
        use_linear_projection=True,
    ),
    vae=VAEConfig(
        sample_size=128,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        scaling_factor=1.0,  # the training folds the scale of the latents into quant_conv
    ),
    schedule=ScheduleConfig(beta_end=0.02, prediction_type="v_prediction", timestep_spacing="leading"),
)

# The published families, as their config.json files say.
SD1 = DiffusionConfig()
SD2_BASE = DiffusionConfig(
    text=CLIPTextConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu"
    ),
    unet=UNetConfig(attention_head_dim=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True),
)
SD2 = replace(
    SD2_BASE,
    unet=replace(SD2_BASE.unet, sample_size=96),
    vae=VAEConfig(sample_size=768),
    schedule=ScheduleConfig(prediction_type="v_prediction"),
)
# Kim et al. 2023, section 3: one layer less at each level, then no middle, then no lowest level.
BK_SDM_SMALL = replace(SD1, unet=replace(SD1.unet, layers_per_block=1, mid_block_type=None))
BK_SDM_TINY = replace(
    SD1,
    unet=replace(
        BK_SDM_SMALL.unet,
        down_block_types=(CROSS_DOWN, CROSS_DOWN, CROSS_DOWN),
        up_block_types=(CROSS_UP, CROSS_UP, CROSS_UP),
        block_out_channels=(320, 640, 1280),
    ),
)
LCM = replace(SD1, unet=replace(SD1.unet, time_cond_proj_dim=256))

PRESETS: dict[str, DiffusionConfig] = {
    "tiny": TINY,
    "emoji": EMOJI,
    "sd1": SD1,
    "sd2-base": SD2_BASE,
    "sd2": SD2,
    "bk-sdm-small": BK_SDM_SMALL,
    "bk-sdm-tiny": BK_SDM_TINY,
    "lcm": LCM,
}
