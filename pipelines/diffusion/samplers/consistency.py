"""LCM, multi-step consistency sampling (Luo et al. 2023; Song et al. 2023, algorithm 1).

The denoiser was distilled to jump to the end of the path from anywhere on it. Each step jumps, and goes back to the
next, lower level with fresh noise.
"""

from __future__ import annotations

import math

from torch import Tensor

from .plan import Memory, Plan, alpha_of, clean_of

ORIGINAL_STEPS = 50  # of the solver that the student was distilled with; only those training steps were seen
SIGMA_DATA, TIME_SCALE = 0.5, 10.0  # Luo et al. 2023, their code; Song et al. 2023, appendix C


def original_steps(total: int, strength: float) -> int:
    """How many of the steps of the distillation there are to choose from."""
    return int(min(ORIGINAL_STEPS, total) * strength)


def timesteps(total: int, count: int, strength: float) -> list[float]:
    """`count` of the steps of the distillation, falling. Strength shortens the schedule, not the number of calls."""
    originals = original_steps(total, strength)
    stride = total // min(ORIGINAL_STEPS, total)
    return [float((originals - math.floor(k * originals / count)) * stride - 1) for k in range(count)]


def move(plan: Plan, i: int, y: Tensor, output: Tensor, memory: Memory, noise: Tensor | None) -> tuple[Tensor, Memory]:
    """The boundary condition (Song et al. 2023, equation 5) makes the jump the identity at time 0."""
    here, there = plan.levels[i], plan.levels[i + 1]
    time = plan.timesteps[i] * TIME_SCALE
    norm = time * time + SIGMA_DATA * SIGMA_DATA
    skip, out = SIGMA_DATA * SIGMA_DATA / norm, time / math.sqrt(norm)
    jumped = out * clean_of(plan, here, y, output) + skip * alpha_of(here) * y
    return (jumped if noise is None else jumped + there * noise), ()
