"""Samplers: from noise to latents in a given number of calls of a denoiser, as pure functions over tensors.

    plan = make("dpm++2m", schedule, num_steps=20)
    x, memory = noise * plan.noise_scale, ()
    for i, time in enumerate(plan.timesteps):
        output = denoise(scale_input(plan, i, x), time)
        x, memory = step(plan, i, x, output, memory, fresh_noise if plan.draws[i] else None)

A run is (plan, i, x, memory) at any moment, nothing else: keep those and it can be gone on with, or forked.

spacing: which training steps are visited. plan: what holds for all samplers. One file a family. registry: the names.
"""

from .plan import Memory, Plan, clean, scale_input, start_from, switch
from .registry import SPECS, make, max_steps, step

__all__ = ["SPECS", "Memory", "Plan", "clean", "make", "max_steps", "scale_input", "start_from", "step", "switch"]
