"""A plan: the calls of the denoiser that one run makes, as plain numbers, and what holds for every sampler alike.

There are two ways to keep noisy latents, and a plan says which is its own:
- unit: x = alpha * x0 + sigma * noise with alpha^2 + sigma^2 = 1, as the denoiser was trained to get them;
- not unit: x = x0 + level * noise (Karras et al. 2022), which has to be scaled before the denoiser sees it.
Both are the second one times `signal`, and the samplers are all written for the second one, called y. There the
deterministic path is dy/dlevel = (y - x0(y)) / level (Karras et al. 2022, equations 1 and 3), and DDIM is its Euler
method.

Shapes: every tensor is (..., L, h, w) or any other shape, the same for all arguments of a call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..config import ScheduleConfig
from ..contract import SamplerName

Memory = tuple[Tensor, ...]


@dataclass(frozen=True)
class Plan:
    """One run's calls, S of them; equal for equal arguments of `make`, and never changed by a run.

    timesteps (S): what the denoiser is told as its time, in training steps; not always whole. levels (S + 1): the noise
    level sigma / alpha of the latents before each call, and at the end. draws (S): whether the step after a call takes
    fresh noise. unit: how the latents are kept (above). noise_scale: what the first noise is multiplied by where a run
    starts from noise alone. schedule: of the denoiser, for its kind of output.
    """

    name: SamplerName
    schedule: ScheduleConfig
    timesteps: tuple[float, ...]
    levels: tuple[float, ...]
    draws: tuple[bool, ...]
    unit: bool
    noise_scale: float


Move = Callable[[Plan, int, Tensor, Tensor, Memory, Tensor | None], tuple[Tensor, Memory]]


def alpha_of(level: float) -> float:
    """The share of the picture in unit latents of a noise level."""
    return 1.0 / math.sqrt(1.0 + level * level)


def signal(plan: Plan, call: int) -> float:
    """What y is multiplied by to give the plan's own latents before a call (or at the end, call S)."""
    return alpha_of(plan.levels[call]) if plan.unit else 1.0


def clean_of(plan: Plan, level: float, y: Tensor, output: Tensor) -> Tensor:
    """The end picture x0 that an output of the denoiser amounts to, for y of a noise level."""
    if plan.schedule.prediction_type == "epsilon":
        return y - level * output
    alpha = alpha_of(level)
    return alpha * alpha * y - alpha * level * output  # alpha x - sigma v (Salimans and Ho 2022, appendix D)


def noise_of(plan: Plan, level: float, y: Tensor, output: Tensor) -> Tensor:
    """The noise in y that an output of the denoiser amounts to."""
    if plan.schedule.prediction_type == "epsilon":
        return output
    alpha = alpha_of(level)
    return alpha * output + level * alpha * alpha * y  # alpha v + sigma x


def start_from(plan: Plan, clean: Tensor, noise: Tensor, call: int = 0) -> Tensor:
    """Latents of a known picture as they would stand before a call; at the end, call S, the picture itself.

    clean: scaled latents without noise. noise: of unit variance. Call 0 starts image to image; in inpainting the part
    that is kept is replaced after step i by that of call i + 1, with the same noise all along (Rombach et al. 2022,
    their code; Lugmayr et al. 2022, equation 8).
    """
    if call == len(plan.timesteps):
        return clean
    return signal(plan, call) * (clean + plan.levels[call] * noise)


def scale_input(plan: Plan, i: int, x: Tensor) -> Tensor:
    """What the denoiser is given at call i: the latents at unit variance."""
    return x if plan.unit else x * alpha_of(plan.levels[i])


def clean(plan: Plan, i: int, x: Tensor, output: Tensor) -> Tensor:
    """The end picture (scaled latents) that the denoiser's output at call i predicts, epsilon or v."""
    return clean_of(plan, plan.levels[i], x / signal(plan, i), output)


def switch(plan: Plan, i: int, x: Tensor, other: Plan) -> tuple[Tensor, int]:
    """Go on with another plan: x as that one keeps its latents, and the call to go on with, memory empty.

    The call is the one of the nearest noise level, never a correction of the step before. What the denoiser would be
    given stays the same; where the levels differ, it takes x for a little more or less noisy than it is.
    """
    here = math.log(plan.levels[i])
    call = min(range(len(other.timesteps)), key=lambda j: (abs(math.log(other.levels[j]) - here), -j))
    unit = scale_input(plan, i, x)
    return (unit if other.unit else unit / alpha_of(other.levels[call])), call
