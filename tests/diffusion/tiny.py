"""Tiny models with random weights in the layout of the published folders, and catalogue entries over them."""

from dataclasses import replace

import torch

from pipelines.common import catalogue
from pipelines.diffusion import tokenizer, weights
from pipelines.diffusion.config import CROSS_DOWN, CROSS_UP, DOWN, PRESETS, TINY, UP

CAPTIONS = ["a red apple", "a green apple, flat style", "the red and the green house", "a cat with a hat"]
FILES = {
    "model_index": "model_index.json", "text_encoder": "text_encoder/model.safetensors",
    "text_encoder_config": "text_encoder/config.json", "unet": "unet/diffusion_pytorch_model.safetensors",
    "unet_config": "unet/config.json", "vae": "vae/diffusion_pytorch_model.safetensors",
    "vae_config": "vae/config.json", "scheduler": "scheduler/scheduler_config.json", "vocab": "tokenizer/vocab.json",
    "merges": "tokenizer/merges.txt", "tokenizer_config": "tokenizer/tokenizer_config.json",
    "special_tokens_map": "tokenizer/special_tokens_map.json",
}  # fmt: skip

_SMALL = replace(
    TINY.unet, down_block_types=(CROSS_DOWN, CROSS_DOWN, DOWN), up_block_types=(UP, CROSS_UP, CROSS_UP),
    block_out_channels=(16, 32, 32), mid_block_type=None,
)  # fmt: skip
_THREE = replace(TINY.unet, block_out_channels=(16, 32, 32), layers_per_block=2)
FAMILIES = {  # each as its published configuration, with fewer and narrower blocks
    "sd1": replace(
        TINY,
        unet=replace(
            _THREE, down_block_types=(CROSS_DOWN, CROSS_DOWN, DOWN), up_block_types=(UP, CROSS_UP, CROSS_UP)
        ),
        vae=replace(TINY.vae, layers_per_block=2, block_out_channels=(8, 16, 24)),
    ),
    "sd2": replace(
        TINY,
        text=replace(TINY.text, hidden_act="gelu", num_hidden_layers=3, hidden_size=48),
        unet=replace(TINY.unet, attention_head_dim=(2, 4), use_linear_projection=True, cross_attention_dim=48),
        schedule=replace(TINY.schedule, prediction_type="v_prediction"),
    ),
    "bk-sdm-small": replace(TINY, unet=_SMALL),
    "bk-sdm-tiny": replace(
        TINY,
        unet=replace(
            _SMALL, down_block_types=(CROSS_DOWN, CROSS_DOWN), up_block_types=(CROSS_UP, CROSS_UP),
            block_out_channels=(16, 32),
        ),
    ),
    "lcm": replace(TINY, unet=replace(TINY.unet, time_cond_proj_dim=24)),
    "emoji": replace(
        PRESETS["emoji"],
        text=TINY.text,
        unet=replace(
            PRESETS["emoji"].unet, block_out_channels=(32, 32, 64), attention_head_dim=(2, 2, 4),
            cross_attention_dim=32,
        ),
        vae=replace(PRESETS["emoji"].vae, block_out_channels=(8, 16, 24, 32)),
    ),
}  # fmt: skip


def networks(cfg, seed=0):
    """The three networks by part, with nothing at its initial value, so that a swapped tensor shows."""
    torch.manual_seed(seed)
    sizes = zip(weights.PARTS, (cfg.text, cfg.unet, cfg.vae), strict=True)
    made = {part: weights.build(part, size).to_empty(device="cpu").eval() for part, size in sizes}
    with torch.no_grad():
        for module in made.values():
            for parameter in module.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, parameter[0].numel() ** -0.5)
                else:
                    parameter.uniform_(0.5, 1.5).mul_(1 if len(parameter) % 2 == 0 else 0.3)
    return made


def write_folder(folder, cfg=TINY, dtype=torch.float32, seed=0):
    """A whole model folder. Returns its networks."""
    made = networks(cfg, seed)
    vocab, merges = tokenizer.train(CAPTIONS, cfg.text.vocab_size)
    weights.write_folder(folder, cfg, made, dtype, vocab[tokenizer.END])
    tokenizer.write(folder / "tokenizer", vocab, merges, cfg.text.max_position_embeddings)
    return made


def entry_of(folder, name="tiny", preset="tiny", layout="diffusers", **changes):
    """A catalogue entry over a folder: an absolute path stays as it is below weights/. changes: paths by name."""
    paths = {role: folder / path for role, path in FILES.items() if (folder / path).exists()} | changes
    files = tuple(catalogue.File(role, str(path)) for role, path in paths.items())
    facts = {"trained_on": "nothing"}
    return catalogue.Entry(
        name, "diffusion", "model", name, "stable-diffusion", preset, "bundled", layout, "none", files, facts=facts
    )
