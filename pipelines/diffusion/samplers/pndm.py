"""PNDM without its Runge-Kutta start (Liu et al. 2022, equation 12), also called PLMS.

DDIM's step, but with the denoiser's last four outputs combined as in the Adams-Bashforth methods. Of those there are
too few in the beginning, so the first step is made twice, the second time with the mean of the outputs at both its
ends, and the next ones use two and three. What is combined is what the denoiser says, as in the library: second order
for noise, but first order only for velocities, which mean something else at each level.

Memory: after call 0, where the step began and the output there; after that up to three outputs, oldest first.
"""

from __future__ import annotations

from torch import Tensor

from .plan import Memory, Plan, noise_of

# Weights of the outputs, newest first: Adams-Bashforth of order 1 to 4.
ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def calls(count: int) -> list[int]:
    """Which of the `count` steps' levels each call is at: 0, 1, 1, 2, 3, ..."""
    return [0, 1, *range(1, count)] if count > 1 else [0]


def move(plan: Plan, i: int, y: Tensor, output: Tensor, memory: Memory, noise: Tensor | None) -> tuple[Tensor, Memory]:
    """Starting afresh at a later call is first order there; at call 1, which only corrects, it changes nothing."""
    here, there = plan.levels[i], plan.levels[i + 1]
    if i == 0:
        return _transfer(plan, here, there, y, output), (y, output)
    if i == 1:
        if len(memory) != 2:
            return y, ()
        start, first = memory
        return _transfer(plan, plan.levels[0], here, start, 0.5 * (first + output)), (first,)
    outputs = (*memory[-3:], output)
    weighted = [weight * each for weight, each in zip(ADAMS[len(outputs) - 1], reversed(outputs), strict=True)]
    return _transfer(plan, here, there, y, sum(weighted[1:], weighted[0])), outputs[-3:]


def _transfer(plan: Plan, here: float, there: float, y: Tensor, output: Tensor) -> Tensor:
    """From one level to another along a given output (Liu et al. 2022, equation 9)."""
    return y + (there - here) * noise_of(plan, here, y, output)
