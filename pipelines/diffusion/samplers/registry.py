"""The samplers by name: what each visits, where it ends, and how it moves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..config import ScheduleConfig
from ..contract import SamplerName
from . import ancestral, consistency, euler, heun, multistep, pndm
from .plan import Memory, Move, Plan, signal
from .spacing import even_timesteps, karras_levels, level_at, timestep_at, training_levels


@dataclass(frozen=True)
class Sampler:
    """move: one step, in y. spacing: of the training steps where the schedule names none. spare, whole: as in
    `even_timesteps`. unit: how the latents are kept. draws: takes fresh noise at every step but the last. first: ends
    at the first training step's level unless the schedule says otherwise, and not at a clean picture. calls: the steps'
    indices, one a call; None is one each."""

    move: Move
    spacing: str = "leading"
    spare: bool = False
    whole: bool = True
    unit: bool = True
    draws: bool = False
    first: bool = False
    calls: Callable[[int], list[int]] | None = None


# As the library's schedulers do it, which is how the published checkpoints are used.
SPECS: dict[SamplerName, Sampler] = {
    "ddpm": Sampler(ancestral.move, draws=True),
    "ddim": Sampler(euler.move, first=True),
    "pndm": Sampler(pndm.move, first=True, calls=pndm.calls),
    "euler": Sampler(euler.move, "linspace", whole=False, unit=False),
    "euler_a": Sampler(ancestral.move, "linspace", whole=False, unit=False, draws=True),
    "heun": Sampler(heun.move, "linspace", whole=False, unit=False, calls=heun.calls),
    "dpm++2m": Sampler(multistep.move, "linspace", spare=True),
    "dpm++2m_karras": Sampler(multistep.move, "karras"),
    "lcm": Sampler(consistency.move, "lcm", draws=True),
}


def max_steps(name: SamplerName, schedule: ScheduleConfig, strength: float = 1.0) -> int:
    """The most steps that `make` takes."""
    if name == "lcm":
        return consistency.original_steps(schedule.num_train_timesteps, strength)
    return schedule.num_train_timesteps - 1 - schedule.steps_offset


def make(name: SamplerName, schedule: ScheduleConfig, num_steps: int, strength: float = 1.0) -> Plan:
    """The plan of a run.

    num_steps: 1 to `max_steps`. strength: in (0, 1], the share of the steps that is run, the last ones, but at least
    one, for image to image; LCM runs all steps over that share of its schedule. Raises ValueError for an unknown name
    or kind of output, and for numbers out of their range.
    """
    if name not in SPECS:
        raise ValueError(f"no sampler is called {name!r}; there are {', '.join(SPECS)}")
    if schedule.prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(f"samplers know epsilon and v_prediction, not {schedule.prediction_type!r}")
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength is {strength}, and must be above 0 and at most 1")
    most = max_steps(name, schedule, strength)
    if not 1 <= num_steps <= most:
        raise ValueError(f"{name} takes 1 to {most} steps here, not {num_steps}")
    spec = SPECS[name]
    times, levels = _grid(name, schedule, num_steps, strength)
    noise_scale = 1.0
    if not spec.unit:  # pure noise has unit variance in "leading", which starts before the noisiest step
        noise_scale = math.hypot(1.0, levels[0]) if _spacing(spec, schedule) == "leading" else levels[0]
    skipped = 0 if name == "lcm" else num_steps - max(1, int(num_steps * strength))
    times, levels = times[skipped:], levels[skipped:]
    order = spec.calls(len(times)) if spec.calls else list(range(len(times)))
    return Plan(
        name=name,
        schedule=schedule,
        timesteps=tuple(times[k] for k in order),
        levels=(*(levels[k] for k in order), levels[-1]),
        draws=tuple(spec.draws and k < len(times) - 1 for k in order),
        unit=spec.unit,
        noise_scale=noise_scale,
    )


def step(
    plan: Plan, i: int, x: Tensor, output: Tensor, memory: Memory = (), noise: Tensor | None = None
) -> tuple[Tensor, Memory]:
    """The latents before call i + 1, and what has to be handed back then.

    x: the latents before call i, float32 whatever the denoiser's own type. output: of the denoiser there, guidance
    done. memory: as the step before returned it; () at first, or after a change that made it worthless: every sampler
    then goes on at first order. noise: unit variance, where `plan.draws[i]`; else not looked at. Nothing is changed in
    place, so a run can be forked at any call. Raises ValueError without noise where it is needed.
    """
    if plan.draws[i] and noise is None:
        raise ValueError(f"{plan.name} needs fresh noise after call {i}")
    y, memory = SPECS[plan.name].move(plan, i, x / signal(plan, i), output, memory, noise if plan.draws[i] else None)
    return y * signal(plan, i + 1), memory


def _spacing(spec: Sampler, schedule: ScheduleConfig) -> str:
    if spec.spacing in ("karras", "lcm"):
        return spec.spacing
    return schedule.timestep_spacing or spec.spacing


def _grid(
    name: SamplerName, schedule: ScheduleConfig, num_steps: int, strength: float
) -> tuple[list[float], list[float]]:
    """The training steps of all steps, falling, and their noise levels with that of the end."""
    spec, total = SPECS[name], schedule.num_train_timesteps
    table, spacing = training_levels(schedule), _spacing(SPECS[name], schedule)
    end = table[0] if spec.first and not schedule.set_alpha_to_one else 0.0
    if spacing == "karras":
        levels = karras_levels(table[-1], table[0], num_steps)
        return [float(round(timestep_at(table, level))) for level in levels], [*levels, end]
    if spacing == "lcm":
        times = consistency.timesteps(total, num_steps, strength)
    else:
        times = even_timesteps(spacing, total, num_steps, schedule.steps_offset, spec.spare, spec.whole)
    return times, [*(level_at(table, time) for time in times), end]
