"""One picture from noise, call by call of the denoiser. The networks are an argument; what a visitor's picture needs
lives in this generator, and goes with it.

Noise comes from CPU generators, so that a seed means one picture everywhere. The first noise and that of each step are
streams of their own: another sampler, another number of steps or a fork begins in the same noise, and the step after
call i draws the same whatever was drawn before.

Letters: L latent channels, h and w the latent's sides, T text tokens, D text width.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.common import backends, device
from pipelines.common.errors import UserError

from . import samplers
from .contract import Precision
from .samplers import Memory, Plan


@dataclass(frozen=True)
class Inpainting:
    """What is kept. clean: (1, L, h, w) scaled latents of the given picture. anew: (1, 1, h, w) bool, true in the cells
    that are drawn anew."""

    clean: Tensor
    anew: Tensor


@dataclass(frozen=True)
class Job:
    """What is to be drawn.

    text: (2, T, D), the negative prompt's before the prompt's; the first is not looked at where `guided` is false.
    latents: (1, L, h, w) before call `first`, as the plan keeps them. memory: of the sampler, then. noise: the first
    one, unit variance. guidance: the scale.
    """

    plan: Plan
    text: Tensor
    guidance: float
    noise: Tensor
    latents: Tensor
    seed: int
    first: int = 0
    memory: Memory = ()
    kept: Inpainting | None = None
    precision: Precision = "float32"


@dataclass(frozen=True)
class Outputs:
    """What the denoiser said at one call, noise or velocity (1, L, h, w) each; `without` the prompt only if it was
    asked."""

    given: Tensor
    without: Tensor | None

    def guided(self, scale: float) -> Tensor:
        """From the one past the other (Ho and Salimans 2022, equation 6)."""
        return self.given if self.without is None else self.without + scale * (self.given - self.without)


@dataclass(frozen=True)
class Moment:
    """One call, done. before, after: latents; memory: before it. clean: the end picture that it predicts, scaled."""

    call: int
    before: Tensor
    memory: Memory
    clean: Tensor
    after: Tensor


@dataclass
class Clock:
    """Seconds of the denoiser's work, waiting for a turn or for the reader left out, and its calls."""

    denoise: float = 0.0
    calls: int = 0


def first_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """What a picture begins in, unit variance."""
    return torch.randn(shape, generator=device.generator(seed))


def step_noise(seed: int, call: int, shape: tuple[int, ...]) -> Tensor:
    """What the step after a call takes, unit variance: hangs on the seed and the call alone."""
    digest = hashlib.sha256(f"noise of seed {seed} after call {call}".encode()).digest()
    return torch.randn(shape, generator=device.generator(int.from_bytes(digest[:8], "big") >> 1))


def follows_inside(backend: Any) -> bool:
    """Whether the denoiser was taught to follow the guidance scale itself (LCM), and so needs no second evaluation."""
    return backend.config.unet.time_cond_proj_dim is not None


def outputs(
    backend: Any,
    job: Job,
    call: int,
    x: Tensor,
    both: bool | None = None,
    record: Any = None,
    clock: Clock | None = None,
) -> Outputs:
    """Asks the denoiser at a call, with a turn on the device: of prompt and negative prompt as one batch of two.

    both: whether the negative prompt is asked, too; None: where the guidance needs it, which is not at scale 1. record:
    as in `denoise`.
    """
    inside = follows_inside(backend)
    both = not inside and job.guidance != 1.0 if both is None else both
    given = samplers.scale_input(job.plan, call, x)
    options = {"precision": job.precision} if record is None else {"precision": job.precision, "record": record}
    with backends.step(backend.device):
        start = time.perf_counter()
        said = backend.denoise(
            given.expand(1 + both, -1, -1, -1), job.plan.timesteps[call], job.text if both else job.text[1:],
            job.guidance if inside else None, **options,
        )  # fmt: skip
        if clock is not None:
            clock.denoise += time.perf_counter() - start
            clock.calls += 1
    return Outputs(said[1:], said[:1]) if both else Outputs(said, None)


def advance(job: Job, call: int, x: Tensor, output: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """The latents and the memory before the next call. UserError: the numbers have run away."""
    noise = step_noise(job.seed, call, tuple(x.shape)) if job.plan.draws[call] else None
    x, memory = samplers.step(job.plan, call, x, output, memory, noise)
    if job.kept is not None:
        x = torch.where(job.kept.anew, x, samplers.start_from(job.plan, job.kept.clean, job.noise, call + 1))
    if not bool(x.isfinite().all()):
        raise UserError("The picture's numbers ran out of range; choose a smaller guidance, or float32.")
    return x, memory


def generate(backend: Any, job: Job, clock: Clock | None = None) -> Generator[Moment, None, None]:
    """The picture after each call, to the end. Closing the generator stops the work before the next call.

    Raises UserError: the numbers have run away, or what `denoise` says.
    """
    x, memory = job.latents, job.memory
    for call in range(job.first, len(job.plan.timesteps)):
        output = outputs(backend, job, call, x, clock=clock).guided(job.guidance)
        before, remembered, clean = x, memory, samplers.clean(job.plan, call, x, output)
        x, memory = advance(job, call, x, output, memory)
        yield Moment(call, before, remembered, clean, x)
