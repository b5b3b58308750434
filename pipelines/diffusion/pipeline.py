"""Picks the backend and draws. What the tab, the bench, the tests and other programs call."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.common import backends, catalogue
from pipelines.common.errors import UserError

from . import canvas
from .checks import check_history, check_steps, checked, fitted
from .config import DiffusionConfig
from .contract import Backend, DiffusionEvent, DiffusionRequest, DiffusionResult, History, PromptTokens

if TYPE_CHECKING:
    from torch import Tensor

    from .generate import Clock, Job, Moment
    from .samplers import Plan


@dataclass(frozen=True)
class Prepared:
    """A request that is ready to be drawn. request: with everything filled in. tokens: of the prompt and the negative
    prompt. seconds: of "text", which includes a given picture's."""

    request: DiffusionRequest
    entry: catalogue.Entry
    backend: Any
    job: Job
    tokens: tuple[PromptTokens, PromptTokens]
    seconds: dict[str, float]


def steps(request: DiffusionRequest) -> Generator[DiffusionEvent, None, None]:
    """Draw, call by call of the denoiser; the first event has no call yet, the last one has the result and the picture
    as its preview. Closing the generator stops the work before the next call and lets go of all latents.

    UserError: a value of the request is out of range (at once), or the weights cannot draw it (with the first event).
    """
    return _steps(checked(request))


def run(request: DiffusionRequest) -> DiffusionResult:
    """Draw to the end, without previews. UserError: as `steps`."""
    for event in _steps(replace(checked(request), previews=False)):
        if event.result is not None:
            return event.result
    raise AssertionError("the last event has the result")


def entry(weights: str = "auto") -> catalogue.Entry:
    """The checkpoint that a request means. UserError: it is unknown or not on this machine."""
    if not isinstance(weights, str):
        raise UserError("The weights must be named; choose auto or one of the list.")
    return catalogue.resolve("diffusion", weights, "model")


def load(entry: catalogue.Entry, backend: Backend) -> Any:
    """The shared backend object over one checkpoint, loaded on first use."""
    assert __package__ is not None
    return backends.implementation(__package__, entry, backend)


def plan_of(request: DiffusionRequest, config: DiffusionConfig) -> Plan:
    """The calls that a checked request makes. UserError: more steps than there are, or a fork behind the last call."""
    from . import samplers

    strength = 1.0 if request.image is None else request.strength
    check_steps(request, samplers.max_steps(request.sampler, config.schedule, strength))
    plan = samplers.make(request.sampler, config.schedule, request.num_steps, strength)
    check_steps(request, request.num_steps, len(plan.timesteps))
    return plan


def prepare(request: DiffusionRequest) -> Prepared:
    """All that comes before the first call. request: a checked one. UserError: the weights cannot draw it."""
    start = time.perf_counter()
    chosen = entry(request.weights)
    backend = load(chosen, request.backend)
    loaded = time.perf_counter()
    request = _on_canvas(replace(fitted(request, backend.config), weights=chosen.id))
    plan = plan_of(request, backend.config)
    if request.history:
        check_history(request, backend.config, len(plan.timesteps) - (request.start.call if request.start else 0))
    tokens = backend.tokens(request.prompt)[0], backend.tokens(request.negative_prompt)[0]
    with backends.step(backend.device):
        text = backend.encode_text([request.negative_prompt, request.prompt])
    job = _job(request, backend, plan, text)
    seconds = {"load": loaded - start, "text": time.perf_counter() - loaded}
    return Prepared(request, chosen, backend, job, tokens, seconds)


@contextmanager
def enough_memory() -> Iterator[None]:
    """Turns what torch raises where memory runs out into a UserError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = str(error).lower()
        if isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said:
            raise UserError("There is not enough memory for a picture of this size; choose a smaller one.") from error
        raise


# --- before the first call -------------------------------------------------------------------------------------------


def _job(request: DiffusionRequest, backend: Any, plan: Plan, text: Tensor) -> Job:
    import torch

    from .generate import Inpainting, Job, first_noise

    assert request.width is not None and request.height is not None
    factor, channels = backend.config.vae.factor, backend.config.vae.latent_channels
    noise = first_noise(request.seed, (1, channels, request.height // factor, request.width // factor))
    clean = kept = None
    if request.image is not None and (request.start is None or request.mask is not None):
        with backends.step(backend.device):
            clean = backend.encode(request.image)
        if request.mask is not None:
            kept = Inpainting(clean, torch.from_numpy(canvas.cells(request.mask, factor))[None, None])
    latents, first, memory = _begin(request, plan, noise, clean)
    return Job(
        plan, text, request.guidance_scale, noise, latents, request.seed, first, memory, kept, request.precision
    )  # fmt: skip


def _begin(
    request: DiffusionRequest, plan: Plan, noise: Tensor, clean: Tensor | None
) -> tuple[Tensor, int, tuple[Tensor, ...]]:
    """The first latents, the call that they stand before, and what the sampler remembers."""
    import torch

    from .samplers import start_from

    if request.start is not None:
        memory = torch.from_numpy(request.start.memory.copy())[:, None]
        return torch.from_numpy(request.start.latents.copy())[None], request.start.call, tuple(memory)
    return (noise * plan.noise_scale if clean is None else start_from(plan, clean, noise)), 0, ()


def _on_canvas(request: DiffusionRequest) -> DiffusionRequest:
    """With picture and mask of the size that is drawn. UserError: nothing of the mask is left there."""
    width, height = request.width, request.height
    assert width is not None and height is not None
    image = None if request.image is None else canvas.cover(request.image, width, height)
    mask = None if request.mask is None else canvas.cover_mask(request.mask, width, height)
    if mask is not None and not mask.any():
        raise UserError("What is painted over lies outside the picture's new size; choose a size of the same shape.")
    return replace(request, image=image, mask=mask)


# --- the calls, and after them ---------------------------------------------------------------------------------------


@dataclass
class _Kept:
    """The moments of a run, as arrays; nothing where no history is asked for."""

    wanted: bool
    latents: list[np.ndarray] = field(default_factory=list)
    clean: list[np.ndarray] = field(default_factory=list)
    memory: list[np.ndarray] = field(default_factory=list)

    def add(self, moment: Moment) -> None:
        if not self.wanted:
            return
        self.latents.append(moment.before[0].numpy())
        self.clean.append(moment.clean[0].numpy())
        empty = np.zeros((0, *self.latents[-1].shape), np.float32)
        self.memory.append(np.stack([each[0].numpy() for each in moment.memory]) if moment.memory else empty)

    def history(self, job: Job, last: Tensor) -> History | None:
        if not self.wanted:
            return None
        times = np.array(job.plan.timesteps[job.first :], np.float64)
        return History(np.stack([*self.latents, last[0].numpy()]), np.stack(self.clean), tuple(self.memory), times)


def _steps(request: DiffusionRequest) -> Generator[DiffusionEvent, None, None]:
    from .generate import Clock, generate

    with enough_memory():
        ready = prepare(request)
        request, backend, job = ready.request, ready.backend, ready.job
        clock, kept, start = Clock(), _Kept(request.history), time.perf_counter()
        count = len(job.plan.timesteps) - job.first
        yield DiffusionEvent(0, count)
        with closing(generate(backend, job, clock)) as drawing:
            for done, moment in enumerate(drawing, 1):
                kept.add(moment)
                if done == count:  # the picture itself follows
                    break
                preview = None
                if request.previews:
                    with backends.step(backend.device):
                        preview = backend.preview(moment.clean)
                    ready.seconds.setdefault("first_preview", time.perf_counter() - start + ready.seconds["text"])
                yield DiffusionEvent(done, count, preview)
        result = _result(ready, clock, kept, moment.after)
        yield DiffusionEvent(count, count, result.image, result)


def _result(ready: Prepared, clock: Clock, kept: _Kept, latents: Tensor) -> DiffusionResult:
    from .record import of_run

    start = time.perf_counter()
    with backends.step(ready.backend.device):
        image = ready.backend.decode(latents)
    if ready.request.mask is not None:  # what is kept is kept to the last bit, and not only as the autoencoder has it
        image = np.where(ready.request.mask[..., None], image, ready.request.image)
    seconds = {**ready.seconds, "denoise": clock.denoise, "decode": time.perf_counter() - start}
    seconds.setdefault("first_preview", sum(seconds.values()) - seconds["load"])  # the picture itself came first
    return DiffusionResult(
        image, ready.request, ready.tokens, seconds, clock.calls, of_run(ready.request, ready.entry, ready.backend),
        kept.history(ready.job, latents),
    )  # fmt: skip
