"""A text of the visitor's under the model: bits per byte, each token shaded by its surprise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any, cast

import gradio as gr

from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say
from pipelines.ui.turns import Turns

from . import examples_page as examples
from . import pipeline, view
from . import traces_page as traces
from .contract import Backend

turns = Turns()


def read(
    text: str | None, backend: Backend, weights: str, request: gr.Request, progress: gr.Progress = gr.Progress()
) -> Iterator[Any]:  # fmt: skip
    """How much each token of a text surprises the model; nothing where the visitor stops it."""
    blocks.announce(progress)
    start = time.perf_counter()
    parts = pipeline.reading(text or "", weights, backend)
    with turns.take(request.session_hash) as turn, closing(parts):
        for share, reading in parts:
            if turn.halted:
                yield gr.skip()
                return
            if reading is None:
                progress(share, desc=f"{share:.0%}")
                yield gr.skip()
                continue
            seconds = time.perf_counter() - start
            texts = traces.spelled(pipeline.load(pipeline.entry(reading.weights), backend), reading.tokens)
            yield view.score(reading, texts, seconds, partial(say, request))


def halt(request: gr.Request) -> None:
    """Stop was pressed."""
    turns.halt(request.session_hash)


def score(text: str, weights: str = "auto", backend: str = "local") -> float:
    """Bits per byte of a text: how much it surprises the model, over its bytes in UTF-8."""
    return pipeline.score(text, weights, cast(Backend, backend))


def build(switches: blocks.Switches) -> None:
    """The box "Score a text"; programs call moe_score."""
    with gr.Accordion(label("Score a text"), open=False, elem_id="moe-write-scoring"), gr.Row():
        with gr.Column(scale=2, min_width=300):
            text = gr.Textbox(
                examples.passage(), lines=4, max_lines=12, label=label("Text"), elem_id="moe-write-scored"
            )
            with gr.Row():
                button = gr.Button(label("Count the bits"), scale=2, min_width=90, elem_id="moe-write-score")
                stop = gr.Button(label("Stop"), min_width=90, elem_id="moe-write-score-stop")
        with gr.Column(scale=3, min_width=300):
            found = gr.HTML(elem_id="moe-write-bits")
    button.click(
        guarded(read), [text, switches.implementation, switches.weights], found, api_visibility="private",
        **blocks.HEAVY,
    )  # fmt: skip
    stop.click(guarded(halt), None, None, api_visibility="private", show_progress="hidden", **blocks.LIGHT)
    gr.api(guarded(score), api_name="moe_score", **blocks.HEAVY)
