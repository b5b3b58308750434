"""The original layout of Stable Diffusion 1.x and 2.x: every part in one file (Rombach et al. 2022, their code).

Parts are told by the start of a name. The U-Net's blocks are numbered through, so its table depends on the sizes; the
text encoder is that of transformers (1.x) or of OpenCLIP (2.x), which keeps query, key and value in one matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pipelines.common.checkpoint import read
from pipelines.common.convert import KeyMap
from pipelines.common.errors import UserError

from .clip_text import CLIPTextEncoder
from .config import CROSS_DOWN, CROSS_UP, DiffusionConfig, UNetConfig, VAEConfig
from .unet import UNet
from .vae import AutoencoderKL
from .weights import PARTS, Part, Table, build, fill, keymap

PREFIXES: dict[str, Part] = {
    "model.diffusion_model.": "unet",
    "first_stage_model.": "vae",
    "cond_stage_model.transformer.": "text_encoder",
    "cond_stage_model.model.": "text_encoder",
}
IGNORED = (
    (
        "model_ema.",
        "the average over training, a second copy of the U-Net; most published files have it in the U-Net's place",
    ),
    ("first_stage_model.loss.", "the judge that the autoencoder was trained against"),
    ("first_stage_model.model_ema.", "the average over training, a second copy of the autoencoder"),
    ("cond_stage_model.logit_scale", "the temperature of CLIP's training"),
    ("cond_stage_model.model.logit_scale", "the temperature of CLIP's training"),
    ("cond_stage_model.text_projection", "maps to the space shared with pictures, which the denoiser doesn't read"),
    ("cond_stage_model.model.text_projection", "maps to the space shared with pictures"),
    ("cond_stage_model.model.attn_mask", "a buffer: the causal mask, which is computed"),
)
SCHEDULE = (  # buffers of the noise schedule, which are computed from four numbers
    "alphas_cumprod", "alphas_cumprod_prev", "betas", "log_one_minus_alphas_cumprod", "logvar", "lvlb_weights",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "posterior_variance",
    "scale_factor", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
)  # fmt: skip
# What only other architectures have, told by the start of a name.
OTHERS = (
    ("conditioner.embedders.", "Stable Diffusion XL"),
    ("model.diffusion_model.joint_blocks.", "Stable Diffusion 3"),
    ("model.diffusion_model.double_blocks.", "Flux"),
    ("double_blocks.", "Flux"),
    ("lora_", "a LoRA, a change to be added to a model"),
    ("control_model.", "a ControlNet"),
)
RESNET: Table = (
    (r"\.in_layers\.0\.", ".norm1."),
    (r"\.in_layers\.2\.", ".conv1."),
    (r"\.emb_layers\.1\.", ".time_emb_proj."),
    (r"\.out_layers\.0\.", ".norm2."),
    (r"\.out_layers\.3\.", ".conv2."),
    (r"\.skip_connection\.", ".conv_shortcut."),
)
OPEN_CLIP: Table = (
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^token_embedding\.", "embeddings.token_embedding."),
    (r"^ln_final\.", "final_layer_norm."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
OPEN_CLIP_SIGN = "positional_embedding"  # transformers' tower calls it otherwise


def load(path: Path, cfg: DiffusionConfig) -> tuple[CLIPTextEncoder, UNet, AutoencoderKL]:
    """The three networks of one file, in eval mode and float32 on the CPU.

    path: .safetensors, or a .ckpt that holds tensors only. cfg: the sizes, which the file doesn't say.
    UserError: the file is damaged, unsafe to read, without a part, or of another architecture.
    """
    state = split(tensors(path))
    text, unet, vae = (
        fill(build(part, sizes), keys(part, cfg, state[part]), state[part], f"The {part} of {path.name}")
        for part, sizes in zip(PARTS, (cfg.text, cfg.unet, cfg.vae), strict=True)
    )
    return text, unet, vae


def tensors(path: Path) -> dict[str, Tensor]:
    """What a file holds by name; training keeps it under "state_dict", beside counters.

    UserError: the file is damaged or holds Python objects.
    """
    content = read(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path.name} is no file of weights: it does not hold tensors by name.")
    return content


def split(published: Mapping[str, Tensor]) -> dict[Part, dict[str, Tensor]]:
    """A file's tensors by part, under their names within it.

    UserError: a part is missing, a name is unknown, or the file is of another architecture.
    """
    other = next((kind for start, kind in OTHERS if any(key.startswith(start) for key in published)), None)
    if other is not None:
        raise UserError(f"This file is {other}; only Stable Diffusion 1.x and 2.x can be read from one file.")
    found: dict[Part, dict[str, Tensor]] = {part: {} for part in PARTS}
    strange = []
    for key, value in published.items():
        prefix = next((each for each in PREFIXES if key.startswith(each)), None)
        if key in SCHEDULE or any(key.startswith(start) for start, _ in IGNORED):
            continue
        if prefix is None:
            strange.append(key)
        else:
            found[PREFIXES[prefix]][key.removeprefix(prefix)] = value
    missing = [part for part, state in found.items() if not state]
    if missing:
        raise UserError(f"This file has no {missing[0]}: choose one that holds a whole Stable Diffusion model.")
    if strange:
        raise UserError(f"This file holds {len(strange)} names that are not known here, the first is “{strange[0]}”.")
    return found


def keys(part: Part, cfg: DiffusionConfig, state: Mapping[str, Tensor]) -> KeyMap:
    """The table from a part's names in the original layout to ours. state: the part, to tell the two text encoders."""
    if part == "unet":
        return keymap(part, unet_table(cfg.unet))
    if part == "vae":
        return keymap(part, vae_table(cfg.vae))
    if OPEN_CLIP_SIGN not in state:
        return keymap(part)
    layers, reason = cfg.text.num_hidden_layers, "the tower's last layer: Stable Diffusion 2.x reads the one before it"
    found = keymap(part, OPEN_CLIP).ignore(rf"^transformer\.resblocks\.{layers}\.", reason)
    for kind in ("weight", "bias"):
        names = tuple(f"encoder.layers.*.self_attn.{letter}_proj.{kind}" for letter in "qkv")
        found.split(f"encoder.layers.*.self_attn.in_proj_{kind}", names)
    return found


def unet_table(cfg: UNetConfig) -> Table:
    """input_blocks counts the first convolution, then each residual block and halving; output_blocks each residual
    block, the last of a level bearing the doubling behind its attention, if any."""
    table = [
        (r"^time_embed\.0\.", "time_embedding.linear_1."),
        (r"^time_embed\.2\.", "time_embedding.linear_2."),
        (r"^out\.0\.", "conv_norm_out."),
        (r"^out\.2\.", "conv_out."),
        (r"^input_blocks\.0\.0\.", "conv_in."),
        (r"^middle_block\.0\.", "mid_block.resnets.0."),
        (r"^middle_block\.1\.", "mid_block.attentions.0."),
        (r"^middle_block\.2\.", "mid_block.resnets.1."),
    ]
    levels, number = len(cfg.block_out_channels), 1
    for level, kind in enumerate(cfg.down_block_types):
        for layer in range(cfg.layers_per_block):
            table.append((rf"^input_blocks\.{number}\.0\.", f"down_blocks.{level}.resnets.{layer}."))
            if kind == CROSS_DOWN:
                table.append((rf"^input_blocks\.{number}\.1\.", f"down_blocks.{level}.attentions.{layer}."))
            number += 1
        if level < levels - 1:
            table.append((rf"^input_blocks\.{number}\.0\.op\.", f"down_blocks.{level}.downsamplers.0.conv."))
            number += 1
    number = 0
    for place, kind in enumerate(cfg.up_block_types):
        for layer in range(cfg.layers_per_block + 1):
            if layer == cfg.layers_per_block and place < levels - 1:
                behind = 2 if kind == CROSS_UP else 1
                table.append((rf"^output_blocks\.{number}\.{behind}\.conv\.", f"up_blocks.{place}.upsamplers.0.conv."))
            table.append((rf"^output_blocks\.{number}\.0\.", f"up_blocks.{place}.resnets.{layer}."))
            if kind == CROSS_UP:
                table.append((rf"^output_blocks\.{number}\.1\.", f"up_blocks.{place}.attentions.{layer}."))
            number += 1
    return (*table, *RESNET)


def vae_table(cfg: VAEConfig) -> Table:
    """The decoder's levels are numbered from the finest, and so run backwards."""
    last = len(cfg.block_out_channels) - 1
    return (
        (r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
        (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
        *((rf"^decoder\.up\.{i}\.block\.", f"decoder.up_blocks.{last - i}.resnets.") for i in range(last + 1)),
        *((rf"^decoder\.up\.{i}\.upsample\.", f"decoder.up_blocks.{last - i}.upsamplers.0.") for i in range(last + 1)),
        (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
        (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
        (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
        (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
        (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
        (r"\.nin_shortcut\.", ".conv_shortcut."),
        (r"\.norm_out\.", ".conv_norm_out."),
    )
