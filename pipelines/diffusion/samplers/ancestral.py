"""Steps back along the noising chain: DDPM (Ho et al. 2020, equations 6 and 7) and Euler ancestral.

They are one method too. DDPM draws the next latents from q(x' | x, x0), whose mean and variance are, in y,
x0 + (level' / level)^2 (y - x0) and level'^2 (1 - (level' / level)^2). Euler ancestral goes down past the next level,
to level'^2 / level, and adds noise of that same variance to come back to it.
"""

from __future__ import annotations

import math

from torch import Tensor

from .plan import Memory, Plan, clean_of


def move(plan: Plan, i: int, y: Tensor, output: Tensor, memory: Memory, noise: Tensor | None) -> tuple[Tensor, Memory]:
    """Takes out more noise than the next level wants and puts fresh noise in; none at the last step."""
    here, there = plan.levels[i], plan.levels[i + 1]
    x0 = clean_of(plan, here, y, output)
    kept = (there / here) ** 2
    y = x0 + kept * (y - x0)
    if noise is not None:
        y = y + there * math.sqrt(1.0 - kept) * noise
    return y, ()
