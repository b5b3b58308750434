"""Stage "autoencoder": pictures to 16x16x4 latents and back.

Absolute error keeps flat areas flat; absolute error between neighbouring pixels' differences, at three sizes, keeps
edges crisp, which is what drawings are made of. A small divergence term keeps the latents near a unit Gaussian.

Shapes: B batch, P the picture's side, L latent channels, h = P / 8.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.common.training import Trainer, TrainOptions, pick_machine

from . import data, weights
from .config import EMOJI
from .vae import AutoencoderKL

KL_WEIGHT = 1e-6  # a picture's divergence is a sum over 1,024 numbers
EDGE_WEIGHT = 1.0
OPTIONS = TrainOptions(learning_rate=3e-3, batch=4, ema_decay=0.998)


def to_tensor(pictures: np.ndarray) -> Tensor:
    """(B, P, P, 3) uint8 -> (B, 3, P, P) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def to_pictures(pixels: Tensor) -> np.ndarray:
    """(B, 3, P, P) in [-1, 1] -> (B, P, P, 3) uint8, clipped."""
    scaled = pixels.float().clamp(-1, 1).add(1).mul(127.5).round()
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()


def edge_loss(drawn: Tensor, real: Tensor) -> Tensor:
    """Mean absolute error of the differences between neighbours, right and below, at full, half and quarter size."""
    error, total = drawn - real, torch.zeros((), device=real.device)
    for _ in range(3):
        total = total + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        error = F.avg_pool2d(error, 2)
    return total / 3


def cutting(picture: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """A square of the picture at a random place, up to a latent cell beyond its edges, where it is white.

    Small cuttings show four times as many things a step; whole pictures have the statistics that the normalisations
    will meet. A step takes one or the other.
    """
    padded = np.pad(picture, ((8, 8), (8, 8), (0, 0)), constant_values=255)
    top, left = rng.integers(0, padded.shape[0] - side + 1, size=2)
    return padded[top : top + side, left : left + side]


def run(emoji: data.EmojiData, folder: Path, options: TrainOptions) -> None:
    """Trains, or goes on training, the autoencoder; the batch counts whole pictures."""
    torch.manual_seed(0)
    machine = pick_machine()
    model = AutoencoderKL(EMOJI.vae).to(machine.device)
    trainer = Trainer(
        folder, "autoencoder", model, options, machine, ("loss", "l1", "edge", "kl", "val_psnr", "val_l1")
    )
    pairs, held = emoji.pairs(held=False), emoji.pairs(held=True)

    def loss(rng: np.random.Generator, count: int) -> dict[str, Tensor]:
        halvings = int(rng.integers(2))
        side, cuttings = data.SIDE >> halvings, 4**halvings  # as many pixels, either way
        chosen = pairs[rng.integers(len(pairs), size=count * cuttings)]
        real = to_tensor(np.stack([cutting(emoji.pictures[n, s], side, rng) for n, s in chosen])).to(machine.device)
        with machine.autocast():
            posterior = model.encode(real)
            drawn = model.decode(posterior.sample(torch.Generator().manual_seed(int(rng.integers(2**62)))))
        l1, edge, kl = (
            (drawn.float() - real).abs().mean(),
            edge_loss(drawn.float(), real),
            cuttings * posterior.kl().mean(),
        )
        return {"loss": l1 + EDGE_WEIGHT * edge + KL_WEIGHT * kl, "l1": l1, "edge": edge, "kl": kl}

    def check(step: int) -> dict[str, float]:
        return validate(model, emoji, held[:64], folder / f"autoencoder-{step:06d}.png")

    trainer.run(loss, check)


def run_decoder(emoji: data.EmojiData, latents: Tensor, folder: Path, options: TrainOptions) -> None:
    """Trains the decoder alone on latents that stay as they are, so that a denoiser trained on them stays valid.

    Starts from the run's `model/vae` and writes the result back there when it ends.
    """
    machine = pick_machine()
    model = weights.load_vae(folder / "model", EMOJI.vae).train().to(machine.device)
    for part in (model.encoder, model.quant_conv):
        part.requires_grad_(False)
    trainer = Trainer(folder, "decoder", model, options, machine, ("loss", "l1", "edge", "val_psnr", "val_l1"))
    pairs, held = emoji.pairs(held=False), emoji.pairs(held=True)

    def loss(rng: np.random.Generator, count: int) -> dict[str, Tensor]:
        n, s = pairs[rng.integers(len(pairs), size=count)].T
        real = to_tensor(emoji.pictures[n, s]).to(machine.device)
        with machine.autocast():
            drawn = model.decode(latents[torch.from_numpy(n), torch.from_numpy(s)].float().to(machine.device))
        l1, edge = (drawn.float() - real).abs().mean(), edge_loss(drawn.float(), real)
        return {"loss": l1 + EDGE_WEIGHT * edge, "l1": l1, "edge": edge}

    def check(step: int) -> dict[str, float]:
        return validate(model, emoji, held[:64], folder / f"decoder-{step:06d}.png")

    trainer.run(loss, check)
    with trainer.averaged():
        weights.write_folder(folder / "model", EMOJI, {"vae": model})


@torch.no_grad()
def validate(
    model: AutoencoderKL, emoji: data.EmojiData, pairs: np.ndarray, sheet: Path | None = None
) -> dict[str, float]:
    """PSNR in dB (mean over pictures) and mean absolute error on [-1, 1]; `sheet` gets real and drawn rows."""
    device = next(model.parameters()).device
    real = np.stack([emoji.pictures[n, s] for n, s in pairs])
    pixels = [
        model.decode(model.encode(to_tensor(part).to(device)).mean)
        for part in np.array_split(real, len(real) // 8 or 1)
    ]
    drawn = to_pictures(torch.cat(pixels))
    square = np.square(drawn.astype(np.float32) - real.astype(np.float32)).mean(axis=(1, 2, 3))
    if sheet is not None:
        save_grid(np.concatenate([real[:8], drawn[:8], real[8:16], drawn[8:16]]), 8, sheet)
    return {
        "val_psnr": float(np.mean(10 * np.log10(255**2 / np.maximum(square, 1e-3)))),
        "val_l1": float(np.abs(drawn.astype(np.float32) - real).mean() / 127.5),
    }


def save_grid(pictures: np.ndarray, columns: int, path: Path) -> None:
    """Pictures (count, P, P, 3) row by row into one PNG."""
    from PIL import Image

    rows = [np.concatenate(list(pictures[i : i + columns]), axis=1) for i in range(0, len(pictures), columns)]
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)
