"""Which training steps a sampler visits, and how noisy the latents are there.

The noise level of latents x = alpha * x0 + sigma * noise is here always the ratio sigma / alpha, which Karras et al.
(2022) call sigma: 0 for a clean picture, about 14.6 at the end of Stable Diffusion's schedule. All numbers are Python
floats, so that a plan is exact to 64 bits whatever the latents' type.
"""

from __future__ import annotations

import math
from bisect import bisect_right

from ..config import ScheduleConfig
from ..schedule import alphas_cumprod

KARRAS_RHO = 7.0  # Karras et al. 2022, appendix D.1


def training_levels(cfg: ScheduleConfig) -> list[float]:
    """The noise level at every training step, rising."""
    squares = alphas_cumprod(cfg)
    return ((1.0 - squares) / squares).sqrt().tolist()


def level_at(levels: list[float], timestep: float) -> float:
    """The noise level at a training step, which may lie between two: linear there."""
    low = min(max(math.floor(timestep), 0), len(levels) - 1)
    high = min(low + 1, len(levels) - 1)
    share = timestep - low
    return (1.0 - share) * levels[low] + share * levels[high] if share else levels[low]


def timestep_at(levels: list[float], level: float) -> float:
    """The training step at a noise level, linear in the level's logarithm; the ends of the schedule beyond them."""
    low = min(max(bisect_right(levels, level) - 1, 0), len(levels) - 2)
    below, above = math.log(levels[low]), math.log(levels[low + 1])
    share = (math.log(level) - below) / (above - below)
    return low + min(max(share, 0.0), 1.0)


def even_timesteps(
    spacing: str, total: int, count: int, offset: int, spare: bool = False, whole: bool = True
) -> list[float]:
    """`count` of `total` training steps, falling (Lin et al. 2024, table 2, compares the three spacings).

    "leading": multiples of a whole stride from 0, plus `offset`; misses the noisiest steps. "linspace": from the first
    to the last, both included. "trailing": from the last in even strides, the first left out. spare: count + 1 steps
    are laid out and the cleanest, at which no network is called, is dropped (DPM-Solver++). whole: whether "linspace"
    is rounded to whole training steps. Raises ValueError for another spacing.
    """
    points = count + spare
    if spacing == "leading":
        multiple = total // points
        return [float(k * multiple + offset) for k in reversed(range(points))][:count]
    if spacing == "linspace":
        stride = (total - 1) / (points - 1) if points > 1 else 0.0
        found = [min(k * stride, total - 1.0) for k in reversed(range(points))][:count]
        return [float(round(time)) for time in found] if whole else found
    if spacing == "trailing":
        stride = total - (total - total / count)  # as numpy.arange rounds it, which decides where a half comes out
        return [float(round(total - k * stride) - 1) for k in range(count)]
    raise ValueError(f"timestep_spacing is {spacing!r}, and only leading, linspace and trailing are known")


def karras_levels(highest: float, lowest: float, count: int) -> list[float]:
    """`count` noise levels, falling, evenly spaced in level^(1/7): finer where the picture is nearly clean.

    Karras et al. 2022, equation 5.
    """
    high, low = highest ** (1.0 / KARRAS_RHO), lowest ** (1.0 / KARRAS_RHO)
    return [(high + k / max(count - 1, 1) * (low - high)) ** KARRAS_RHO for k in range(count)]
