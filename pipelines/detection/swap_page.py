"""Swap: one picture through both implementations: the largest differences, and the ratio of the times."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr

from pipelines.common import catalogue
from pipelines.common.backends import BACKENDS
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say

from . import examples_page as examples
from . import view
from .contract import DetectionRequest, Precision, Prediction
from .pipeline import finish, predict, usual_threshold

ROUNDS = 5


def swap(
    path: str | None, weights: str, precision: Precision, request: gr.Request, progress: gr.Progress = gr.Progress()
) -> Iterator[tuple[Any, Any, str]]:  # fmt: skip
    """Run local and reference on the same picture in turn: both pictures, the largest differences, the time ratio.

    The library runs in float32 always, so that a reduced precision shows what it costs.
    """
    image = blocks.read_picture(path)
    blocks.announce(progress)
    entry = catalogue.resolve("detection", weights, "detector")
    threshold = usual_threshold(entry)
    requests = {
        "local": DetectionRequest(image, threshold, entry.id, "local", precision=precision),
        "reference": DetectionRequest(image, threshold, entry.id, "reference"),
    }
    found: dict[str, Prediction] = {}
    times: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    for i in range(ROUNDS + 1):
        for backend in BACKENDS if i % 2 else BACKENDS[::-1]:
            seconds: dict[str, float] = {}
            found[backend] = predict(requests[backend], seconds)
            if i:  # the first round loads and warms up
                times[backend].append(seconds["network"])
        progress((i + 1) / (ROUNDS + 1), desc=f"{i + 1} / {ROUNDS + 1}")
        yield gr.skip(), gr.skip(), gr.skip()
    ours, theirs = (finish(requests[backend], found[backend]) for backend in BACKENDS)
    medians = statistics.median(times["local"]), statistics.median(times["reference"])
    size = image.shape[0], image.shape[1]
    text = view.difference(found["local"], found["reference"], ours, theirs, size, medians, partial(say, request))
    yield view.boxes(image, ours), view.boxes(image, theirs), text


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    with gr.Row():
        with gr.Column():
            picture = blocks.picture_input(
                "Picture", value=examples.PHOTOS[0], height=300, elem_id="detection-swap-picture"
            )
            examples.photos(picture)
        with gr.Column():
            precision = gr.Radio(
                [("float32", "float32"), (label("Reduced, where that is faster here"), "reduced")], value="float32",
                label=label("Precision of the rebuilt network"), elem_id="detection-swap-precision",
            )  # fmt: skip
            button = gr.Button(label("Run both"), variant="primary", elem_id="detection-swap-run")
            stop = gr.Button(label("Stop"))
            result = gr.HTML(elem_id="detection-swap-result")
    with gr.Row():
        ours = blocks.picture_output("Rebuilt here", elem_id="detection-swap-ours")
        theirs = blocks.picture_output("Reference library", elem_id="detection-swap-theirs")
    run_both = button.click(
        guarded(swap), [picture, switches.weights, precision], [ours, theirs, result], api_name="detection_swap",
        **blocks.HEAVY,
    )  # fmt: skip
    stop.click(None, cancels=[run_both], api_visibility="private")
