"""Our networks against the libraries' own: tiny random models, saved by the library, read by us, outputs compared."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from pipelines.diffusion import weights
from pipelines.diffusion.clip_text import CLIPTextEncoder
from pipelines.diffusion.config import (
    CROSS_DOWN,
    CROSS_UP,
    DOWN,
    PRESETS,
    TINY,
    UP,
    CLIPTextConfig,
    UNetConfig,
    VAEConfig,
)
from pipelines.diffusion.unet import UNet
from pipelines.diffusion.vae import AutoencoderKL

TOLERANCE = 1e-4

TEXTS = {
    "sd1": TINY.text,
    "sd2": replace(TINY.text, hidden_act="gelu", num_hidden_layers=3),
}
UNETS = {
    "sd1": TINY.unet,
    "sd2": replace(
        TINY.unet,
        block_out_channels=(32, 64),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        cross_attention_dim=48,
    ),
    "bk-sdm-small": replace(
        TINY.unet,
        down_block_types=(CROSS_DOWN, CROSS_DOWN, DOWN),
        up_block_types=(UP, CROSS_UP, CROSS_UP),
        block_out_channels=(16, 32, 32),
        mid_block_type=None,
    ),
    "two layers": replace(TINY.unet, layers_per_block=2),
    "lcm": replace(TINY.unet, time_cond_proj_dim=24),
    "emoji": replace(
        PRESETS["emoji"].unet, block_out_channels=(32, 32, 64), attention_head_dim=(2, 2, 4), cross_attention_dim=32
    ),
}
VAES = {
    "sd1": TINY.vae,
    "no attention": replace(TINY.vae, mid_block_add_attention=False, block_out_channels=(8, 16, 24)),
    "two layers": replace(TINY.vae, layers_per_block=2),
}


def worst(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest absolute difference, after making sure that there is something to compare."""
    assert ours.shape == theirs.shape and theirs.std() > 1e-3
    return float((ours - theirs).abs().max())


def save_text(cfg: CLIPTextConfig, folder: Path) -> torch.nn.Module:
    """A random text encoder in a model folder."""
    import transformers

    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**asdict(cfg), **ids)).eval()
    model.save_pretrained(folder / "text_encoder")
    return model


def save_unet(cfg: UNetConfig, folder: Path) -> torch.nn.Module:
    """A random U-Net in a model folder."""
    import diffusers

    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(**asdict(cfg)).eval()
    model.save_pretrained(folder / "unet")
    return model


def save_vae(cfg: VAEConfig, folder: Path) -> torch.nn.Module:
    """A random autoencoder in a model folder."""
    import diffusers

    torch.manual_seed(0)
    levels = len(cfg.block_out_channels)
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    model = diffusers.AutoencoderKL(**asdict(cfg), **kinds).eval()
    model.save_pretrained(folder / "vae")
    return model


@pytest.mark.parametrize("family", TEXTS)
@pytest.mark.parametrize("prefix", ["", "text_model."])
@torch.no_grad()
def test_text_encoder_equals_transformers(family: str, prefix: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    cfg = TEXTS[family]
    theirs = save_text(cfg, tmp_path)
    path = tmp_path / "text_encoder" / "model.safetensors"
    bare = {key.removeprefix("text_model."): value for key, value in load_file(path).items()}
    save_file({prefix + key: value for key, value in bare.items()}, path)
    ours = weights.load_text_encoder(tmp_path, cfg)
    ids = torch.randint(3, cfg.vocab_size, (2, 11), generator=torch.Generator().manual_seed(1))
    assert worst(ours(ids), theirs(ids).last_hidden_state) < TOLERANCE


@pytest.mark.parametrize("family", UNETS)
@pytest.mark.parametrize("side", [8, 12])
@torch.no_grad()
def test_unet_equals_diffusers(family: str, side: int, tmp_path: Path) -> None:
    cfg = UNETS[family]
    theirs, ours = save_unet(cfg, tmp_path), weights.load_unet(tmp_path, cfg)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn((2, cfg.in_channels, side, side), generator=generator)
    text = torch.randn((2, 7, cfg.cross_attention_dim), generator=generator)
    steps = torch.tensor([3, 917])
    cond = torch.randn((2, cfg.time_cond_proj_dim), generator=generator) if cfg.time_cond_proj_dim else None
    expected = theirs(latents, steps, text, timestep_cond=cond).sample
    assert worst(ours(latents, steps, text, cond), expected) < TOLERANCE


@pytest.mark.parametrize("family", VAES)
@torch.no_grad()
def test_autoencoder_equals_diffusers(family: str, tmp_path: Path) -> None:
    cfg = VAES[family]
    theirs, ours = save_vae(cfg, tmp_path), weights.load_vae(tmp_path, cfg)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand((2, 3, 24, 16), generator=generator) * 2 - 1
    latents = torch.randn((2, cfg.latent_channels, 6, 4), generator=generator)
    expected = theirs.encode(pixels).latent_dist
    posterior = ours.encode(pixels)
    assert worst(posterior.mean, expected.mean) < TOLERANCE
    assert worst(posterior.logvar, expected.logvar) < TOLERANCE
    assert worst(ours.decode(latents), theirs.decode(latents).sample) < TOLERANCE


def test_a_spoilt_weight_is_noticed(tmp_path: Path) -> None:
    """The comparison above can fail: one weight off by a tenth, and it does."""
    theirs, ours = save_unet(TINY.unet, tmp_path), weights.load_unet(tmp_path, TINY.unet)
    with torch.no_grad():
        ours.conv_in.weight[0, 0, 1, 1] += 0.1
        x, steps, text = torch.ones(1, 4, 8, 8), torch.tensor([5]), torch.ones(1, 3, 32)
        assert worst(ours(x, steps, text), theirs(x, steps, text).sample) > 10 * TOLERANCE


def test_loading_reports_every_key() -> None:
    """Missing, left-over and misshapen keys are all named at once."""
    expected = AutoencoderKL(TINY.vae).state_dict()
    state = dict(expected)
    del state["quant_conv.bias"]
    state["stray"] = torch.zeros(1)
    state["post_quant_conv.bias"] = torch.zeros(5)
    with pytest.raises(ValueError) as caught:
        weights.convert("vae", state, expected)
    for words in ("missing: quant_conv.bias", "not used: stray", "post_quant_conv.bias is (5,), expected (4,)"):
        assert words in str(caught.value)


def test_a_config_for_another_architecture_is_refused(tmp_path: Path) -> None:
    """As a sentence with the key, before any weight is read."""
    parts = {"text_encoder": CLIPTextEncoder(TINY.text), "unet": UNet(TINY.unet), "vae": AutoencoderKL(TINY.vae)}
    weights.write_folder(tmp_path, TINY, {**parts})
    path = tmp_path / "unet" / "config.json"
    path.write_text(path.read_text().replace("{", '{"addition_embed_type": "text_time",', 1))
    with pytest.raises(ValueError, match="unet asks for addition_embed_type = 'text_time'"):
        weights.read_config(tmp_path)


def test_old_attention_names_are_read() -> None:
    """Autoencoder files from before the library renamed its attention, with 1x1 convolutions for linear maps."""
    model = AutoencoderKL(TINY.vae)
    expected = model.state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for key, value in model.state_dict().items():
        for new, name in old.items():
            if f".{new}." in key:
                key, value = key.replace(f".{new}.", f".{name}."), value[..., None, None] if value.ndim == 2 else value
        state[key] = value
    converted = weights.convert("vae", state, expected)
    assert all(torch.equal(converted[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("preset", PRESETS)
def test_constructors_run_on_meta_and_print_nothing(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = PRESETS[preset]
    with torch.device("meta"):
        parts = CLIPTextEncoder(cfg.text), UNet(cfg.unet), AutoencoderKL(cfg.vae)
    assert all(parameter.is_meta for part in parts for parameter in part.parameters())
    assert capsys.readouterr().out == ""


def test_published_sizes() -> None:
    """Stable Diffusion 1.5's parameter counts, exactly, and the bundled model's limit."""
    with torch.device("meta"):
        counts = {
            preset: [
                sum(p.numel() for p in part.parameters())
                for part in (CLIPTextEncoder(c.text), UNet(c.unet), AutoencoderKL(c.vae))
            ]
            for preset, c in PRESETS.items()
        }
    assert counts["sd1"] == [123_060_480, 859_520_964, 83_653_863]
    assert 2 * sum(counts["emoji"]) < 69e6  # bytes in float16, with a megabyte left for the tokenizer


def test_too_many_tokens_is_an_error_and_not_a_cut() -> None:
    with pytest.raises(ValueError, match="17 tokens"):
        CLIPTextEncoder(TINY.text)(torch.zeros((1, 17), dtype=torch.int64))
