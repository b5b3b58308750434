"""The calls of the denoiser: guidance, seeds, stopping, what is kept, forks. Over a denoiser that is known exactly."""

import gc
import weakref
from dataclasses import replace
from threading import Thread

import numpy as np
import pytest
import torch

from pipelines.common import backends
from pipelines.common.errors import UserError
from pipelines.diffusion import samplers
from pipelines.diffusion.config import PRESETS
from pipelines.diffusion.contract import SAMPLERS
from pipelines.diffusion.generate import Clock, Inpainting, Job, Outputs, first_noise, generate, outputs, step_noise
from tests.stubs import StubDiffusion

SHAPE = (1, 4, 8, 8)
SCHEDULE = PRESETS["tiny"].schedule


def job(backend, name="ddim", steps=5, prompt="red", negative="", guidance=4.0, seed=0, **more):
    plan = samplers.make(name, backend.config.schedule, steps)
    noise = first_noise(seed, SHAPE)
    return Job(
        plan, backend.encode_text([negative, prompt]), guidance, noise, noise * plan.noise_scale, seed, **more
    )  # fmt: skip


def draw(backend, job, clock=None):
    return list(generate(backend, job, clock))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_every_sampler_ends_at_what_the_denoiser_means(name, kind):
    backend = StubDiffusion(schedule=replace(SCHEDULE, prediction_type=kind))
    work, clock = job(backend, name, 10, guidance=1.0), Clock()
    moments = draw(backend, work, clock)
    meant = torch.zeros(SHAPE)
    meant[:, :3] = torch.tensor(StubDiffusion.colour("red"))[None, :, None, None]
    assert clock.calls == len(moments) == len(work.plan.timesteps) == len(backend.asked)
    assert [asked[1] for asked in backend.asked] == list(work.plan.timesteps)
    # samplers that end at the first training step's noise, not at a clean picture, leave some; Euler asks between steps
    assert (moments[-1].clean - meant).abs().max() < (0.1 if name in ("euler", "euler_a", "heun") else 2e-3)
    assert (moments[-1].after - meant).abs().max() < 0.15


def test_guidance_is_one_batch_of_two_and_goes_past_the_prompt():
    backend = StubDiffusion()
    moment = draw(backend, job(backend, steps=1, prompt="b", negative="a", guidance=3.0))[0]
    a, b = (torch.tensor(StubDiffusion.colour(each)) for each in "ab")
    assert torch.allclose(moment.clean[0, :3].mean(dim=(1, 2)), a + 3 * (b - a), atol=1e-3)
    assert [asked[0] for asked in backend.asked] == [2]


@pytest.mark.parametrize(("guidance", "batch"), [(1.0, 1), (0.0, 2), (-5.0, 2), (100.0, 2), (1.001, 2)])
def test_at_guidance_1_the_negative_prompt_is_not_asked(guidance, batch):
    backend = StubDiffusion()
    draw(backend, job(backend, steps=2, guidance=guidance))
    assert [asked[0] for asked in backend.asked] == [batch] * 2 and {asked[2] for asked in backend.asked} == {None}


def test_a_denoiser_that_follows_guidance_is_told_the_scale():
    backend = StubDiffusion(unet=replace(PRESETS["tiny"].unet, time_cond_proj_dim=8))
    draw(backend, job(backend, "lcm", 4, guidance=7.5))
    assert [asked[::2] for asked in backend.asked] == [(1, 7.5)] * 4


def test_guided_is_the_formula():
    given, without = torch.tensor([1.0]), torch.tensor([3.0])
    assert Outputs(given, without).guided(4.0).item() == 3 + 4 * (1 - 3)
    assert Outputs(given, without).guided(0.0).item() == 3 and Outputs(given, None).guided(9.0).item() == 1


def test_seeds_are_documented_numbers():
    assert torch.equal(first_noise(7, SHAPE), torch.randn(SHAPE, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(step_noise(7, 3, SHAPE), step_noise(7, 3, SHAPE))
    streams = [first_noise(7, SHAPE), *(step_noise(seed, call, SHAPE) for seed in (7, 8) for call in (0, 1, 2))]
    for k, one in enumerate(streams):
        assert all(not torch.equal(one, other) for other in streams[k + 1 :])
        assert abs(float(one.mean())) < 0.25 and 0.8 < float(one.std()) < 1.2
    # pinned: a seed means one picture for ever
    assert step_noise(0, 0, (2,)).tolist() == pytest.approx(PINNED, abs=1e-6)


PINNED = [-0.2036077, -0.8234943]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_goes_on_from_any_call_to_the_same_bits(name):
    class Drifting(StubDiffusion):
        """Means something else at each call, or what a sampler remembers would be what it sees."""

        def denoise(self, latents, *given, **options):
            return super().denoise(latents, *given, **options) + 0.1 * latents.sin()

    backend = Drifting()
    work = job(backend, name, 5, seed=3)
    moments = draw(backend, work)
    for at in range(1, len(moments)):
        fork = replace(work, latents=moments[at].before, memory=moments[at].memory, first=at)
        assert torch.equal(draw(backend, fork)[-1].after, moments[-1].after)
    remembered = [at for at, moment in enumerate(moments) if moment.memory]
    assert bool(remembered) == (name in ("heun", "pndm", "dpm++2m", "dpm++2m_karras"))
    for at in remembered[:1]:  # the planted fault: a fork that forgot is another picture
        forgot = replace(work, latents=moments[at].before, memory=(), first=at)
        assert not torch.equal(draw(backend, forgot)[0].after, moments[at].after)


def test_closing_stops_before_the_next_call_and_lets_go():
    backend = StubDiffusion()
    drawing = generate(backend, job(backend, steps=5))
    moment = next(drawing)
    refs = [weakref.ref(moment.after), weakref.ref(moment.clean)]
    next(drawing)
    assert len(backend.asked) == 2
    drawing.close()
    del moment
    gc.collect()
    assert len(backend.asked) == 2 and [ref() for ref in refs] == [None, None]


def test_each_call_waits_for_its_turn():
    backend = StubDiffusion()
    drawing = generate(backend, job(backend, steps=2))
    done = []
    with backends.step("cpu"):
        thread = Thread(target=lambda: done.append(next(drawing)))
        thread.start()
        thread.join(0.2)
        assert not done and not backend.asked
    thread.join(5)
    assert len(done) == len(backend.asked) == 1


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "euler_a", "heun", "pndm", "lcm"])
def test_what_is_kept_stands_at_every_noise_level(name):
    backend = StubDiffusion()
    clean = torch.full(SHAPE, 0.5)
    anew = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    anew[..., :4] = True
    work = job(backend, name, 5, guidance=1.0, kept=Inpainting(clean, anew))
    moments = draw(backend, work)
    for moment in moments:
        level = samplers.start_from(work.plan, clean, work.noise, moment.call + 1)
        assert torch.equal(moment.after[..., 4:], level[..., 4:])
        assert not torch.equal(moment.after[..., :4], level[..., :4])
    assert torch.equal(moments[-1].after[..., 4:], clean[..., 4:])


def test_an_all_white_mask_is_image_to_image():
    backend = StubDiffusion()
    white = Inpainting(torch.ones(SHAPE), torch.ones(1, 1, 8, 8, dtype=torch.bool))
    plain, masked = (draw(backend, job(backend, kept=kept))[-1].after for kept in (None, white))
    assert torch.equal(plain, masked)


def test_numbers_that_run_away_are_a_sentence():
    class Broken(StubDiffusion):
        def denoise(self, *given, **options):
            return super().denoise(*given, **options) / 0.0

    with pytest.raises(UserError, match="ran out of range"):
        draw(Broken(), job(StubDiffusion()))


def test_outputs_of_both_are_asked_for_an_x_ray_at_any_guidance():
    backend = StubDiffusion()
    work = job(backend, guidance=1.0)
    said = outputs(backend, work, 0, work.latents, both=True)
    assert said.without is not None and said.given.shape == said.without.shape == SHAPE
    assert np.isfinite(said.given.numpy()).all()
