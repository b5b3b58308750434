"""Is this a request that can be served? No torch, no file is opened.

`checked` is what holds whatever the weights are, `fitted` what hangs on them.
"""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import numpy as np

from pipelines.common import backends
from pipelines.common.errors import UserError
from pipelines.common.images import check_array
from pipelines.common.limits import limits

from .config import DiffusionConfig
from .contract import SAMPLERS, DiffusionRequest, Start

GUIDANCE = 100.0  # either way: below 0 the picture is pushed away from the prompt
SEEDS = 2**63
# How many tensors each sampler may remember between two calls; the others remember nothing.
MEMORY = {"heun": (0, 2), "pndm": (0, 1, 2, 3), "dpm++2m": (0, 1), "dpm++2m_karras": (0, 1)}


def checked(request: DiffusionRequest) -> DiffusionRequest:
    """The request in its own types. UserError: what holds whatever the weights are."""
    if not isinstance(request, DiffusionRequest):
        raise UserError("What is to be drawn must be a DiffusionRequest.")
    check_text(request.prompt, "prompt")
    check_text(request.negative_prompt, "negative prompt")
    if not isinstance(request.weights, str):
        raise UserError("The weights must be named; choose auto or one of the list.")
    if not isinstance(request.sampler, str) or request.sampler not in SAMPLERS:
        said = str(request.sampler)[:60]
        raise UserError(f"There is no sampler called “{said}”; choose one of: {', '.join(SAMPLERS)}.")
    _check_how(request)
    _check_numbers(request)
    return replace(
        request,
        num_steps=int(request.num_steps),
        guidance_scale=float(request.guidance_scale),
        seed=int(request.seed),
        width=None if request.width is None else int(request.width),
        height=None if request.height is None else int(request.height),
        strength=float(request.strength),
        image=None if request.image is None else check_array(request.image),
        mask=_checked_mask(request),
        start=_checked_start(request),
    )


def check_text(text: Any, what: str) -> None:
    """UserError unless this is a text of whole characters that is not too long. what: how the sentence calls it."""
    if not isinstance(text, str):
        raise UserError(f"The {what} must be text.")
    most = limits().prompt_characters
    if len(text) > most:
        raise UserError(f"The {what} has {len(text):,} characters; shorten it to {most:,}.")
    half = next((at for at, char in enumerate(text, 1) if "\ud800" <= char <= "\udfff"), 0)
    if half:
        raise UserError(f"Character {half:,} of the {what} is only half of one (a lone surrogate); write it again.")


def whole(value: Any, least: int, most: float = float("inf")) -> bool:
    """Whether this is a whole number in the range."""
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most


def within(value: Any, least: float, most: float) -> bool:
    """Whether this is a number in the range; nan is none."""
    return isinstance(value, Real) and not isinstance(value, bool) and least <= float(value) <= most


def _check_how(request: DiffusionRequest) -> None:
    backends.check(request.backend)
    if request.precision not in ("float32", "reduced"):
        raise UserError("The precision must be float32 or reduced.")
    if request.backend == "reference" and request.precision != "float32":
        raise UserError("The reference runs in float32; choose local for reduced precision.")
    if not isinstance(request.previews, bool) or not isinstance(request.history, bool):
        raise UserError("Whether there are previews and a history must be true or false.")


def _check_numbers(request: DiffusionRequest) -> None:
    if not whole(request.num_steps, 1, limits().steps):
        raise UserError(f"The number of steps must be a whole number between 1 and {limits().steps:,}.")
    if not within(request.guidance_scale, -GUIDANCE, GUIDANCE):
        raise UserError(f"The guidance must lie between {-GUIDANCE:g} and {GUIDANCE:g}; 1 follows the prompt alone.")
    if not whole(request.seed, 0, SEEDS - 1):
        raise UserError("The seed must be a whole number between 0 and 2⁶³ − 1.")
    if not within(request.strength, 0, 1) or request.strength == 0:
        raise UserError("The strength must lie above 0 and be at most 1; 1 draws the picture wholly anew.")
    for side, name in ((request.width, "width"), (request.height, "height")):
        if side is not None and not whole(side, 1, limits().drawing_side):
            raise UserError(f"The {name} must be a whole number of pixels, at most {limits().drawing_side:,}.")


def _checked_mask(request: DiffusionRequest) -> np.ndarray | None:
    mask, image = request.mask, request.image
    if mask is None:
        return None
    if image is None:
        raise UserError("A mask says which part of a picture is drawn anew; give the picture, too.")
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.ndim != 2:
        raise UserError("The mask must be an array of shape (height, width) and type bool, true where is drawn anew.")
    if mask.shape != image.shape[:2]:
        sizes = " and ".join(f"{shape[1]}×{shape[0]}" for shape in (mask.shape, image.shape))
        raise UserError(f"The mask and the picture must be of one size, and are {sizes} pixels.")
    if not mask.any():
        raise UserError("The mask is empty: paint over what is to be drawn anew, or take the mask away.")
    return np.ascontiguousarray(mask)


def _checked_start(request: DiffusionRequest) -> Start | None:
    start = request.start
    if start is None:
        return None
    if not isinstance(start, Start) or not whole(start.call, 0):
        raise UserError("Where a run is forked must be a Start with a whole number as its call.")
    for array, sides in ((start.latents, 3), (start.memory, 4)):
        if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != sides:
            raise UserError("The latents of a fork must be arrays of float32, with the memory's one axis more.")
        if not np.isfinite(array).all():
            raise UserError("The latents of a fork hold what is no number; fork from an earlier step.")
    if len(start.memory) not in MEMORY.get(request.sampler, (0,)):
        raise UserError(f"The memory of the fork is not one of the sampler {request.sampler}; leave it empty.")
    return replace(start, call=int(start.call))


# --- with the weights ------------------------------------------------------------------------------------------------


def fitted(request: DiffusionRequest, config: DiffusionConfig) -> DiffusionRequest:
    """A checked request with its size filled in. UserError: these weights cannot draw that."""
    factor, own = config.vae.factor, config.unet.sample_size * config.vae.factor
    width, height = (
        min(own, limits().drawing_side) if side is None else side for side in (request.width, request.height)
    )
    for side, name in ((width, "width"), (height, "height")):
        if side % factor:
            near = [each for each in (side // factor * factor, -(-side // factor) * factor) if each > 0]
            near = [each for each in near if each <= limits().drawing_side]
            raise UserError(f"The {name} must be a multiple of {factor}; take {' or '.join(map(str, near))}.")
    request = replace(request, width=width, height=height)
    if request.start is not None:
        shape = (config.vae.latent_channels, height // factor, width // factor)
        if request.start.latents.shape != shape or request.start.memory.shape[1:] != shape:
            raise UserError("The latents of the fork are of another size than the picture; fork with the run's own.")
    return request


def check_steps(request: DiffusionRequest, most: int, calls: int | None = None) -> None:
    """most: steps of the sampler with these weights; calls: of the plan, where that is made already.

    UserError: more steps, or a fork behind the last call.
    """
    if request.num_steps > most:
        at = f" at strength {request.strength:g}" if request.image is not None else ""
        if most < 1:
            raise UserError(f"The sampler {request.sampler} has no step{at}; choose a greater strength.")
        raise UserError(f"The sampler {request.sampler} takes at most {most:,} steps{at}; choose fewer.")
    if calls is not None and request.start is not None and request.start.call >= calls:
        raise UserError(f"The run has {calls:,} calls, counted from 0; fork at an earlier one.")


def check_history(request: DiffusionRequest, config: DiffusionConfig, calls: int) -> None:
    """UserError if what is kept of the run would take too much memory."""
    assert request.width is not None and request.height is not None
    factor, remembered = config.vae.factor, max(MEMORY.get(request.sampler, (0,)))
    cells = config.vae.latent_channels * (request.width // factor) * (request.height // factor)
    megabytes = 4 * cells * (calls * (2 + remembered) + 1) / 1e6
    if megabytes > limits().history_mb:
        raise UserError(
            f"The history of this run would take {megabytes:,.0f} MB, and there is room for {limits().history_mb}: "
            "take fewer steps or a smaller picture."
        )
