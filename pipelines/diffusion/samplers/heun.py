"""Heun's method (Karras et al. 2022, algorithm 1): an Euler step, then once more with the mean of both slopes.

The calls are laid out first, second, first, second, ..., first: the last step, to a clean picture, has no second call,
since there the slope (y - x0) / level has no value. Memory between the two: the step's beginning and its slope.
"""

from __future__ import annotations

from torch import Tensor

from .plan import Memory, Plan, clean_of


def calls(count: int) -> list[int]:
    """Which of the `count` steps' levels each call is at: 0, 1, 1, 2, 2, ..."""
    return [0] + [k for k in range(1, count) for _ in range(2)]


def move(plan: Plan, i: int, y: Tensor, output: Tensor, memory: Memory, noise: Tensor | None) -> tuple[Tensor, Memory]:
    """Second order in two calls. A second call without memory (a fork that starts afresh) leaves the Euler step."""
    here, there = plan.levels[i], plan.levels[i + 1]
    slope = (y - clean_of(plan, here, y, output)) / here
    if here != there:
        return y + (there - here) * slope, (y, slope) if there > 0 else ()
    if not memory:
        return y, ()
    start, first = memory
    return start + (here - plan.levels[i - 1]) * 0.5 * (first + slope), ()
