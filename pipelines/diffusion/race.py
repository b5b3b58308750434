"""A race of samplers: the same noise, the same number of calls of the U-Net, in lock-step, against a long run.

torch only when asked.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.common import backends
from pipelines.common.errors import UserError
from pipelines.common.limits import limits

from . import pipeline
from .checks import checked, whole
from .contract import SAMPLERS, DiffusionRequest, Lane, RaceEvent, SamplerName

if TYPE_CHECKING:
    from torch import Tensor

    from .generate import Job

REFERENCE: SamplerName = "dpm++2m"  # second order for one call a step
REFERENCE_STEPS = 100
# Noise is drawn at every step by these, so that they end in another picture: their error says how far away it is.
WANDERING: tuple[SamplerName, ...] = ("ddpm", "euler_a", "lcm")
USUAL: tuple[SamplerName, ...] = ("dpm++2m", "ddim", "euler", "heun", "euler_a")  # who runs if nobody chooses


def race(
    request: DiffusionRequest, names: Sequence[SamplerName], reference_steps: int = REFERENCE_STEPS
) -> Generator[RaceEvent, None, None]:
    """Each sampler from the same noise, `request.num_steps` calls of the U-Net for each, after a long run of steps of
    `REFERENCE` that says where they should end. One call less is made by Heun, with two calls a step, where the number
    is even, and by PNDM, which makes its first step twice, of two. An event after each call of the long run, then after
    each call of all samplers.

    Closing the generator stops the work before the next call. UserError: as `pipeline.steps` (what is wrong with the
    request at once), no or unknown samplers, or a fork, which is of one sampler.
    """
    request = checked(replace(request, history=False) if isinstance(request, DiffusionRequest) else request)
    if not names or len(set(names)) != len(names) or not set(names) <= set(SAMPLERS):
        raise UserError(f"Choose samplers for the race, each once, of: {', '.join(SAMPLERS)}.")
    if request.start is not None:
        raise UserError("A fork belongs to one sampler; race from the beginning of a run.")
    if not whole(reference_steps, 1, limits().steps):
        raise UserError(f"The long run may have 1 to {limits().steps:,} steps.")
    return _race(request, tuple(names), int(reference_steps))


def steps_for(name: SamplerName, calls: int) -> int:
    """The most steps that a sampler makes with so many calls of the U-Net, at least one."""
    if name == "heun":
        return (calls + 1) // 2
    if name == "pndm":
        return max(calls - 1, 1)
    return calls


@dataclass
class _Runner:
    """A sampler on its way."""

    backend: Any
    job: Job
    x: Tensor
    memory: tuple[Tensor, ...] = ()
    call: int = 0
    clean: Tensor | None = None

    def go(self) -> None:
        """One call, and the end picture that it predicts; after the last, what was drawn."""
        from . import samplers
        from .generate import advance, outputs

        job, call = self.job, self.call
        output = outputs(self.backend, job, call, self.x).guided(job.guidance)
        self.clean = samplers.clean(job.plan, call, self.x, output)
        self.x, self.memory = advance(job, call, self.x, output, self.memory)
        self.call += 1
        if self.done:
            self.clean = self.x

    @property
    def done(self) -> bool:
        return self.call == len(self.job.plan.timesteps)

    def picture(self, previews: bool = True) -> np.ndarray | None:
        if self.clean is None or not (previews or self.done):
            return None
        with backends.step(self.backend.device):
            return self.backend.decode(self.clean) if self.done else self.backend.preview(self.clean)


def _race(
    request: DiffusionRequest, names: tuple[SamplerName, ...], reference_steps: int
) -> Generator[RaceEvent, None, None]:
    with pipeline.enough_memory():
        runners = [
            _runner(replace(request, sampler=each, num_steps=steps_for(each, request.num_steps))) for each in names
        ]
        long = _runner(replace(request, sampler=REFERENCE, num_steps=reference_steps))
        lanes = tuple(
            Lane(each.job.plan.name, steps_for(each.job.plan.name, request.num_steps), len(each.job.plan.timesteps))
            for each in runners
        )
        count = len(long.job.plan.timesteps)
        while not long.done:
            yield RaceEvent(lanes, long.call, count)
            long.go()
        end, image = long.x, long.picture()
        yield RaceEvent(lanes, count, count, image)
        while not all(lane.done for lane in lanes):
            lanes = tuple(_on(*each, end, request.previews) for each in zip(lanes, runners, strict=True))
            yield RaceEvent(lanes, count, count, image)


def _runner(request: DiffusionRequest) -> _Runner:
    ready = pipeline.prepare(request)
    return _Runner(ready.backend, ready.job, ready.job.latents)


def _on(lane: Lane, runner: _Runner, end: Tensor, previews: bool) -> Lane:
    if runner.done:
        return lane
    runner.go()
    assert runner.clean is not None
    error = float((runner.clean - end).square().mean().sqrt())
    return replace(lane, calls=runner.call, errors=(*lane.errors, error), preview=runner.picture(previews))
