"""Swap: one request through both implementations on the same weights and latents, call by call in turn: the two
pictures, their largest difference, and the time of both."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import gradio as gr
import numpy as np

from pipelines.common.errors import UserError
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say
from pipelines.ui.turns import Turns

from . import examples_page as examples
from . import settings_page as settings
from . import view
from .checks import checked
from .contract import DiffusionEvent, DiffusionRequest, DiffusionResult
from .pipeline import steps
from .running_page import EVERY, silence

WARM = 2  # steps before anything is timed
MOST = 9  # rounds: published weights need minutes for one
turns = Turns()


@dataclass
class Duel:
    """Both sides so far. call: of `calls` in this round, ours and the library's counted as one. results: of each
    finished round, ours first. previews: what each side predicts now, ours first."""

    rounds: int
    call: int = 0
    calls: int = 0
    results: list[tuple[DiffusionResult, DiffusionResult]] = field(default_factory=list)
    previews: list[np.ndarray | None] = field(default_factory=lambda: [None, None])
    warm: bool = False


def prepared(request: DiffusionRequest, rounds: float | None) -> int:
    """The number of rounds. UserError: it is none."""
    if not isinstance(rounds, int | float) or rounds != rounds or not 1 <= rounds <= MOST or int(rounds) != rounds:
        raise UserError(f"The number of rounds must be a whole number between 1 and {MOST}.")
    return int(rounds)


def duel(request: DiffusionRequest, rounds: float | None) -> Generator[Duel, None, None]:
    """Both implementations in turn, warm before the clock counts; yields after each call of one of them.

    The library always runs in float32. UserError: as `pipeline.steps`, or the rounds are no number of them.
    """
    both = Duel(prepared(request, rounds))
    ours = checked(replace(request, backend="local", history=True))
    theirs = checked(replace(request, backend="reference", precision="float32", history=True))
    warm = tuple(replace(each, num_steps=min(WARM, each.num_steps), history=False) for each in (ours, theirs))
    yield from _round(warm, both, 0)
    both.warm = True
    for turn in range(both.rounds):
        # Previews would be decoded between the calls of the other side, and cool its caches; the first round has them.
        pair = tuple(replace(each, previews=turn == 0) for each in (ours, theirs))
        first, second = yield from _round(pair, both, turn)
        both.results.append((first, second))
        yield both


def _round(
    requests: tuple[DiffusionRequest, ...], both: Duel, turn: int
) -> Generator[Duel, None, tuple[DiffusionResult, ...]]:
    """One picture of each, in lock-step; who begins changes from call to call and from round to round."""
    results: list[DiffusionResult | None] = [None, None]
    both.call = 0
    with ExitStack() as stack:
        sides = [stack.enter_context(closing(steps(each))) for each in requests]
        while None in results:
            order = (0, 1) if (both.call + turn) % 2 else (1, 0)
            for side in order:
                event: DiffusionEvent = next(sides[side])
                results[side] = event.result
                both.calls = event.steps
                if event.preview is not None:
                    both.previews[side] = event.preview
                yield both
            both.call += 1
    return tuple(each for each in results if each is not None)


def matched(both: Duel) -> view.Match:
    """What the finished rounds say."""
    pairs, seconds = both.results, ("denoise", "text", "decode")
    ours, theirs = pairs[-1]
    gap = np.abs(ours.image.astype(np.int16) - theirs.image.astype(np.int16)).max(axis=-1)
    assert ours.history is not None and theirs.history is not None
    ends = ours.history.latents[-1], theirs.history.latents[-1]
    times = {name: [(a.seconds[name], b.seconds[name]) for a, b in pairs] for name in seconds}
    size = float(np.abs(ends[1]).max())
    return view.Match(int(gap.max()), float((gap > 0).mean()), (float(np.abs(ends[0] - ends[1]).max()), size), **times)


def swap(
    prompt: str | None, weights: str, rounds: float, negative: str | None, seed: str | None, count: float,
    guidance: float, sampler: str, width: float | None, height: float | None, precision: str, request: gr.Request,
    progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[Any, Any, str]]:  # fmt: skip
    """Draw with both implementations from the same noise: both pictures, and what they differ in."""
    asked = settings.asked(
        prompt, "local", weights, negative, seed, count, guidance, sampler, width, height, precision
    )  # fmt: skip
    blocks.announce(progress)
    speak, shown, both = partial(say, request), 0.0, None
    with turns.take(request.session_hash) as turn, closing(duel(asked, rounds)) as events:
        for both in events:
            if turn.halted:
                break
            if time.perf_counter() - shown >= EVERY:
                shown = time.perf_counter()
                yield *_pictures(both, asked.prompt), _under_way(both, speak)
        if turn.replaced or both is None:
            yield silence(3)  # type: ignore[misc]
            return
        halted = turn.halted
    told = view.note(speak("Stopped.")) if halted else ""
    yield *_pictures(both, asked.prompt), told + (view.swap(matched(both), speak) if both.results else "")


def _pictures(both: Duel, alt: str) -> tuple[Any, Any]:
    shown = [each.image for each in both.results[-1]] if both.results else both.previews
    ours, theirs = (gr.skip() if each is None else view.picture(each, alt) for each in shown)
    return ours, theirs


def _under_way(both: Duel, speak: view.Say) -> str:
    if not both.warm:
        return view.note(speak("Warming both up …"))
    n = min(len(both.results) + 1, both.rounds)
    text = speak(
        "Round {n} of {of}, call {call} of {calls}, each in its turn …", n=n, of=both.rounds, call=both.call,
        calls=both.calls,
    )  # fmt: skip
    return view.note(text)


def halt(request: gr.Request) -> None:
    """End the visitor's run after the call that it is at."""
    turns.halt(request.session_hash)


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    gr.Markdown(
        label(
            "The same weights, prompt and noise through the networks rebuilt here and through the diffusers library, "
            "call by call in turn."
        )
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            prompt = gr.Textbox(
                examples.prompts()[0], lines=2, max_lines=8, label=label("What is to be seen: prompt"),
                elem_id="diffusion-swap-prompt",
            )  # fmt: skip
            with gr.Row():
                button = gr.Button(label("Run both"), variant="primary", min_width=90, elem_id="diffusion-swap-run")
                stop = gr.Button(label("Stop"), min_width=90, elem_id="diffusion-swap-stop")
            rounds = gr.Slider(1, MOST, 3, step=1, label=label("Rounds"), elem_id="diffusion-swap-rounds")
            sampling = settings.sampling("swap")
        with gr.Column(scale=3, min_width=320):
            with gr.Row():
                with gr.Column(min_width=140):
                    gr.Markdown(label("### Rebuilt here"))
                    ours = gr.HTML(view.empty(""), elem_id="diffusion-swap-ours")
                with gr.Column(min_width=140):
                    gr.Markdown(label("### Reference library"))
                    theirs = gr.HTML(view.empty(""), elem_id="diffusion-swap-theirs")
            result = gr.HTML(elem_id="diffusion-swap-result", min_height=60)
    button.click(
        guarded(swap), [prompt, switches.weights, rounds, *sampling], [ours, theirs, result],
        api_name="diffusion_swap", show_progress_on=result, **blocks.HEAVY,
    )  # fmt: skip
    stop.click(guarded(halt), None, None, api_visibility="private", show_progress="hidden", **blocks.LIGHT)
