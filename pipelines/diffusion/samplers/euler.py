"""One call, one straight step: DDIM (Song et al. 2021, equation 12 with eta 0) and Euler (Karras et al. 2022).

They are one method. DDIM's sqrt(a') x0 + sqrt(1 - a') noise, divided by sqrt(a'), is x0 + level' * noise, and Euler's
y + (level' - level) * (y - x0) / level is the same; they differ in which training steps they visit, and where they end.
"""

from __future__ import annotations

from torch import Tensor

from .plan import Memory, Plan, clean_of


def move(plan: Plan, i: int, y: Tensor, output: Tensor, memory: Memory, noise: Tensor | None) -> tuple[Tensor, Memory]:
    """Keeps the predicted picture and the predicted noise, and mixes them at the next level. First order."""
    here, there = plan.levels[i], plan.levels[i + 1]
    x0 = clean_of(plan, here, y, output)
    return x0 + (there / here) * (y - x0), ()
