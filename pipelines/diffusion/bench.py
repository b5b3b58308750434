"""python -m pipelines.diffusion.bench: ours against diffusers, same weights and input, in turn.

Random weights, but for the bundled model. Memory is measured apart, each implementation in a process of its own that
does nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.common import bench, catalogue

from . import forms, weights
from .config import PRESETS, DiffusionConfig, TAESDConfig
from .contract import DiffusionRequest
from .fast import fuse
from .layout import published_configs
from .pipeline import steps

POOL = 1 << 22  # random numbers that large weights repeat: drawing 860 million would take minutes
PROMPT, STEPS = "a red apple, twemoji style", 20


@dataclass(frozen=True)
class Size:
    """What a U-Net is given. preset: of config. batch: 2 is a prompt and its negative. side: of the latents."""

    preset: str = "sd1"
    batch: int = 2
    side: int = 64

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, L, side, side), steps (B,), text (B, T, D)."""
        cfg, generator = PRESETS[self.preset], torch.Generator().manual_seed(1)
        text = (self.batch, cfg.text.max_position_embeddings, cfg.unet.cross_attention_dim)
        latents = torch.randn(self.batch, cfg.unet.in_channels, self.side, self.side, generator=generator)
        return latents, torch.full((self.batch,), 500.0), torch.randn(text, generator=generator)

    def __str__(self) -> str:
        return f"{self.preset}, {self.batch} x {self.side} x {self.side}"


def random_network(part: str, cfg: Any) -> Any:
    """A part of ours (see `weights.build`), with random weights at which features keep about unit variance."""
    network = weights.build(part, cfg).to_empty(device="cpu").eval().requires_grad_(False)
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0))
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:  # norms and biases
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            continue
        for piece in parameter.view(-1).split(POOL):
            torch.mul(pool[: len(piece)], parameter[0].numel() ** -0.5, out=piece)
    return network


def library_network(part: str, cfg: DiffusionConfig, state: dict[str, Tensor]) -> Any:
    """diffusers' network over the very same tensors."""
    import diffusers

    kinds = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL, "taesd": diffusers.AutoencoderTiny}
    kind: Any = kinds[part]
    with torch.device("meta"):
        network = kind() if part == "taesd" else kind.from_config(published_configs(cfg, 0)[part])
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def unet_rows(size: Size, rounds: int, dtype: str | None = None, memory: bool = True) -> list[bench.Row]:
    """The denoiser in float32, and in the numbers that are picked here for reduced precision (or `dtype`) against the
    library's float32, with the library's own time in these. memory: whether that is measured, too."""
    cfg, given = PRESETS[size.preset], size.inputs()
    ours = random_network("unet", cfg.unet)
    library = library_network("unet", cfg, ours.state_dict())
    fuse(ours)
    chosen = forms.device("reduced")
    dtype = dtype or chosen.dtype
    rows = []
    with torch.inference_mode():
        theirs = partial(_library_call, library, given)
        wanted = theirs()
        checks = differences(ours(*given), wanted) | (_memory(size) if memory else {})
        if dtype == "float32":  # one row says all: there are no smaller numbers in which this processor is faster
            checks["reduced"] = f"float32: {chosen.reason}"
        times = bench.interleave(partial(ours, *given), theirs, rounds, warmup=1)
        rows.append(_row(f"U-Net {size}, float32", times, checks))
        if dtype != "float32":
            small, short = forms.reduced(ours, dtype), _cast(given, dtype)
            checks = differences(small(*short).float(), wanted)
            times = bench.interleave(partial(small, *short), theirs, rounds, warmup=1)
            del small
            library.to(getattr(torch, dtype))
            checks["library's own seconds"] = seconds(partial(_library_call, library, short), max(1, rounds // 2))
            rows.append(_row(f"U-Net {size}, {dtype} against float32", times, checks))
    return rows


def bundled_row(rounds: int, name: str = "emoji") -> bench.Row:
    """A whole picture of the bundled model, STEPS steps with guidance and a preview after each: the first preview is
    counted from the request. reduced: the picture in reduced precision, of 255 a channel."""
    request = DiffusionRequest(PROMPT, num_steps=STEPS, weights=name)
    drawn = {backend: draw(request, backend) for backend in ("local", "reference")}  # loaded now
    small = draw(request, "local", "reduced")[0]
    first: dict[str, list[float]] = {"local": [], "reference": []}

    def run(backend: str) -> None:
        first[backend].append(draw(request, backend)[1])

    times = bench.interleave(partial(run, "local"), partial(run, "reference"), rounds, warmup=1)
    found, wanted = drawn["local"][0].astype(int), drawn["reference"][0]
    checks = {
        "first preview s": float(np.median(first["local"][1:])), "theirs": float(np.median(first["reference"][1:])),
        "largest difference": int(np.abs(found - wanted).max()), "reduced in": forms.device("reduced").dtype,
        "reduced, largest": int(np.abs(found - small).max()), "reduced, mean": float(np.abs(found - small).mean()),
    }  # fmt: skip
    return _row(f"bundled model, {STEPS} steps with guidance", times, checks)


def draw(request: DiffusionRequest, backend: str, precision: str = "float32") -> tuple[np.ndarray, float]:
    """The picture, and the seconds to its first preview."""
    changed: Any = {"backend": backend, "precision": precision}
    start, first = time.perf_counter(), 0.0
    for event in steps(DiffusionRequest(**{**vars(request), **changed})):
        if event.preview is not None and not first:
            first = time.perf_counter() - start
        if event.result is not None:
            return event.result.image, first
    raise AssertionError("the last event has the result")


def decoder_row(size: Size, rounds: int, part: str = "vae") -> bench.Row:
    """One picture from its latents. part: "vae", or "taesd", which makes the previews."""
    cfg = PRESETS[size.preset]
    ours = random_network(part, TAESDConfig() if part == "taesd" else cfg.vae)
    library = library_network(part, cfg, ours.state_dict())
    latents = size.inputs()[0][:1]
    with torch.inference_mode():
        if part == "vae":
            fuse(ours)
        checks = differences(ours.decode(latents), library.decode(latents).sample)
        times = bench.interleave(partial(ours.decode, latents), partial(library.decode, latents), rounds, warmup=1)
    kind = "TAESD" if part == "taesd" else f"{size.preset} autoencoder"
    return _row(f"{kind}, decode {size.side} x {size.side}", times, checks)


def differences(found: Tensor, wanted: Tensor) -> dict[str, Any]:
    """Of two outputs: the largest difference, and the root mean square one, over that of what is wanted."""
    away = found - wanted
    return {"largest difference": float(away.abs().max()), "relative": float(away.norm() / wanted.norm())}


def seconds(run: Callable[[], Any], rounds: int) -> float:
    """Median of some calls after a first one."""
    run()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return bench.timing(taken).median


def alone(who: str, size: Size) -> float:
    """Peak memory in MB of this process once it has built one implementation and called it twice.

    who: "local", "reference", or a dtype's name for ours in these numbers.
    """
    cfg, given = PRESETS[size.preset], size.inputs()
    network = random_network("unet", cfg.unet)
    with torch.inference_mode():
        if who == "reference":
            library = library_network("unet", cfg, network.state_dict())
            run = partial(_library_call, library, given)
        else:
            network, given = (
                (network, given) if who == "local" else (network.to(getattr(torch, who)), _cast(given, who))
            )
            run = partial(fuse(network), *given)
        run(), run()
    return bench.peak_mb()


def _memory(size: Size) -> dict[str, Any]:
    """Peak memory of each in a process of its own, in MB."""
    found = {}
    for who, said in (("local", "peak MB"), ("reference", "theirs")):
        command = [sys.executable, "-m", __spec__.name, "--alone", who, "--threads", str(torch.get_num_threads())]
        command += ["--preset", size.preset, "--batch", str(size.batch), "--side", str(size.side)]
        done = subprocess.run(command, cwd=catalogue.ROOT, capture_output=True, text=True, check=True)
        found[said] = round(json.loads(done.stdout.splitlines()[-1]))
    return found


def _library_call(library: nn.Module, given: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    output: Tensor = library(*given).sample
    return output


def _cast(given: tuple[Tensor, Tensor, Tensor], dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    numbers = getattr(torch, dtype)
    return given[0].to(numbers), given[1], given[2].to(numbers)


def _row(task: str, times: tuple[bench.Timing, bench.Timing], checks: dict[str, Any]) -> bench.Row:
    return bench.Row(task, *times, checks, bench.peak_mb(), bench.setup("diffusers", "transformers"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--preset", choices=list(PRESETS), default="sd1")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--side", type=int, default=64, help="of the latents: an eighth of the picture's")
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float16"], help="reduced precision, in place of the one picked"
    )
    parser.add_argument("--only", choices=["unet", "bundled", "decoders"])
    parser.add_argument("--alone", help="print the peak memory of one implementation: local, reference or a dtype")
    arguments = parser.parse_args()
    size = Size(arguments.preset, arguments.batch, arguments.side)
    rows: list[bench.Row] = []
    with bench.torch_threads(arguments.threads):
        if arguments.alone:
            print(json.dumps(alone(arguments.alone, size)))
            return
        if arguments.only in (None, "bundled"):
            rows.append(bundled_row(arguments.rounds))
        if arguments.only in (None, "decoders"):
            rows += [decoder_row(size, arguments.rounds, part) for part in ("vae", "taesd")]
        if arguments.only in (None, "unet"):
            rows += unet_rows(size, arguments.rounds, arguments.dtype)
    print(bench.table(rows))
    for row in rows:
        print(row.json())


if __name__ == "__main__":
    main()
