"""The networks by themselves; against the libraries' own they stand in test_parity.py."""

from __future__ import annotations

import pytest
import torch

from pipelines.diffusion.clip_text import CLIPTextEncoder
from pipelines.diffusion.config import PRESETS, TINY
from pipelines.diffusion.unet import UNet
from pipelines.diffusion.vae import AutoencoderKL


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
