"""The Hungarian desk: draw what should have been found, see which query answers for it and what training would pay."""

from __future__ import annotations

import html
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from pipelines.common.errors import UserError
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say, untranslated

from . import coco
from . import desk_view as view
from . import examples_page as examples
from . import traces_page as traces
from .config import LossWeights, loss_weights, scoring
from .contract import Prediction
from .desk import Truth, read_rows, settle, to_rows
from .postprocess import objects

Corner = tuple[float, float] | None


def weigh(classification: float, l1: float, giou: float, no_object: float) -> LossWeights:
    """The sliders' values as matching and loss take them; an emptied field counts as 0."""
    return LossWeights(classification or 0.0, l1 or 0.0, giou or 0.0, no_object or 0.0)


def said(run: traces.Run, layer: int) -> list[str]:
    """What every query says at a layer: class and score."""
    told, names = run.life, run.names
    pairs = zip(told.classes[layer], told.scores[layer], strict=True)
    return [f"{names.get(int(k), '?')} {score:.2f}" for k, score in pairs]


def centred(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, 4) xyxy pixels -> cxcywh in [0, 1] of a (height, width) picture."""
    unit = boxes / np.array([size[1], size[0], size[1], size[0]], np.float32)
    return np.concatenate([(unit[:, :2] + unit[:, 2:]) / 2, unit[:, 2:] - unit[:, :2]], axis=1).astype(np.float32)


def results(
    run: traces.Run, rows: Any, corner: Corner, layer: float, weights: LossWeights, request: gr.Request
) -> tuple[Any, ...]:
    """Picture, summary, pairs and matrices of the truth in `rows`, and the truth for other pages."""
    speak = partial(say, request)
    at = min(max(int(layer or 1), 1), run.life.layers) - 1
    truth = read_rows(rows or [], run.size, run.config.labels)
    trace, names = run.trace, said(run, at)
    settled = settle(
        trace.logits[at], trace.boxes[at], trace.scoring, truth.classes, centred(truth.boxes, run.size), weights
    )
    drawn = traces.Drawn(traces.digest(run.image), truth.boxes, truth.labels) if len(truth) else None
    return (
        view.picture(run.image, truth, settled, run.life.boxes[at], corner),
        view.notes(truth.notes, speak) + view.summary(settled, truth, speak),
        view.pairs(settled, truth, names, speak),
        view.matrices(settled, truth, names, weights, speak),
        drawn,
    )


def table(rows: list[list[Any]], request: gr.Request | None) -> dict[str, Any]:
    """Rows as the table takes them, with headers in the visitor's language."""
    return {"headers": [say(request, t) for t in ("Label", "Left", "Top", "Right", "Bottom")], "data": rows}


def filled(rows: Any) -> list[list[Any]]:
    """The rows that hold anything."""
    return [list(row) for row in rows or [] if any(cell not in (None, "") for cell in row)]


# --- the network -----------------------------------------------------------------------------------------------------


def lay_out(
    path: str | None, weights: str, rows: Any, drawn: traces.Drawn | None, request: gr.Request,
    progress: gr.Progress = gr.Progress(),
) -> tuple[Any, ...]:  # fmt: skip
    """Run the network on a picture and lay its truth beside it: the rows that are there already, unless they are of
    another picture; else an example's own truth, or else what the network found."""
    ticket, run = traces.take(path, weights, progress)
    kept = filled(rows)
    if not kept or (drawn is not None and drawn.picture != traces.digest(run.image)):
        truth = traces.shipped(path, run.size, run.config) or detections(run)
        kept = to_rows(truth.boxes, truth.labels)
    trained, named = loss_weights(run.config), list(run.names.values())
    label_choice = gr.update(choices=named, value=kept[0][0] if kept and kept[0][0] in named else named[0])
    controls = (
        gr.update(maximum=run.life.layers, value=run.life.layers), trained.classification, trained.l1, trained.giou,
        gr.update(value=trained.no_object, interactive=scoring(run.config) == "softmax"),
    )  # fmt: skip
    found = results(run, kept, None, run.life.layers, trained, request)
    return ticket, label_choice, *controls, table(kept, request), None, *found


def lay_out_new(
    last: tuple[Any, ...] | None, path: str | None, weights: str, rows: Any, drawn: traces.Drawn | None,
    request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> tuple[Any, ...]:  # fmt: skip
    """`lay_out` with no button pressed: when the page is opened, and for another picture."""
    if not path or last == (path, weights):
        return tuple(gr.skip() for _ in range(15))
    return (path, weights), *lay_out(path, weights, rows, drawn, request, progress)


def detections(run: traces.Run) -> Truth:
    """What the network found, as truth."""
    prediction = Prediction(run.trace.logits[-1], run.trace.boxes[-1], run.trace.scoring)
    found = objects(prediction, run.size, run.threshold, classes=list(run.names))
    labels = tuple(run.names[int(k)] for k in found.classes)
    return Truth(found.boxes, labels, found.classes)


# --- the truth: each of these changes only the rows; `change` follows ------------------------------------------------


def change(
    ticket: str | None, rows: Any, corner: Corner, layer: float, classification: float, l1: float, giou: float,
    no_object: float, request: gr.Request,
) -> tuple[Any, ...]:  # fmt: skip
    """Match and score again, with these rows of truth and these weights. No network is run."""
    run = traces.shelf().get(ticket)
    if run is None:
        return tuple(gr.skip() for _ in range(5))
    return results(run, rows, corner, layer, weigh(classification, l1, giou, no_object), request)


def draw_corner(
    ticket: str | None, rows: Any, corner: Corner, name: str | None, request: gr.Request, event: gr.SelectData
) -> tuple[Any, Corner]:
    """Two clicks are two opposite corners of a box of the chosen label."""
    run = traces.kept(ticket)
    x, y = traces.point(event, run)
    if corner is None:
        return gr.skip(), (x, y)
    low, high = np.minimum(corner, (x, y)), np.maximum(corner, (x, y))
    if (high - low).min() < 1:
        raise UserError("Click the opposite corner: this box would have no area.")
    added = to_rows(np.concatenate([low, high])[None], [untranslated(name or "")])
    return table(filled(rows) + added, request), None


def take_detections(ticket: str | None, request: gr.Request) -> tuple[Any, Corner]:
    """Start from what the network found."""
    run = traces.kept(ticket)
    truth = detections(run)
    if not len(truth):
        raise UserError("The network found nothing in this picture; draw boxes yourself.")
    return table(to_rows(truth.boxes, truth.labels), request), None


def load(ticket: str | None, file: str | None, path: str | None, request: gr.Request) -> tuple[Any, Corner]:
    """Take the truth from a file in COCO format: the picture of the same file name, or the only one."""
    run = traces.kept(ticket)
    if not file:
        raise UserError("Choose a COCO file first.")
    try:
        images, notes = coco.read(Path(file).read_bytes())
    except OSError as error:
        raise UserError("The file could not be read; upload it again.") from error
    truth = coco.fit(coco.choose(images, Path(path or "").name), run.size)
    said_of = " ".join([*notes, *truth.notes])
    if not len(truth):
        raise UserError(f"The file has no box that can be used for this picture. {said_of}".strip())
    if said_of:
        gr.Info(html.escape(said_of))
    return table(to_rows(truth.boxes, truth.labels), request), None


def undo(rows: Any, corner: Corner, request: gr.Request) -> tuple[Any, Corner]:
    """Take back the corner that was clicked, or else the last box."""
    return table(filled(rows) if corner is not None else filled(rows)[:-1], request), None


def clear(request: gr.Request) -> tuple[Any, Corner]:
    """No truth at all."""
    return table([], request), None


# --- widgets ---------------------------------------------------------------------------------------------------------


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    gr.Markdown(
        label(
            "In training, each true object is given to exactly one query: the assignment of least total cost, found by "
            "the Hungarian method. Here you say what is true. Draw boxes, move the weights, and see who is assigned to "
            "what, and what each pair pays. The formulas are those of the training code."
        )
    )
    ticket, last = gr.State(None, delete_callback=lambda t: traces.shelf().drop(t)), gr.State(None)
    corner, drawn = gr.State(None), traces.drawn_truth(page)
    with gr.Row():
        with gr.Column(scale=2):
            picture = blocks.picture_input(
                "Picture", value=examples.PHOTOS[0], height=260, elem_id="detection-desk-picture"
            )
            run = gr.Button(label("Lay out this picture"), variant="primary", elem_id="detection-desk-run")
            examples.photos(picture)
            sliders = _sliders()
        with gr.Column(scale=3):
            summary = gr.HTML(elem_id="detection-desk-summary")
            with gr.Row():
                name = gr.Dropdown(
                    [], label=label("Label of the next box"), scale=3, min_width=200, elem_id="detection-desk-label"
                )
                with gr.Column(scale=4, min_width=240):
                    take = gr.Button(label("Take the detections as truth"), size="sm", elem_id="detection-desk-take")
                    with gr.Row():
                        back = gr.Button(label("Undo"), size="sm", min_width=80, elem_id="detection-desk-undo")
                        empty = gr.Button(label("Clear"), size="sm", min_width=80, elem_id="detection-desk-clear")
            shown = blocks.picture_output(
                "Click two opposite corners to draw a true box", height=480, elem_id="detection-desk-shown"
            )
            pairs = gr.HTML(elem_id="detection-desk-pairs")
    matrices = gr.HTML(elem_id="detection-desk-matrices")
    with gr.Row():
        with gr.Column(scale=3):
            rows = gr.Dataframe(
                headers=["Label", "Left", "Top", "Right", "Bottom"], type="array", column_count=5, interactive=True,
                datatype=["str", "number", "number", "number", "number"], buttons=[],
                label=label("The truth, in pixels: edit it here"), elem_id="detection-desk-rows",
            )  # fmt: skip
        with gr.Column(scale=2):
            file = blocks.only_uploads(
                gr.File(
                    label=label("Truth from a COCO file"),
                    file_types=[".json"],
                    height=140,
                    elem_id="detection-desk-file",
                )
            )
    seen = [shown, summary, pairs, matrices, drawn]
    laid = [ticket, name, *sliders, rows, corner, *seen]
    inputs, asked = [picture, switches.weights, rows, drawn], [ticket, rows, corner, *sliders]
    quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "trigger_mode": "always_last"}
    run.click(guarded(lay_out), inputs, laid, api_name="detection_desk", **blocks.HEAVY)
    gr.on([tab.select, picture.change], guarded(lay_out_new), [last, *inputs], [last, *laid], **quick, **blocks.HEAVY)
    gr.on(
        [rows.input, *(slider.input for slider in sliders)], guarded(change), asked, seen,
        api_name="detection_settle", show_progress="minimal", trigger_mode="always_last", **blocks.LIGHT,
    )  # fmt: skip
    steps = [
        shown.select(guarded(draw_corner), [ticket, rows, corner, name], [rows, corner], **quick, **blocks.LIGHT),
        take.click(guarded(take_detections), [ticket], [rows, corner], **quick, **blocks.LIGHT),
        file.upload(guarded(load), [ticket, file, picture], [rows, corner], **quick, **blocks.LIGHT),
        back.click(guarded(undo), [rows, corner], [rows, corner], **quick, **blocks.LIGHT),
        empty.click(guarded(clear), None, [rows, corner], **quick, **blocks.LIGHT),
    ]
    for step in steps:
        step.success(guarded(change), asked, seen, **quick, **blocks.LIGHT)


def _sliders() -> list[gr.Slider]:
    """Layer and weights."""
    layer = gr.Slider(1, 3, 3, step=1, label=label("Decoder layer"), elem_id="detection-desk-layer")
    knobs = (
        ("Weight of the classification", 10, 2, "class"), ("Weight of L1", 20, 5, "l1"),
        ("Weight of GIoU", 10, 2, "giou"),
    )  # fmt: skip
    weights = [
        gr.Slider(0, top, value, step=0.1, label=label(text), elem_id=f"detection-desk-{name}")
        for text, top, value, name in knobs
    ]
    nothing = gr.Slider(
        0, 1, 0.1, step=0.01, label=label("Weight of “no object” (DETR with softmax only)"),
        interactive=False, elem_id="detection-desk-nothing",
    )  # fmt: skip
    return [layer, *weights, nothing]
