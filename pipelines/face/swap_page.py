"""Swap: one picture through both implementations: the largest difference, and the ratio of the times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr

from pipelines.common.backends import BACKENDS
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say

from . import examples_page as examples
from . import view
from .contract import FaceRequest, FaceResult
from .pipeline import run

ROUNDS = 5


def swap(
    path: str | None, weights: str, request: gr.Request, progress: gr.Progress = gr.Progress()
) -> Iterator[tuple[Any, Any, str]]:  # fmt: skip
    """Run local and reference on the same picture in turn: both pictures, the largest difference, the time ratio."""
    image = blocks.read_picture(path)
    blocks.announce(progress)
    results: dict[str, FaceResult] = {}
    times: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    for i in range(ROUNDS + 1):
        for backend in BACKENDS:
            start = time.perf_counter()
            results[backend] = run(FaceRequest(image, weights=weights, backend=backend))
            if i:  # the first round loads and warms up
                times[backend].append(time.perf_counter() - start)
        progress((i + 1) / (ROUNDS + 1), desc=f"{i + 1} / {ROUNDS + 1}")
        yield gr.skip(), gr.skip(), gr.skip()
    ours, theirs = results["local"], results["reference"]
    seconds = statistics.median(times["local"]), statistics.median(times["reference"])
    yield (
        view.annotate(image, ours.faces),
        view.annotate(image, theirs.faces),
        view.difference(ours, theirs, seconds, partial(say, request)),
    )


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    with gr.Row():
        picture = blocks.picture_input(
            "Picture", value=examples.path("group.jpg"), height=300, elem_id="face-swap-picture"
        )
        with gr.Column():
            button = gr.Button(label("Run both"), variant="primary", elem_id="face-swap-run")
            stop = gr.Button(label("Stop"))
            result = gr.HTML(elem_id="face-swap-result")
    with gr.Row():
        ours = blocks.picture_output("Rebuilt here", elem_id="face-swap-ours")
        theirs = blocks.picture_output("Reference library")
    run_both = button.click(
        guarded(swap), [picture, switches.weights], [ours, theirs, result], api_name="face_swap", **blocks.HEAVY
    )
    stop.click(None, cancels=[run_both], api_visibility="private")
