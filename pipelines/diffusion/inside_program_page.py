"""What other programs look inside with: fork, x-ray and race without the page. JSON types and picture files only."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from gradio.data_classes import FileData

from pipelines.common.errors import UserError
from pipelines.ui import blocks

from . import canvas, insight, race, travel
from .checks import checked, whole
from .contract import Backend, DiffusionRequest, DiffusionResult, SamplerName
from .pipeline import steps
from .record import write_png


def fork(
    prompt: str, call: int, changes: dict[str, Any] | None = None, num_steps: int = 20, guidance_scale: float = 4.0,
    sampler: str = "dpm++2m", seed: int = 0, negative_prompt: str = "", weights: str = "auto", backend: str = "local",
) -> Iterator[tuple[dict[str, Any] | None, dict[str, Any] | None, dict[str, Any]]]:  # fmt: skip
    """Draw a picture, go back to before a call of it, change some fields of the request, and go on from there.

    Gives {"part", "call", "of"} after each call of the network; at the end both pictures as PNG files with their runs
    inside, and {"apart"}: their mean difference in levels of 255."""
    _check_call(call)
    if changes is not None and not isinstance(changes, dict):
        raise UserError('The changes of a fork must be an object, such as {"prompt": "a green apple"}.')
    asked = _request(prompt, num_steps, guidance_scale, sampler, seed, negative_prompt, weights, backend)
    travel.check_changes(changes or {})
    checked(replace(asked, **(changes or {})))  # what is wrong with the fork is said before the root is drawn
    results = []
    for part in ("root", "fork"):
        result = yield from _drawn(asked, part, (None, None))
        results.append(result)
        if part == "root":
            asked = travel.fork(_node(result), int(call), changes)
    root, forked = results
    apart, _ = canvas.apart(root.image, forked.image)
    yield _file(root, "root.png"), _file(forked, "fork.png"), {"apart": apart, "calls": forked.calls}


def xray(
    prompt: str, call: int, num_steps: int = 20, guidance_scale: float = 4.0, sampler: str = "dpm++2m", seed: int = 0,
    negative_prompt: str = "", weights: str = "auto", backend: str = "local",
) -> Iterator[tuple[dict[str, Any] | None, dict[str, Any]]]:  # fmt: skip
    """Draw a picture and look into one call of it.

    Gives nothing and {"part", "call", "of"} after each call of the network; at the end the picture as a PNG file with
    its run inside, and what the call said: where prompt and negative prompt differ, a number for each cell of the
    latents, and each token's share and map of the cross-attention; start mark, end mark and padding are among them."""
    _check_call(call)
    asked = _request(prompt, num_steps, guidance_scale, sampler, seed, negative_prompt, weights, backend)
    if backend == "reference":
        raise UserError(insight.CLOSED)
    result = yield from _drawn(asked, "root", (None,))
    node = _node(result)
    seen, found = insight.xray(node, int(call), (guidance_scale,)), insight.attention(node, int(call))
    tokens = [
        {"token": name, "kind": kind, "share": float(each.mean()), "map": each.tolist()}
        for name, kind, each in zip(found.labels, found.kinds, found.mean, strict=True)
    ]
    said = {"timestep": seen.timestep, "where": seen.where.tolist(), "attention": tokens}
    yield _file(result, "picture.png"), said


def compete(
    prompt: str, samplers: list[str] | None = None, calls: int = 10, guidance_scale: float = 4.0, seed: int = 0,
    reference_steps: int = race.REFERENCE_STEPS, negative_prompt: str = "", weights: str = "auto",
    backend: str = "local",
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Race samplers from the same noise: after each call of all, the calls done of the long run and of each sampler,
    and each sampler's distance from the long run's end after each of its calls."""
    names = list(race.USUAL) if samplers is None else samplers
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise UserError("The samplers must be a list of names.")
    asked = DiffusionRequest(
        prompt, negative_prompt, calls, guidance_scale, seed=seed, weights=weights, backend=cast(Backend, backend),
        previews=False,
    )  # fmt: skip
    with closing(race.race(asked, cast("list[SamplerName]", names), reference_steps)) as events:
        for event in events:
            lanes = [
                {"sampler": lane.sampler, "steps": lane.steps, "calls": lane.calls, "of": lane.of,
                 "errors": list(lane.errors)}
                for lane in event.lanes
            ]  # fmt: skip
            yield {"reference": event.reference, "reference_calls": event.reference_calls, "lanes": lanes}


def _request(
    prompt: str, count: int, guidance: float, sampler: str, seed: int, negative: str, weights: str, backend: str
) -> DiffusionRequest:  # fmt: skip
    return DiffusionRequest(
        prompt, negative, count, guidance, cast(SamplerName, sampler), seed, weights=weights,
        backend=cast(Backend, backend), previews=False, history=True,
    )  # fmt: skip


def _drawn(asked: DiffusionRequest, part: str, empty: tuple[None, ...]) -> Generator[Any, None, DiffusionResult]:
    """Yields the progress of a run behind the empty places of what is not there yet; returns the result."""
    with closing(steps(asked)) as events:
        for event in events:
            yield *empty, {"part": part, "call": event.step, "of": event.steps}
    assert event.result is not None
    return event.result


def _node(result: DiffusionResult) -> travel.Node:
    assert result.history is not None
    return travel.Node(result.request, result.image, result.history)


def _file(result: DiffusionResult, name: str) -> dict[str, Any]:
    path = blocks.offer(write_png(result), name)
    return FileData(path=path, orig_name=Path(path).name, mime_type="image/png").model_dump()


def _check_call(call: Any) -> None:
    """UserError, before anything is drawn, for what cannot be a call."""
    if not whole(call, 0):
        raise UserError("The call must be a whole number from 0 on.")
