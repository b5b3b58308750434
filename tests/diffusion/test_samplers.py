"""The samplers against what is known without any library.

Where the pictures are normally distributed, the best denoiser and its whole path are known in closed form: for latents
y = x0 + level * noise with x0 ~ N(MEAN, SPREAD^2), it answers x0 = (SPREAD^2 y + level^2 MEAN) / (SPREAD^2 + level^2),
and the path from y0 keeps (y - MEAN) / sqrt(SPREAD^2 + level^2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pipelines.diffusion import samplers
from pipelines.diffusion.config import PRESETS, ScheduleConfig
from pipelines.diffusion.contract import SAMPLERS, SamplerName
from pipelines.diffusion.samplers import Plan, make
from pipelines.diffusion.samplers.plan import Memory, alpha_of, signal
from pipelines.diffusion.samplers.spacing import level_at, timestep_at, training_levels

MEAN, SPREAD = 0.7, 1.5
SD1, EMOJI = ScheduleConfig(), PRESETS["emoji"].schedule
# Stable Diffusion's schedule in a hundred times as many steps, so that many calls find steps to stand on.
FINE = ScheduleConfig(num_train_timesteps=100_000, beta_start=0.0000085, beta_end=0.00012)
DETERMINISTIC: tuple[SamplerName, ...] = ("ddim", "euler", "heun", "dpm++2m", "dpm++2m_karras", "pndm")
Denoiser = Callable[[Plan, int, Tensor], Tensor]


def said(plan: Plan, i: int, x: Tensor, x0: Tensor) -> Tensor:
    """What a denoiser that means x0 says, as the schedule wants it said."""
    level, y = plan.levels[i], x / signal(plan, i)
    noise = (y - x0) / level
    if plan.schedule.prediction_type == "epsilon":
        return noise
    return alpha_of(level) * noise - level * alpha_of(level) * x0


def ideal(plan: Plan, i: int, x: Tensor) -> Tensor:
    """The exact denoiser."""
    level, y = plan.levels[i], x / signal(plan, i)
    return said(plan, i, x, (SPREAD**2 * y + level**2 * MEAN) / (SPREAD**2 + level**2))


def run(
    plan: Plan, x: Tensor, denoise: Denoiser, begin: int = 0, end: int | None = None, memory: Memory = (), seed: int = 0
) -> tuple[Tensor, Memory]:
    """Calls begin to end; each call's noise hangs on its number alone."""
    for i in range(begin, len(plan.timesteps) if end is None else end):
        generator = torch.Generator().manual_seed(seed + i)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype) if plan.draws[i] else None
        x, memory = samplers.step(plan, i, x, denoise(plan, i, x), memory, noise)
    return x, memory


def path_error(name: SamplerName, schedule: ScheduleConfig, steps: int, share: float) -> float:
    """Distance in y to the exact path after a share of the calls."""
    plan = make(name, schedule, steps)
    end = round(share * len(plan.timesteps))
    begin = torch.tensor([1.3], dtype=torch.float64) * plan.noise_scale
    found = float(run(plan, begin, ideal, 0, end)[0]) / signal(plan, end)
    widths = [math.hypot(SPREAD, plan.levels[k]) for k in (0, end)]
    return abs(found - (MEAN + (float(begin) / signal(plan, 0) - MEAN) * widths[1] / widths[0]))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("name", "order", "most"),
    [("ddim", 1, 0.011), ("euler", 1, 0.011), ("heun", 2, 8e-5), ("dpm++2m", 2, 5e-5), ("dpm++2m_karras", 2, 5e-4),
     ("pndm", 2, 6e-5)],
)  # fmt: skip
def test_converges_to_the_exact_path_at_its_order(name: SamplerName, order: int, most: float, kind: str) -> None:
    """At three quarters of the calls, where twice the calls stand at the same levels."""
    if name == "pndm" and kind == "v_prediction":
        order, most = 1, 0.011  # it mixes velocities of several levels as if they were of one, as the library does
    schedule = replace(FINE, prediction_type=kind)
    errors = [path_error(name, schedule, steps, 0.75) for steps in (40, 80, 160)]
    assert errors[-1] < most
    for coarse, fine in pairwise(errors):
        assert abs(math.log2(coarse / fine) - order) < 0.15


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_whole_path_converges(name: SamplerName) -> None:
    errors = [path_error(name, FINE, steps, 1.0) for steps in (20, 80, 320)]
    assert errors[0] > 2.5 * errors[1] > 6 * errors[2]
    assert errors[2] < 0.01


def test_only_karras_spacing_keeps_second_order_to_the_end() -> None:
    """Even spacing ends in steps that are always large in lambda, however many there are."""
    even, karras = (
        path_error(name, FINE, 160, 1.0) / path_error(name, FINE, 320, 1.0) for name in ("dpm++2m", "dpm++2m_karras")
    )
    assert even < 2.6 < 3.6 < karras


def ancestral_moments(name: SamplerName, schedule: ScheduleConfig, steps: int) -> tuple[float, float, float]:
    """Mean and spread of what comes out, and how much of the start is left in it: exact, no dice.

    The ideal denoiser makes every step linear, so the run is followed for no noise at all, for a start of 1, and for
    noise of 1 after each call, all side by side.
    """
    plan = make(name, schedule, steps)
    x, memory = torch.zeros(steps + 1, dtype=torch.float64), ()
    x[1] = signal(plan, 0)
    for i in range(steps):
        noise = torch.zeros_like(x)
        noise[i + 2 if i + 2 <= steps else 0] = 1.0 if plan.draws[i] else 0.0
        x, memory = samplers.step(plan, i, x, ideal(plan, i, x), memory, noise)
    shares = x[1:] - x[0]
    begin, fresh = float(shares[0]), shares[1:]
    spread = math.sqrt(begin**2 * (SPREAD**2 + plan.levels[0] ** 2) + float(fresh.square().sum()))
    return float(x[0]) + begin * MEAN, spread, begin


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["ddpm", "euler_a"])
def test_ancestral_samplers_draw_from_the_distribution(name: SamplerName, kind: str) -> None:
    """The mean at once, the spread with an error that halves when steps double."""
    schedule = replace(FINE, prediction_type=kind)
    found = [ancestral_moments(name, schedule, steps) for steps in (100, 200, 400, 800)]
    errors = [SPREAD - spread for _, spread, _ in found]
    for mean, _, begin in found:
        assert mean == pytest.approx(MEAN, abs=1e-9)
        assert 0 < begin < 0.013  # where the run began is nearly forgotten; the path would keep 0.10
    assert 0 < errors[-1] < 0.01
    for coarse, fine in pairwise(errors):
        assert 1.8 < coarse / fine < 2.2


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_lcm_draws_from_the_distribution_at_any_number_of_steps(steps: int, kind: str) -> None:
    """Given a denoiser that jumps to the path's end, as one is distilled to."""

    def jump(plan: Plan, i: int, x: Tensor) -> Tensor:
        y = x / signal(plan, i)
        return said(plan, i, x, MEAN + (y - MEAN) * SPREAD / math.hypot(SPREAD, plan.levels[i]))

    plan = make("lcm", replace(SD1, prediction_type=kind), steps)
    generator = torch.Generator().manual_seed(2)
    picture, noise = (torch.randn(40_000, generator=generator, dtype=torch.float64) for _ in range(2))
    drawn, _ = run(plan, samplers.start_from(plan, MEAN + SPREAD * picture, noise), jump)
    assert float(drawn.mean()) == pytest.approx(MEAN, abs=0.025)
    assert float(drawn.std()) == pytest.approx(SPREAD, rel=0.015)


@pytest.mark.parametrize("strength", [1.0, 0.6, 0.3, 0.01])
@pytest.mark.parametrize(
    ("name", "schedule"),
    [(name, SD1) for name in SAMPLERS] + [(name, EMOJI) for name in SAMPLERS if name != "pndm"],  # first order, above
)
def test_ends_at_the_picture_that_the_denoiser_sees(
    name: SamplerName, schedule: ScheduleConfig, strength: float
) -> None:
    """A denoiser that sees one and the same picture in everything leads to it from any start, in any number of steps;
    DDIM and PNDM keep the first training step's noise, the same noise that was put in."""
    generator = torch.Generator().manual_seed(3)
    picture, noise = (torch.randn(2, 4, 5, 3, generator=generator) for _ in range(2))
    for steps in (1, 2, 9) if name != "lcm" or strength > 0.2 else ():
        plan = make(name, schedule, steps, strength)
        end, _ = run(plan, samplers.start_from(plan, picture, noise), lambda plan, i, x: said(plan, i, x, picture))
        level = plan.levels[-1]
        assert level == (pytest.approx(0.029169, abs=1e-5) if name in ("ddim", "pndm") else 0.0)
        wanted = alpha_of(level) * (picture + level * noise)
        if name == "lcm":  # leaves the boundary condition's trace
            assert torch.allclose(end, wanted, atol=2e-3)
        else:
            assert torch.allclose(end, wanted, atol=2e-5)


@pytest.mark.parametrize("schedule", [SD1, EMOJI], ids=["sd1", "emoji"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_can_be_forked_at_any_call(name: SamplerName, schedule: ScheduleConfig) -> None:
    def denoise(plan: Plan, i: int, x: Tensor) -> Tensor:
        return torch.tanh(samplers.scale_input(plan, i, x).flip(-1) + plan.timesteps[i] / 1000)

    plan = make(name, schedule, 8)
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(4)) * plan.noise_scale
    whole, _ = run(plan, noise, denoise)
    kept = 0
    for call in range(len(plan.timesteps) + 1):
        x, memory = run(plan, noise, denoise, 0, call)
        kept = max(kept, len(memory))
        assert all(each.shape == x.shape for each in memory)
        x, memory = x.clone(), tuple(torch.stack(memory).unbind()) if memory else ()  # as a saved run comes back
        assert torch.equal(run(make(name, schedule, 8), x, denoise, call, None, memory)[0], whole)
    assert kept == {"heun": 2, "dpm++2m": 1, "dpm++2m_karras": 1, "pndm": 3}.get(name, 0)


@pytest.mark.parametrize(
    ("name", "needless"),
    [("heun", {2, 4, 6, 8, 10, 12, 14}), ("dpm++2m", {7}), ("dpm++2m_karras", {7}), ("pndm", set())],
)
def test_memory_matters_and_may_be_lost(name: SamplerName, needless: set[int]) -> None:
    """Without its memory a sampler goes on from any call, to a slightly other end but where memory isn't looked at."""
    plan = make(name, EMOJI, 8)
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(5)) * plan.noise_scale
    whole, _ = run(plan, noise, ideal)
    for call in range(1, len(plan.timesteps)):
        x, _ = run(plan, noise, ideal, 0, call)
        fresh, _ = run(plan, x, ideal, call)
        assert torch.equal(fresh, whole) == (call in needless)
        assert float((fresh - whole).norm() / whole.norm()) < 0.2


@pytest.mark.parametrize("name", SAMPLERS)
def test_nothing_is_changed_in_place(name: SamplerName) -> None:
    plan = make(name, SD1, 6)
    x, memory = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(6)), ()
    for i in range(len(plan.timesteps)):
        given = [x, torch.ones_like(x) * 0.1 * i, *memory, torch.ones_like(x)]
        before = [each.clone() for each in given]
        x, memory = samplers.step(plan, i, given[0], given[1], tuple(given[2:-1]), given[-1])
        assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


def test_calls_of_every_sampler() -> None:
    """Pinned: the training steps that the denoiser is told, of Stable Diffusion 1.x in four steps."""
    told = {name: make(name, SD1, 4).timesteps for name in SAMPLERS}
    assert told["ddim"] == told["ddpm"] == (751, 501, 251, 1)
    assert told["pndm"] == (751, 501, 501, 251, 1)
    assert told["euler"] == told["euler_a"] == (999, 666, 333, 0)
    assert told["heun"] == (999, 666, 666, 333, 333, 0, 0)
    assert told["dpm++2m"] == (999, 749, 500, 250)
    assert told["dpm++2m_karras"] == (999, 687, 146, 0)
    assert told["lcm"] == (999, 759, 499, 259)
    assert make("dpm++2m", EMOJI, 4).timesteps == (801, 601, 401, 201)
    assert make("ddim", replace(SD1, timestep_spacing="trailing"), 4).timesteps == (999, 749, 499, 249)
    assert make("euler", SD1, 3).timesteps == (999, 499.5, 0)
    for name in SAMPLERS:
        plan = make(name, EMOJI, 20)
        calls = {"heun": 39, "pndm": 21}.get(name, 20)
        assert (len(plan.timesteps), len(plan.levels), len(plan.draws)) == (calls, calls + 1, calls)
        stochastic = name in ("ddpm", "euler_a", "lcm")
        assert plan.draws == ((True,) * 19 + (False,) if stochastic else (False,) * calls)
        assert list(plan.levels) == sorted(plan.levels, reverse=True)


def test_levels_and_noise_scale() -> None:
    """Pinned: Stable Diffusion's schedule runs from 0.0292 to 14.61."""
    assert make("euler", SD1, 20).noise_scale == pytest.approx(14.6146, abs=1e-3)
    leading = make("euler", replace(SD1, timestep_spacing="leading"), 20)
    assert leading.timesteps[0] == 951
    assert leading.noise_scale == pytest.approx(math.hypot(1.0, leading.levels[0]), rel=1e-12)
    assert all(make(name, SD1, 20).noise_scale == 1.0 for name in SAMPLERS if name not in ("euler", "euler_a", "heun"))
    karras = make("dpm++2m_karras", SD1, 3).levels
    assert karras == pytest.approx((14.6146, 1.2741, 0.029167, 0.0), abs=2e-4)  # 1.2741 = 1.035215^7, by hand
    assert make("euler", SD1, 20, 0.3).noise_scale == make("euler", SD1, 20).noise_scale
    levels = training_levels(SD1)
    assert level_at(levels, 4.25) == pytest.approx(0.75 * levels[4] + 0.25 * levels[5], rel=1e-12)
    assert timestep_at(levels, math.sqrt(levels[7] * levels[8])) == pytest.approx(7.5, abs=1e-9)
    assert (timestep_at(levels, 1e-4), timestep_at(levels, 100.0)) == (0.0, 999.0)


def test_strength_runs_the_last_steps() -> None:
    for name in SAMPLERS:
        if name == "lcm":
            continue
        whole, part = make(name, SD1, 20), make(name, SD1, 20, 0.35)
        assert len(part.timesteps) == {"heun": 13, "pndm": 8}.get(name, 7)
        assert part.timesteps[0] == whole.timesteps[-13 if name == "heun" else -7]
        assert part.levels[-3:] == whole.levels[-3:]
        assert len(make(name, SD1, 20, 0.001).timesteps) == 1  # the library would run nothing
    assert make("lcm", SD1, 17, 0.35).timesteps == tuple(float(k) for k in range(339, 0, -20))


def test_ddim_is_euler_and_ddpm_is_euler_ancestral() -> None:
    """One path, kept at unit variance or not: where both visit the same steps, the same picture comes out."""
    schedule = replace(EMOJI, set_alpha_to_one=True)
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    pairs: tuple[tuple[SamplerName, SamplerName], ...] = (("ddim", "euler"), ("ddpm", "euler_a"))
    for one, other in pairs:
        ends = [
            run(plan, noise * plan.noise_scale, ideal)[0]
            for plan in (make(each, schedule, 10) for each in (one, other))
        ]
        assert torch.allclose(*ends, atol=1e-12)


def test_the_clean_prediction() -> None:
    picture, noise = torch.full((1, 4, 2, 2), 0.5), torch.full((1, 4, 2, 2), -2.0)
    for schedule in (SD1, EMOJI):
        for name in SAMPLERS:
            plan = make(name, schedule, 5)
            for i in range(len(plan.timesteps)):
                x = samplers.start_from(plan, picture, noise, i)
                unit = samplers.scale_input(plan, i, x)
                alpha = alpha_of(plan.levels[i])
                assert torch.allclose(unit, alpha * picture + plan.levels[i] * alpha * noise, atol=1e-5)
                assert torch.allclose(samplers.clean(plan, i, x, said(plan, i, x, picture)), picture, atol=1e-5)
            assert samplers.start_from(plan, picture, noise, len(plan.timesteps)) is picture


def test_going_on_with_another_sampler() -> None:
    """The denoiser is given the same latents, and the exact path still ends where it should."""
    begin = torch.tensor([1.3], dtype=torch.float64)
    euler = make("euler", FINE, 300)
    exact = float(run(euler, begin * euler.noise_scale, ideal)[0])
    for name in DETERMINISTIC:
        other = make(name, FINE, 200)
        x, _ = run(euler, begin * euler.noise_scale, ideal, 0, 150)
        moved, call = samplers.switch(euler, 150, x, other)
        given = samplers.scale_input(euler, 150, x)
        assert torch.allclose(samplers.scale_input(other, call, moved), given, rtol=1e-12)
        assert abs(math.log(other.levels[call] / euler.levels[150])) < 0.02
        assert float(run(other, moved, ideal, call)[0]) == pytest.approx(exact, abs=0.03)
    heun, pndm = make("heun", SD1, 6), make("pndm", SD1, 6)
    assert [samplers.switch(heun, i, begin, heun)[1] for i in range(11)] == [0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10]
    assert [samplers.switch(pndm, i, begin, pndm)[1] for i in range(7)] == [0, 2, 2, 3, 4, 5, 6]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no sampler is called 'plms'"):
        make("plms", SD1, 10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="takes 1 to 998 steps here, not 0"):
        make("ddim", SD1, 0)
    with pytest.raises(ValueError, match="takes 1 to 998 steps here, not 999"):
        make("dpm++2m", SD1, 999)
    with pytest.raises(ValueError, match="lcm takes 1 to 10 steps here, not 11"):
        make("lcm", SD1, 11, 0.2)
    with pytest.raises(ValueError, match="strength is 0"):
        make("ddim", SD1, 10, 0.0)
    with pytest.raises(ValueError, match=r"strength is 1\.1"):
        make("ddim", SD1, 10, 1.1)
    with pytest.raises(ValueError, match="not 'sample'"):
        make("ddim", replace(SD1, prediction_type="sample"), 10)
    with pytest.raises(ValueError, match="timestep_spacing is 'even'"):
        make("ddim", replace(SD1, timestep_spacing="even"), 10)
    plan = make("ddpm", SD1, 2)
    with pytest.raises(ValueError, match="needs fresh noise after call 0"):
        samplers.step(plan, 0, torch.zeros(1), torch.zeros(1))
    for name in SAMPLERS:
        most = samplers.max_steps(name, SD1)
        plan = make(name, SD1, most)
        assert most == (50 if name == "lcm" else 998)
        assert all(0 <= time <= 999 for time in plan.timesteps)
