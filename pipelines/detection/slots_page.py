"""The slot map, below the life of a query: where each query has looked over the example photos."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import gradio as gr
import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.images import open_picture
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say

from . import examples_page as examples
from . import slots_view as view
from . import traces_page as traces
from .contract import DetectionRequest
from .insight import likeliest
from .pipeline import predict
from .slots import Cache, SlotMap, views

EVERY = 6  # views between two pictures of a growing map


@cache
def maps() -> Cache:
    """Finished slot maps, by weights."""
    return Cache()


def grow(weights: str) -> Iterator[SlotMap]:
    """The slot map of these weights over the example photos, longer by one view each time."""
    name, config, _ = traces.network(weights)
    ready = maps().get(name)
    if ready is not None:
        yield ready
        return
    known = traces.class_names(config)
    wanted = 6 * len(examples.PHOTOS)
    boxes, scores, classes = [], [], []
    for path in examples.PHOTOS:
        for image in views(open_picture(path).pixels):
            found = predict(DetectionRequest(image, weights=name, masks=False))
            named, sure = likeliest(found, known)
            boxes.append(found.boxes)
            scores.append(sure)
            classes.append(named)
            yield SlotMap(np.stack(boxes), np.stack(scores), np.stack(classes), wanted)
    maps().put(name, SlotMap(np.stack(boxes), np.stack(scores), np.stack(classes), wanted))


def collect(
    weights: str, threshold: float, request: gr.Request, progress: gr.Progress = gr.Progress()
) -> Iterator[tuple[Any, str, str]]:
    """Run the network over the example photos, their mirror images and crops: the map grows as they are done."""
    blocks.announce(progress)
    speak = partial(say, request)
    for found in grow(weights):
        if found.done or found.pictures % EVERY == 0:
            chart = gr.update(value=view.chart(found, threshold), visible=True)
            yield chart, view.verdict(found, speak), ""
        elif progress is not None:
            progress(found.pictures / found.wanted, desc=f"{found.pictures} / {found.wanted}")


def redraw(weights: str, threshold: float) -> Any:
    """Another least score of an answer."""
    found = _ready(weights)
    return gr.skip() if found is None else view.chart(found, threshold)


def ask(weights: str, threshold: float, request: gr.Request, event: gr.SelectData) -> tuple[Any, str]:
    """What the query of the clicked panel did."""
    found = _ready(weights)
    if found is None:
        raise UserError("Draw the slot map first.")
    query = view.panel_at(found, threshold, *(float(v) for v in event.index))
    if query is None:
        return gr.skip(), gr.skip()  # type: ignore[return-value]
    _, config, _ = traces.network(weights)
    text = view.slot(found, query, traces.class_names(config), threshold, partial(say, request))
    return view.chart(found, threshold, query), text


def _ready(weights: str) -> SlotMap | None:
    return maps().get(traces.network(weights)[0])


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches, threshold: gr.Slider) -> None:
    """threshold: the page's least score of an answer."""
    gr.Markdown(label("### Slot map: where each query has looked over the example photos"))
    with gr.Row():
        draw = gr.Button(label("Draw the slot map"), variant="primary", scale=3, elem_id="detection-slots-run")
        stop = gr.Button(label("Stop"), scale=1)
    verdict = gr.HTML(elem_id="detection-slots-verdict")
    chart = blocks.picture_output("Slot map", show_label=False, visible=False, elem_id="detection-slots-chart")
    slot = gr.HTML(elem_id="detection-slots-slot")
    inputs = [switches.weights, threshold]
    run = draw.click(guarded(collect), inputs, [chart, verdict, slot], api_name="detection_slots", **blocks.HEAVY)
    stop.click(None, cancels=[run], api_visibility="private")
    quietly: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", **blocks.LIGHT}
    threshold.release(guarded(redraw), inputs, chart, **quietly)
    chart.select(guarded(ask), inputs, [chart, slot], **quietly)
