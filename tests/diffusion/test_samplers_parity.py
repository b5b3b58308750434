"""Every sampler against diffusers' scheduler, step by step, with the same outputs and the same noise fed to both.

The library keeps its schedule in float32, where 1 - alpha^2 of the first training steps has four digits left. It is
compared both as it comes and with the schedule handed to it in float64, which shows that nothing else differs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.diffusion import samplers
from pipelines.diffusion.config import PRESETS, ScheduleConfig
from pipelines.diffusion.contract import SAMPLERS, SamplerName
from pipelines.diffusion.samplers import Memory, make
from pipelines.diffusion.schedule import alphas_cumprod

diffusers = pytest.importorskip("diffusers")

BUNDLED = Path(__file__).resolve().parents[2] / "weights/diffusion/emoji/scheduler"
CLASSES: dict[SamplerName, str] = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpm++2m": "DPMSolverMultistepScheduler",
    "dpm++2m_karras": "DPMSolverMultistepScheduler",
    "pndm": "PNDMScheduler",
    "lcm": "LCMScheduler",
}
STOCHASTIC = ("ddpm", "euler_a", "lcm")
# scheduler/scheduler_config.json of runwayml/stable-diffusion-v1-5, 2-1-base and bk-sdm-tiny but for null fields.
PUBLISHED = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
LCM_PUBLISHED = {
    **PUBLISHED,
    "_class_name": "LCMScheduler",
    "original_inference_steps": 50,
    "set_alpha_to_one": True,
    "timestep_spacing": "leading",
}
SCHEDULES = {
    "sd1": ScheduleConfig(),
    "sd2-v": ScheduleConfig(prediction_type="v_prediction"),
    "lcm": ScheduleConfig(set_alpha_to_one=True, timestep_spacing="leading"),
    "emoji": PRESETS["emoji"].schedule,
}


def scheduler(name: SamplerName, schedule: str, steps: int, exact: bool = False, **changes: Any) -> Any:
    """The library's, as its pipelines would make it from the published file, with its steps laid out."""
    diffusers.utils.logging.set_verbosity_error()
    if schedule == "emoji":
        config = diffusers.DPMSolverMultistepScheduler.from_pretrained(BUNDLED).config
    elif schedule == "lcm":
        config = diffusers.LCMScheduler.from_config(LCM_PUBLISHED).config
    else:
        kind = SCHEDULES[schedule].prediction_type
        config = diffusers.PNDMScheduler.from_config({**PUBLISHED, "prediction_type": kind}).config
    if name == "dpm++2m_karras":
        changes["use_karras_sigmas"] = True
    if name == "pndm":
        changes["skip_prk_steps"] = True  # as all published files have it
    made = getattr(diffusers, CLASSES[name]).from_config(config, **changes)
    if exact:
        made.alphas_cumprod = alphas_cumprod(SCHEDULES[schedule])
        if not made.config.get("set_alpha_to_one", True):
            made.final_alpha_cumprod = made.alphas_cumprod[0]
    made.set_timesteps(steps)
    if hasattr(made, "set_begin_index"):
        made.set_begin_index(0)
    return made


def random(seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(1, 4, 6, 5, generator=torch.Generator().manual_seed(seed)) * scale


def gap(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def largest_gap(plan: samplers.Plan, theirs: Any, begin: int = 0, x: Tensor | None = None) -> float:
    """Over the latents after each step, what the denoiser is given, and the predicted clean latents."""
    ours = y = random(1, float(theirs.init_noise_sigma)) if x is None else x
    memory: Memory = ()
    gaps = [abs(plan.noise_scale / float(theirs.init_noise_sigma) - 1)]
    times = theirs.timesteps[begin:]
    assert len(times) == len(plan.timesteps)
    for i, time in enumerate(times):
        gaps.append(abs(plan.timesteps[i] - float(time)) / 10)  # those between two are float32 there
        gaps.append(gap(samplers.scale_input(plan, i, ours), theirs.scale_model_input(y, time)))
        output, noise = random(100 + i), random(500 + i) if plan.draws[i] else None
        predicted = samplers.clean(plan, i, ours, output)
        fresh = {"generator": torch.Generator().manual_seed(500 + i)} if plan.name in STOCHASTIC else {}
        result = theirs.step(output, time, y, **fresh)
        if "pred_original_sample" in result:
            gaps.append(gap(predicted, result.pred_original_sample))
        y = result.prev_sample
        ours, memory = samplers.step(plan, i, ours, output, memory, noise)
        assert ours.dtype == torch.float32
        gaps.append(gap(ours, y))
    return max(gaps)


@pytest.mark.parametrize("steps", [1, 2, 4, 20, 50])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_equals_the_library_step_by_step(name: SamplerName, schedule: str, steps: int) -> None:
    plan = make(name, SCHEDULES[schedule], steps)
    assert largest_gap(plan, scheduler(name, schedule, steps, exact=True)) < 5e-6
    assert largest_gap(plan, scheduler(name, schedule, steps)) < (1e-5 if steps > 2 else 3e-5)


@pytest.mark.parametrize("steps", [3, 13, 14, 15, 16])
@pytest.mark.parametrize("name", ["dpm++2m", "dpm++2m_karras"])
def test_the_last_step_of_dpm_solver(name: SamplerName, steps: int) -> None:
    """The library's rules for the last step change at 15 steps; with a final level of 0 they come to one thing, the end
    predicted by the last call."""
    plan = make(name, SCHEDULES["emoji"], steps)
    for lower_order_final in (True, False):
        theirs = scheduler(name, "emoji", steps, exact=True, lower_order_final=lower_order_final)
        assert largest_gap(plan, theirs) < 5e-6
    x, output = random(1), random(2)
    ended, _ = samplers.step(plan, steps - 1, x, output, (random(3),))
    assert torch.allclose(ended, samplers.clean(plan, steps - 1, x, output), atol=1e-6)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_visits_the_same_steps_for_every_number_of_steps(name: SamplerName, spacing: str) -> None:
    schedule = replace(SCHEDULES["emoji"], timestep_spacing=spacing)
    theirs = scheduler(name, "emoji", 1, exact=True, timestep_spacing=spacing)
    for steps in range(1, 51 if name == "lcm" else 101):
        theirs.set_timesteps(steps)
        plan = make(name, schedule, steps)
        if (spacing, steps) == ("trailing", 61) and theirs.timesteps[-1] < 0:
            continue  # rounding gives the library a call too many, at training step -1
        assert plan.timesteps == pytest.approx(theirs.timesteps.tolist(), abs=1e-4)
        assert plan.noise_scale == pytest.approx(float(theirs.init_noise_sigma), rel=1e-6)


@pytest.mark.parametrize("strength", [0.85, 0.5, 0.06])
@pytest.mark.parametrize("schedule", ["sd1", "emoji"])
@pytest.mark.parametrize("name", [each for each in SAMPLERS if each not in ("pndm", "lcm")])
def test_image_to_image_equals_the_library(name: SamplerName, schedule: str, strength: float) -> None:
    """As its StableDiffusionImg2ImgPipeline.get_timesteps and prepare_latents do it. PNDM is not compared: the library
    drops calls from the front of its list, the doubled one with them, so that its latents are one step noisier than
    what the denoiser is told, to the end."""
    steps = 20
    plan = make(name, SCHEDULES[schedule], steps, strength)
    theirs = scheduler(name, schedule, steps, exact=True)
    begin = (steps - int(steps * strength)) * theirs.order
    if hasattr(theirs, "set_begin_index"):
        theirs.set_begin_index(begin)
    picture, noise = random(7), random(8)
    x = samplers.start_from(plan, picture, noise)
    assert gap(x, theirs.add_noise(picture, noise, theirs.timesteps[begin : begin + 1])) < 5e-6
    assert largest_gap(plan, theirs, begin, x) < 5e-6


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_lcm_image_to_image_equals_the_library(strength: float) -> None:
    """LatentConsistencyModelImg2ImgPipeline runs all steps over a part of the schedule."""
    theirs = scheduler("lcm", "lcm", 4, exact=True)
    theirs.set_timesteps(4, strength=strength)
    plan = make("lcm", SCHEDULES["lcm"], 4, strength)
    assert plan.timesteps[0] == (999.0 if strength == 1.0 else 499.0)
    assert largest_gap(plan, theirs) < 5e-6


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_kept_part_in_inpainting_equals_the_library(name: SamplerName) -> None:
    """Its StableDiffusionInpaintPipeline puts the noised picture of the next call's level outside the mask."""
    plan, theirs = make(name, SCHEDULES["sd1"], 10), scheduler(name, "sd1", 10, exact=True)
    picture, noise, x = random(7), random(8), random(9, float(make(name, SCHEDULES["sd1"], 10).noise_scale))
    for i, time in enumerate(theirs.timesteps):
        theirs.scale_model_input(x, time)
        x = theirs.step(random(100 + i), time, x).prev_sample
        if i + 1 == len(plan.timesteps):
            assert samplers.start_from(plan, picture, noise, i + 1) is picture
        else:
            kept = theirs.add_noise(picture, noise, theirs.timesteps[i + 1 : i + 2])
            assert gap(samplers.start_from(plan, picture, noise, i + 1), kept) < 5e-6


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_wrong_schedule_is_seen(name: SamplerName) -> None:
    """The comparison above can fail: with another kind of output, other noise, or an end at another level."""
    theirs = scheduler(name, "emoji", 10, exact=True)
    for wrong in (
        replace(SCHEDULES["emoji"], prediction_type="epsilon"),
        replace(SCHEDULES["emoji"], beta_end=0.02005),
    ):
        theirs.set_timesteps(10)
        if hasattr(theirs, "set_begin_index"):
            theirs.set_begin_index(0)
        assert largest_gap(make(name, wrong, 10), theirs) > 2e-4
    if name in ("ddim", "pndm"):
        theirs.set_timesteps(10)
        assert largest_gap(make(name, replace(SCHEDULES["emoji"], set_alpha_to_one=True), 10), theirs) > 2e-4


def test_the_bundled_file_and_the_preset_agree() -> None:
    config = scheduler("ddim", "emoji", 4).config
    preset = SCHEDULES["emoji"]
    for field in ("num_train_timesteps", "beta_start", "beta_end", "prediction_type", "timestep_spacing",
                  "steps_offset", "set_alpha_to_one"):  # fmt: skip
        assert config[field] == getattr(preset, field)
