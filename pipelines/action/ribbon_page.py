"""Memory and future: what the task token looked at in the past, and what became of each forecast."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from pipelines.common import catalogue
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say

from . import insight, source_page, view
from .contract import Update
from .pipeline import load
from .recording import Recording, foretold
from .watch_page import Shared


def surest(recording: Recording) -> int:
    """The chunk where some action is likeliest, a forecast's length before the end: what is worth a first look."""
    future = recording.update(0).anticipated.shape[0]
    most = max(1, len(recording) - future)
    return int(recording.probabilities[:most, 1:].max(axis=1).argmax())


def shown(recording: Recording, speak: Any) -> tuple[Any, ...]:
    """The slider over the whole recording at its surest moment, what `moment` says of it, and the forecasts' scores."""
    index = surest(recording)
    slider = gr.update(maximum=max(1, len(recording) - 1), value=index)
    return slider, *moment(recording, index, speak), view.scores(foretold(recording), speak)


def moment(recording: Recording, index: int, speak: Any) -> tuple[str, str, str]:
    """Ribbon, heads and forecast of one chunk."""
    backend = load(catalogue.resolve("action", recording.weights, "brain"), "local")
    window = recording.features[max(0, index + 1 - backend.config(recording.brain).chunks) : index + 1]
    found = insight.looked(backend, window, recording.brain)
    return (
        _lead(recording.update(index), speak) + view.ribbon(recording, index, found, speak),
        view.heads(found, speak),
        view.outcome(recording, index, speak),
    )


def _lead(update: Update, speak: Any) -> str:
    best = update.label
    share = f"{100 * float(update.probabilities.max()):.0f}"
    return view.verdict(
        speak("At {at} s: {name}, {share} %", at=f"{update.timestamp:.1f}", name=speak(best), share=share)
    )


def look(ticket: str | None, index: float, request: gr.Request) -> tuple[str, str, str]:
    """Another chunk of the same recording."""
    recording = source_page.held(ticket)
    return moment(recording, min(max(0, int(index or 0)), len(recording) - 1), partial(say, request))


def build(page: gr.Blocks, tab: gr.Tab, shared: Shared) -> None:
    gr.Markdown(
        label(
            "Every answer is made of the last 32 poses, 3.2 seconds. Pick a moment: the ribbon shows them, with what "
            "the task token looked at; the table beside it shows what was foretold, and what the network itself said "
            "when that time had come."
        )
    )
    with gr.Row():
        left, right = gr.Column(scale=2, min_width=280), gr.Column(scale=3, min_width=320)
    with right:
        told = gr.HTML(elem_id="action-ribbon-told")
        index = gr.Slider(0, 31, 0, step=1, label=label("Moment (chunk)"), elem_id="action-ribbon-index")
        outcome = gr.HTML(elem_id="action-ribbon-outcome")
    ribbon = gr.HTML(elem_id="action-ribbon-ribbon")
    with gr.Accordion(label("Every layer and head"), open=False):
        heads = gr.HTML(elem_id="action-ribbon-heads")
    gr.Markdown(label("Forecasts over the whole recording"))
    scores = gr.HTML(elem_id="action-ribbon-scores")
    blocks.any_value(index)  # its range is the recording's
    with left:
        ticket = source_page.build(
            tab, shared, "ribbon", shown, [], [index, ribbon, heads, outcome, scores], told
        )  # fmt: skip
    index.input(
        guarded(look), [ticket, index], [ribbon, heads, outcome], trigger_mode="always_last",
        api_visibility="private", show_progress="hidden", **blocks.LIGHT,
    )  # fmt: skip
