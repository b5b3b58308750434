"""What happens inside a run: what guidance adds at a call, where each token looks, and what a word was good for.

Letters: L latent channels, h and w the latent's sides, T text tokens. torch only when asked.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.common import backends
from pipelines.common.errors import UserError

from . import pipeline
from .canvas import apart
from .checks import GUIDANCE, checked, whole, within
from .contract import Attention, Deletion, DiffusionEvent, DiffusionRequest, XRay
from .travel import Node

if TYPE_CHECKING:
    from torch import Tensor

    from .generate import Job

SCALES = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
MOST_SCALES = 12
MOST_WORDS = 12
CLOSED = "Only our own networks can be looked into; choose local."


class FollowedInside(UserError):
    """The weights follow the guidance inside (LCM), where nothing can be taken apart."""


# --- at one call -----------------------------------------------------------------------------------------------------


def moment(node: Node, call: int) -> tuple[np.ndarray, np.ndarray]:
    """The latents before a call of a run, and the end picture that it predicted: (height, width, 3) uint8 each, perhaps
    smaller. Asks no denoiser. UserError: there is no such call, or the weights are not here."""
    import torch

    from . import samplers

    at = _place(node, call)
    entry = pipeline.entry(node.request.weights)
    backend = pipeline.load(entry, node.request.backend)
    plan = pipeline.plan_of(node.request, backend.config)
    x, clean = (torch.from_numpy(each[at].copy())[None] for each in (node.history.latents, node.history.clean))
    return _shown(backend, samplers.scale_input(plan, call, x)), _shown(backend, clean)


def check_scales(scales: Sequence[float]) -> None:
    """UserError unless these are guidance scales that `xray` shows."""
    if not 1 <= len(scales) <= MOST_SCALES or not all(within(each, -GUIDANCE, GUIDANCE) for each in scales):
        raise UserError(f"Choose 1 to {MOST_SCALES} guidance scales between {-GUIDANCE:g} and {GUIDANCE:g}.")


def xray(node: Node, call: int, scales: Sequence[float] = SCALES) -> XRay:
    """What guidance does at a call of a run, from the latents that stood there.

    UserError: there is no such call, or a scale is out of range; `FollowedInside`.
    """
    from . import samplers
    from .generate import follows_inside, outputs

    check_scales(scales)
    backend, job, x = _at(node, call)
    if follows_inside(backend):
        raise FollowedInside("These weights follow the guidance inside, so it cannot be taken apart; choose others.")
    with pipeline.enough_memory():
        said = outputs(backend, job, call, x, both=True)
        assert said.without is not None
        given, without = (samplers.clean(job.plan, call, x, each) for each in (said.given, said.without))
        ends = [(float(s), samplers.clean(job.plan, call, x, said.guided(float(s)))) for s in scales]
        difference = (given - without)[0].numpy()
        return XRay(
            job.plan.timesteps[call],
            _shown(backend, samplers.scale_input(job.plan, call, x)),
            _shown(backend, given),
            _shown(backend, without),
            difference,
            np.sqrt(np.square(difference).sum(axis=0)),
            tuple((scale, _shown(backend, end)) for scale, end in ends),
        )


def attention(node: Node, call: int) -> Attention:
    """Where the prompt's tokens are looked at from, at a call of a run.

    UserError: there is no such call, or the run was the library's, whose networks cannot be looked into.
    """
    from .generate import outputs
    from .unet import Record

    if node.request.backend != "local":
        raise UserError(CLOSED)
    backend, job, x = _at(node, call)
    record = Record()
    with pipeline.enough_memory():  # the maps take more of it than the drawing, which keeps none
        outputs(backend, job, call, x, both=False, record=record)
    tokens = backend.tokens(node.request.prompt)[0]
    layers = tuple(_grouped(each[0].cpu().numpy(), tokens.used) for each in record.cross_attention)
    labels = ("start", *tokens.pieces[: tokens.used], "end", "padding")
    kinds = ("start", *["word"] * tokens.used, "end", "padding")
    full = layers[0].shape[0] == len(labels)  # else the prompt fills the encoder, and there is no padding
    count = len(labels) if full else len(labels) - 1
    return Attention(labels[:count], kinds[:count], layers, _mean(layers, tuple(x.shape[2:])))


def _at(node: Node, call: int) -> tuple[Any, Job, Tensor]:
    """The backend, the job and the latents (1, L, h, w) of a run at a call."""
    import torch

    at = _place(node, call)
    ready = pipeline.prepare(checked(replace(node.request, history=False)))
    return ready.backend, ready.job, torch.from_numpy(node.history.latents[at].copy())[None]


def _place(node: Node, call: int) -> int:
    """Where a call stands in a run's history. UserError: there is no such call."""
    if not whole(call, 0) or call not in node.calls:
        raise UserError(f"The run has calls {node.calls[0]} to {node.calls[-1]}; choose one of these.")
    return call - node.first


def _shown(backend: Any, latents: Tensor) -> np.ndarray:
    with backends.step(backend.device):
        return backend.preview(latents)


def _grouped(shares: np.ndarray, used: int) -> np.ndarray:
    """(rows, columns, T) -> (labels, rows, columns): padding is one sum behind the end mark, none if there is none."""
    marked, padding = shares[..., : used + 2], shares[..., used + 2 :]
    if padding.shape[-1]:
        marked = np.concatenate([marked, padding.sum(axis=-1, keepdims=True)], axis=-1)
    return np.ascontiguousarray(marked.transpose(2, 0, 1))


def _mean(layers: Sequence[np.ndarray], size: tuple[int, ...]) -> np.ndarray:
    """(labels, h, w): each layer by its nearest cells, so that the shares of a cell still sum to 1."""
    total = np.zeros((len(layers[0]), *size), np.float32)
    for layer in layers:
        rows = (np.arange(size[0]) * layer.shape[1]) // size[0]
        columns = (np.arange(size[1]) * layer.shape[2]) // size[1]
        total += layer[:, rows][:, :, columns]
    return total / len(layers)


# --- a word less -----------------------------------------------------------------------------------------------------


def words(prompt: str) -> tuple[str, ...]:
    """What can be deleted: runs without blanks."""
    return tuple(re.findall(r"\S+", prompt))


def without(prompt: str, index: int) -> str:
    """A prompt with one word cut out, and the blanks before it. UserError: it has no such word."""
    found = list(re.finditer(r"\s*\S+", prompt.rstrip()))  # blanks at the end would be tried from each of them on
    if not whole(index, 0, len(found) - 1):
        raise UserError(f"The prompt has {len(found)} words; choose one of them.")
    return (prompt[: found[index].start()] + prompt[found[index].end() :]).lstrip()


def deletions(
    request: DiffusionRequest, chosen: Sequence[int] | None = None
) -> Generator[DiffusionEvent | Deletion, None, None]:
    """The whole prompt's picture, then one without each word from the same noise, then, as a control, the whole prompt
    from other noise: what any change at all would do. Events tell the progress of each; those that are no Deletion and
    have a result are the whole prompt's.

    chosen: indices of the words, None for all, `MOST_WORDS` at most. Closing the generator stops the work. UserError:
    as `pipeline.steps`, or there is no such word.
    """
    request = checked(request)
    found = words(request.prompt)
    picked = list(range(min(len(found), MOST_WORDS))) if chosen is None else list(chosen)
    if not picked or len(picked) > MOST_WORDS:
        raise UserError(f"Choose 1 to {MOST_WORDS} words of the prompt.")
    shorter = [without(request.prompt, index) for index in picked]
    return _deletions(request, [(i, found[i], prompt) for i, prompt in zip(picked, shorter, strict=True)])


def _deletions(
    request: DiffusionRequest, runs: list[tuple[int, str, str]]
) -> Generator[DiffusionEvent | Deletion, None, None]:
    plain = yield from _run(request)
    for index, word, prompt in runs:
        result = yield from _run(replace(request, prompt=prompt))
        yield Deletion(index, word, result, *apart(plain.image, result.image))
    result = yield from _run(replace(request, seed=request.seed ^ 1))
    yield Deletion(None, "", result, *apart(plain.image, result.image))


def _run(request: DiffusionRequest) -> Generator[DiffusionEvent, None, Any]:
    with closing(pipeline.steps(request)) as drawing:
        for event in drawing:
            yield event
    return event.result
