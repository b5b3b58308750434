"""Detect: a picture in, boxes with points, scores, pose, sharpness and light out."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say

from . import examples_page as examples
from . import view
from .config import CascadeOptions
from .contract import Backend, FaceRequest
from .pipeline import run


def cascade_sliders(prefix: str) -> list[gr.Slider]:
    """The detector's four knobs, for every page that has them."""
    # With P-Net's at 0 every one of its hundred thousands of cells is a candidate: allowed, but not by a slip here.
    knobs = (("P-Net threshold", 0.6, 0.05), ("R-Net threshold", 0.7, 0), ("O-Net threshold", 0.7, 0))
    thresholds = [
        gr.Slider(least, 1, value, step=0.01, label=label(text), elem_id=f"{prefix}-{text[0].lower()}net")
        for text, value, least in knobs
    ]
    smallest = gr.Slider(12, 200, 20, step=1, label=label("Smallest face, pixels"), elem_id=f"{prefix}-minface")
    return [*thresholds, smallest]


def cascade_options(pnet: float, rnet: float, onet: float, smallest: float) -> CascadeOptions:
    """The sliders' values as the cascade takes them."""
    return CascadeOptions(thresholds=(pnet, rnet, onet), min_face=int(smallest or 0))


def find(
    path: str | None, backend: Backend, pnet: float, rnet: float, onet: float, smallest: float,
    request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> tuple[Any, str, dict[str, Any]]:  # fmt: skip
    """Find every face of a picture: the picture with boxes, a table, and the same as JSON."""
    image = blocks.read_picture(path)
    blocks.announce(progress)
    result = run(FaceRequest(image, backend=backend, cascade=cascade_options(pnet, rnet, onet, smallest), embed=False))
    table = view.faces_table(image, result, partial(say, request))
    return view.annotate(image, result.faces), table, view.records(result)


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    with gr.Row():
        with gr.Column():
            picture = blocks.picture_input(
                "Picture", value=examples.path("group.jpg"), height=380, elem_id="face-detect-picture"
            )
            button = gr.Button(label("Find faces"), variant="primary", elem_id="face-detect-run")
            examples.photos(picture)
            with gr.Accordion(label("Thresholds"), open=False):
                sliders = cascade_sliders("face-detect")
        with gr.Column():
            shown = blocks.picture_output("Faces", height=380, elem_id="face-detect-shown")
            table = gr.HTML(elem_id="face-detect-table")
            with gr.Accordion(label("The same as data"), open=False):
                data = gr.JSON(show_label=False)
    inputs, outputs = [picture, switches.implementation, *sliders], [shown, table, data]
    button.click(guarded(find), inputs, outputs, api_name="face_detect", **blocks.HEAVY)
    # A picture that was dropped in or chosen is searched at once; so is the first example when the page opens.
    picture.change(
        guarded(find_if_any), inputs, outputs, api_visibility="private", trigger_mode="always_last", **blocks.HEAVY
    )
    first = page.load(guarded(find), inputs, outputs, api_visibility="private", **blocks.HEAVY)
    switches.refresh(first)  # now that a model has been loaded, the card can say where it runs


def find_if_any(
    path: str | None, backend: Backend, pnet: float, rnet: float, onet: float, smallest: float,
    request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> Any:  # fmt: skip
    """As `find`, but an emptied widget empties the result."""
    if not path:
        return None, "", None
    return find(path, backend, pnet, rnet, onet, smallest, request, progress)
