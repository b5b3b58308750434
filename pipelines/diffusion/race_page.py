"""Race: several samplers from the same noise, call by call, against a long run that says where they should end."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import gradio as gr

from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say
from pipelines.ui.turns import Turns

from . import inside_program_page as programs
from . import race_view as view
from . import settings_page as settings
from .contract import SAMPLER_TITLES, SAMPLERS, Backend, DiffusionRequest, RaceEvent, SamplerName
from .race import REFERENCE, REFERENCE_STEPS, USUAL, race
from .running_page import follow, silence

EVERY = 0.25  # seconds between two looks, at least: each is some pictures

turns = Turns()


def compete(
    prompt: str | None, negative: str | None, names: list[str], calls: float, guidance: float, seed: str | None,
    long: float, backend: Backend, weights: str, request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """Race samplers from the same noise with the same number of calls: their distance from a long run's end, live."""
    blocks.announce(progress)
    values = (negative, seed, calls, guidance, REFERENCE, None, None, "float32")
    asked = settings.asked(prompt, backend, weights, *values)
    speak, shown, last = partial(say, request), 0.0, None
    events = race(asked, cast("list[SamplerName]", names or []), int(long or 0))
    for last in follow(events, request.session_hash, turns):
        if last.event is not None and not last.ended and last.seconds - shown >= EVERY:
            shown = last.seconds
            yield seen(last.event, speak)
    if last is None or not last.ended or last.event is None:
        yield silence(3)
        return
    told, *rest = seen(last.event, speak)
    yield (view.note(speak("Stopped.")) + told if last.halted else told), *rest


def compete_first(
    started: bool, prompt: str | None, negative: str | None, names: list[str], calls: float, guidance: float,
    seed: str | None, long: float, backend: Backend, weights: str, request: gr.Request,
    progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """`compete` when the page is opened for the first time."""
    if started:
        yield silence(4)
        return
    for shown in compete(
        prompt, negative, names, calls, guidance, seed, long, backend, weights, request, progress
    ):  # fmt: skip
        yield True, *shown


def seen(event: RaceEvent, speak: view.Say) -> tuple[str, str, str]:
    """What is told, the chart, and the cards with what the numbers mean."""
    started = event.reference == event.reference_calls
    chart = view.chart(event.lanes, speak) if started else ""
    return view.verdict(event, speak), chart, view.cards(event, speak) + view.footnote(event.lanes, speak)


def halt(request: gr.Request) -> None:
    """End the visitor's race after the call that it is at."""
    turns.halt(request.session_hash)


# --- the page --------------------------------------------------------------------------------------------------------


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    gr.Markdown(
        label(
            "A sampler decides how to go from noise to a picture with few calls of the U-Net. Here several go from the "
            "same noise with equally many calls, and a long run says where they should end."
        )
    )
    started = gr.State(False)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            widgets, run, stop = _widgets()
        with gr.Column(scale=3, min_width=320):
            told = gr.HTML(elem_id="diffusion-race-told")
            chart = gr.HTML(elem_id="diffusion-race-chart")
            cards = gr.HTML(elem_id="diffusion-race-cards")
    inputs = [*widgets, switches.implementation, switches.weights]
    outputs = [told, chart, cards]
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress_on": told, **blocks.HEAVY}
    run.click(guarded(compete), inputs, outputs, **quiet)
    first = tab.select(guarded(compete_first), [started, *inputs], [started, *outputs], **quiet)
    switches.refresh(first)
    stop.click(guarded(halt), None, None, api_visibility="private", show_progress="hidden", **blocks.LIGHT)
    gr.api(guarded(programs.compete), api_name="diffusion_race", **blocks.HEAVY)


def _widgets() -> tuple[list[Any], gr.Button, gr.Button]:
    """In the order of `compete`, and the two buttons."""
    prompt = gr.Textbox("a red apple, twemoji style", lines=2, label=label("Prompt"), elem_id="diffusion-race-prompt")
    names = gr.CheckboxGroup(
        [(SAMPLER_TITLES[name], name) for name in SAMPLERS], value=list(USUAL), label=label("Samplers"),
        elem_id="diffusion-race-samplers",
    )  # fmt: skip
    calls = gr.Slider(1, 50, 10, step=1, label=label("Calls of the U-Net for each"), elem_id="diffusion-race-calls")
    long = gr.Slider(
        10, 200, REFERENCE_STEPS, step=1, label=label("Calls of the long run"), elem_id="diffusion-race-long"
    )
    with gr.Row():
        guidance = gr.Slider(
            *settings.GUIDANCE, DiffusionRequest("").guidance_scale, step=0.5, label=label("Guidance"), min_width=140,
            elem_id="diffusion-race-guidance",
        )  # fmt: skip
        seed = gr.Textbox("0", max_lines=1, label=label("Seed"), min_width=100, elem_id="diffusion-race-seed")
    with gr.Accordion(label("Negative prompt"), open=False):
        negative = gr.Textbox(
            "", show_label=False, label=label("Negative prompt"), elem_id="diffusion-race-negative"
        )  # fmt: skip
    with gr.Row():
        run = gr.Button(label("Race"), variant="primary", scale=2, min_width=90, elem_id="diffusion-race-run")
        stop = gr.Button(label("Stop"), min_width=90, elem_id="diffusion-race-stop")
    return [prompt, negative, names, calls, guidance, seed, long], run, stop
