"""DPM-Solver++ 2M (Lu et al. 2022b, algorithm 2): second order for one call a step, by looking at the call before.

In the logarithm of the signal-to-noise ratio, lambda = -log(level), the exact step is linear in x0 (their proposition
4.1); x0 is taken at the middle of the step, extrapolated from this call and the one before. Memory: the x0 before.
"""

from __future__ import annotations

import math

from torch import Tensor

from .plan import Memory, Plan, clean_of


def move(plan: Plan, i: int, y: Tensor, output: Tensor, memory: Memory, noise: Tensor | None) -> tuple[Tensor, Memory]:
    """First order without memory, and in the last step, which takes lambda to infinity and so ends at x0 itself."""
    here, there = plan.levels[i], plan.levels[i + 1]
    x0 = clean_of(plan, here, y, output)
    middle = x0
    if memory and i and there > 0:
        step, before = math.log(here / there), math.log(plan.levels[i - 1] / here)
        middle = x0 + (0.5 * step / before) * (x0 - memory[0])
    return middle + (there / here) * (y - middle), (x0,)
