"""Stages "latents" and "denoiser": the U-Net and the text encoder, trained together on the frozen autoencoder's
latents.

The velocity is predicted with plain squared error, and noise levels are drawn log-normally around the ones where a
picture takes shape, both as in Karras et al. 2022 (section 5), whose weighting this is for latents of unit variance.
Captions are worded anew at every draw, and one in ten is dropped for classifier-free guidance (Ho & Salimans 2022).

Shapes: B batch, L latent channels, h the latent's side, T tokens.
"""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipelines.common.training import Trainer, TrainOptions, pick_machine

from . import captions, data, tokenizer, weights
from .clip_text import CLIPTextEncoder
from .config import EMOJI, DiffusionConfig
from .evaluate import draw_latents
from .schedule import alpha_sigma, alphas_cumprod
from .tokenizer import CLIPTokenizer
from .train_autoencoder import save_grid, to_pictures, to_tensor
from .unet import UNet
from .vae import AutoencoderKL

CAPTION_DROP = 0.1
LOG_NOISE_MEAN, LOG_NOISE_SPREAD = 0.3, 1.3  # of ln(sigma / alpha)
OPTIONS = TrainOptions(learning_rate=1.5e-3, batch=32, weight_decay=0.01, warmup=300, ema_decay=0.9995, ema_every=4)
SHEET = (  # (name, style) rows of the sample sheets: seen pairs, then held-out ones are added
    ("red-apple", "noto"),
    ("red-apple", "twemoji"),
    ("grinning-face", "fluent-emoji"),
    ("dog-face", "fluent-emoji-flat"),
    ("automobile", "twemoji"),
    ("woman-artist", "noto"),
    ("snowman", "fluent-emoji"),
    ("sunflower", "fluent-emoji-flat"),
)


class Denoiser(nn.Module):
    """The two networks that learn together, so that one optimiser and one average hold both."""

    def __init__(self, cfg: DiffusionConfig) -> None:
        super().__init__()
        self.text_encoder = CLIPTextEncoder(cfg.text)
        self.unet = UNet(cfg.unet)

    def forward(self, latents: Tensor, steps: Tensor, ids: Tensor) -> Tensor:
        """latents: (B, L, h, h); steps: (B,); ids: (B, T) -> the predicted velocity, (B, L, h, h)."""
        return self.unet(latents, steps, self.text_encoder(ids))

    @torch.no_grad()
    def initialise(self) -> None:
        """Small embeddings as in CLIP; every residual branch starts at zero (Goyal et al. 2017, section 5.1)."""
        nn.init.normal_(self.text_encoder.embeddings.token_embedding.weight, std=0.02)
        nn.init.normal_(self.text_encoder.embeddings.position_embedding.weight, std=0.01)
        for name, parameter in self.unet.named_parameters():
            if name.startswith("conv_out.") or any(f".{last}." in name for last in ("conv2", "proj_out")):
                nn.init.zeros_(parameter)


def prepare_latents(emoji: data.EmojiData, folder: Path, init: Path | None = None) -> None:
    """Encodes every picture once, and folds the latents' mean and scale into the autoencoder's own 1x1 convolutions.

    init: an exported folder whose autoencoder and tokenizer are taken, in place of the run's own autoencoder.
    Writes the run's `model/vae` and `latents.safetensors`: (N, S, L, h, h) float16 with mean 0 and variance 1 a
    channel over the pictures trained on.
    """
    device = pick_machine().device
    if init is None:
        vae = AutoencoderKL(EMOJI.vae)
        vae.load_state_dict(torch.load(folder / "autoencoder.pt", map_location="cpu", weights_only=True)["ema"])
    else:  # its scale is folded in already, so what is folded in below changes next to nothing
        vae = weights.load_vae(init, EMOJI.vae)
        shutil.copytree(init / "tokenizer", folder / "model" / "tokenizer", dirs_exist_ok=True)
    vae.to(device).eval()
    flat = emoji.pictures.reshape(-1, *emoji.pictures.shape[2:])
    with torch.no_grad():
        parts = [vae.encode(to_tensor(flat[i : i + 32]).to(device)).mean.cpu() for i in range(0, len(flat), 32)]
    latents = torch.cat(parts).unflatten(0, emoji.pictures.shape[:2])  # (N, S, L, h, h)
    n, s = emoji.pairs(held=False).T
    seen = latents[torch.from_numpy(n), torch.from_numpy(s)]
    mean, std = seen.mean(dim=(0, 2, 3)), seen.std(dim=(0, 2, 3))
    fold_scale(vae, mean, std)
    shape = (1, 1, -1, 1, 1)
    scaled = ((latents - mean.view(shape)) / std.view(shape)).half().contiguous()
    save_file({"latents": scaled}, folder / "latents.safetensors")
    weights.write_folder(folder / "model", EMOJI, {"vae": vae})
    print(f"latents: mean {mean.tolist()}, deviation {std.tolist()}")


@torch.no_grad()
def fold_scale(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Makes `encode` give (z - mean) / std and `decode` take it, exactly; mean and std are (L,)."""
    mean, std = mean.to(vae.quant_conv.weight), std.to(vae.quant_conv.weight)
    channels = len(mean)
    assert vae.quant_conv.bias is not None and vae.post_quant_conv.bias is not None
    vae.quant_conv.weight[:channels] /= std.view(-1, 1, 1, 1)
    vae.quant_conv.bias[:channels] = (vae.quant_conv.bias[:channels] - mean) / std
    vae.quant_conv.bias[channels:] -= 2 * std.log()
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    vae.post_quant_conv.weight *= std.view(1, -1, 1, 1)


def prepare_tokenizer(emoji: data.EmojiData, folder: Path) -> CLIPTokenizer:
    """Trains the tokenizer into the run's `model/tokenizer` unless it is there."""
    target = folder / "model" / "tokenizer"
    if not (target / "vocab.json").exists():
        vocab, merges = tokenizer.train(captions.corpus(emoji), EMOJI.text.vocab_size)
        tokenizer.write(target, vocab, merges, EMOJI.text.max_position_embeddings)
    return CLIPTokenizer.read(target)


class Batches:
    """Draws what the loss needs: latents, noise levels, noise and caption ids."""

    def __init__(self, emoji: data.EmojiData, latents: Tensor, tokens: CLIPTokenizer, cfg: DiffusionConfig) -> None:
        self.emoji, self.latents, self.tokens = emoji, latents, tokens
        self.pairs = emoji.pairs(held=False)
        squares = alphas_cumprod(cfg.schedule)
        self.log_noise = (0.5 * ((1 - squares) / squares).log()).numpy()  # rising with the step

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x0 (B, L, h, h), steps (B,), noise (B, L, h, h), ids (B, T), all on the CPU.

        The levels are stratified, one from each B-th of the distribution, which takes noise out of the gradient.
        """
        chosen = self.pairs[rng.integers(len(self.pairs), size=count)]
        n, s = torch.from_numpy(chosen).unbind(1)
        x0 = self.latents[n, s].float()
        quantiles = torch.from_numpy((np.arange(count) + rng.random(count)) / count)
        levels = LOG_NOISE_MEAN + LOG_NOISE_SPREAD * torch.special.ndtri(quantiles.clamp(1e-6, 1 - 1e-6)).numpy()
        steps = np.searchsorted(self.log_noise, levels).clip(0, len(self.log_noise) - 1)
        noise = torch.from_numpy(rng.standard_normal(tuple(x0.shape), dtype=np.float32))
        return x0, torch.from_numpy(steps), noise, self._ids(chosen, rng)

    def fixed(self, pairs: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same for given pairs, with plain captions and levels and noise that never change: for validation."""
        rng = np.random.default_rng(1234)
        n, s = torch.from_numpy(pairs).unbind(1)
        x0 = self.latents[n, s].float()
        quantiles = torch.from_numpy(rng.permutation((np.arange(len(pairs)) + 0.5) / len(pairs)))
        levels = LOG_NOISE_MEAN + LOG_NOISE_SPREAD * torch.special.ndtri(quantiles).numpy()
        steps = np.searchsorted(self.log_noise, levels).clip(0, len(self.log_noise) - 1)
        noise = torch.from_numpy(rng.standard_normal(tuple(x0.shape), dtype=np.float32))
        texts = [captions.plain(self.emoji.names[n], data.STYLES[s]) for n, s in pairs]
        return x0, torch.from_numpy(steps), noise, torch.tensor([self.tokens.encode(text) for text in texts])

    def _ids(self, pairs: np.ndarray, rng: np.random.Generator) -> Tensor:
        texts = [
            ""
            if rng.random() < CAPTION_DROP
            else captions.draw(self.emoji.names[n], self.emoji.keywords[n], data.STYLES[s], rng)
            for n, s in pairs
        ]
        return torch.tensor([self.tokens.encode(text) for text in texts])


def velocity_loss(model: Denoiser, batch: tuple[Tensor, ...], alpha: Tensor, sigma: Tensor) -> Tensor:
    """Mean squared error of the predicted velocity over a batch from `Batches`; alpha and sigma are per step."""
    x0, steps, noise, ids = (each.to(alpha.device) for each in batch)
    a, s = alpha[steps].view(-1, 1, 1, 1), sigma[steps].view(-1, 1, 1, 1)
    predicted = model(a * x0 + s * noise, steps, ids)
    return F.mse_loss(predicted.float(), a * noise - s * x0)


def run(emoji: data.EmojiData, folder: Path, options: TrainOptions, init: Path | None = None) -> None:
    """Trains, or goes on training, the denoiser in `folder`; a new run begins from the exported folder `init`."""
    torch.manual_seed(0)
    machine = pick_machine(mixed=True)
    tokens = prepare_tokenizer(emoji, folder)
    batches = Batches(emoji, load_latents(folder), tokens, EMOJI)
    vae = weights.load_vae(folder / "model", EMOJI.vae).to(machine.device)
    model = Denoiser(EMOJI)
    model.initialise()
    if init is not None:
        model.text_encoder = weights.load_text_encoder(init, EMOJI.text)
        model.unet = weights.load_unet(init, EMOJI.unet)
    model.to(machine.device)
    trainer = Trainer(folder, "denoiser", model, options, machine, ("loss", "val_seen", "val_held"))
    alpha, sigma = (each.to(machine.device) for each in alpha_sigma(EMOJI.schedule))
    held, seen = emoji.pairs(held=True), emoji.pairs(held=False)
    seen = seen[np.random.default_rng(0).choice(len(seen), size=len(held), replace=False)]
    checks = {"val_seen": batches.fixed(seen), "val_held": batches.fixed(held)}

    def loss(rng: np.random.Generator, count: int) -> dict[str, Tensor]:
        with machine.autocast():
            return {"loss": velocity_loss(model, batches.draw(count, rng), alpha, sigma)}

    def check(step: int) -> dict[str, float]:
        sheet(model, vae, tokens, emoji, folder / f"denoiser-{step:06d}.png")
        return {name: float(velocity_loss(model, fixed, alpha, sigma)) for name, fixed in checks.items()}

    # With 64 places and 32 tokens the fused attention's backward pass takes twice the time of plain products on a CPU.
    with sdpa_kernel(SDPBackend.MATH) if machine.device.type == "cpu" else nullcontext():
        trainer.run(loss, check)


def load_latents(folder: Path) -> Tensor:
    """(N, S, L, h, h) float16, as `prepare_latents` wrote them."""
    return load_file(folder / "latents.safetensors")["latents"]


def export(folder: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Writes the averaged weights of all parts and the tokenizer to the run's `export` folder, and returns it."""
    target = folder / "model"
    model = Denoiser(EMOJI)
    state = torch.load(folder / "denoiser.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(state["ema"])
    parts = {"text_encoder": model.text_encoder, "unet": model.unet, "vae": weights.load_vae(target, EMOJI.vae)}
    end_id = CLIPTokenizer.read(target / "tokenizer").vocab[tokenizer.END]
    export_to = folder / "export"
    shutil.copytree(target / "tokenizer", export_to / "tokenizer", dirs_exist_ok=True)
    weights.write_folder(export_to, EMOJI, parts, dtype, end_id)
    size = sum(path.stat().st_size for path in export_to.rglob("*") if path.is_file())
    print(f"step {state['step']}, {size / 1e6:.1f} MB -> {export_to}")
    return export_to


@torch.no_grad()
def sheet(model: Denoiser, vae: AutoencoderKL, tokens: CLIPTokenizer, emoji: data.EmojiData, path: Path) -> None:
    """Draws a few seen pairs (real above drawn) and a few held-out ones, 20 steps at guidance 3."""
    index = {name: n for n, name in enumerate(emoji.names)}
    held = [(emoji.names[n], data.STYLES[s]) for n, s in emoji.pairs(held=True)[3::24]]
    pairs = [*(pair for pair in SHEET if pair[0] in index), *held][:16]
    texts = [captions.plain(name, style) for name, style in pairs]
    latents = draw_latents(model.text_encoder, model.unet, tokens, texts, EMOJI, steps=20, guidance=3.0, seed=0)
    drawn = to_pictures(vae.decode(latents))
    real = np.stack([emoji.pictures[index[name], data.STYLES.index(style)] for name, style in pairs])
    save_grid(np.concatenate([real[:8], drawn[:8], real[8:16], drawn[8:16]]), 8, path)
