"""Query life: one object query through the decoder's layers: its box, its class, where it looks, whom it hears."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr
import numpy as np

from pipelines.common.errors import UserError
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say

from . import examples_page as examples
from . import inside_view as view
from . import slots_page
from . import traces_page as traces
from .insight import at_point, heard

QUICK: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "trigger_mode": "always_last"}


def trace_queries(
    path: str | None, weights: str, threshold: float, view_name: str, control: str,
    request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> tuple[Any, ...]:  # fmt: skip
    """Run the network with every decoder layer and attention map kept, and follow the surest query."""
    ticket, run = traces.take(path, weights, progress, blank=True)
    last, speak = run.life.layers - 1, partial(say, request)
    surest = int(np.argmax(run.life.scores[-1]))
    query = gr.update(choices=choices(run, threshold, speak), value=surest)
    layer = gr.update(maximum=last + 1, value=last + 1)
    return ticket, query, layer, *shown(run, surest, last, view_name, control, threshold, request)


def trace_new(
    last: tuple[Any, ...] | None, path: str | None, weights: str, threshold: float, view_name: str, control: str,
    request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> tuple[Any, ...]:  # fmt: skip
    """`trace_queries` with no button pressed: when the page is opened, and for another picture."""
    if not path:
        return None, None, gr.update(choices=[], value=None), gr.skip(), None, "", "", "", ""
    if last == (path, weights):
        return tuple(gr.skip() for _ in range(9))
    return (path, weights), *trace_queries(path, weights, threshold, view_name, control, request, progress)


def choices(run: traces.Run, threshold: float, speak: Any) -> list[tuple[str, int]]:
    """Every query for the list, those that answer first."""
    told, names = run.life, run.names
    found = []
    for q in np.argsort(-told.scores[-1], kind="stable"):
        name, score = names.get(int(told.classes[-1, q]), "?"), told.scores[-1, q]
        silent = "" if score >= threshold else speak("silent, at most") + " "
        found.append((f"#{q} · {silent}{name} {score:.2f}", int(q)))
    return found


def shown(
    run: traces.Run, query: int, layer: int, view_name: str, control: str, threshold: float, request: gr.Request
) -> tuple[Any, str, str, str, str]:
    """What the page shows of a query at a layer: picture, layers, steps, whom it listens to, heads."""
    speak, told, names = partial(say, request), run.life, run.names
    picture = view.picture(run.image, run.trace, told, names, query, layer, view_name, threshold)
    held = against(run, query, layer, control)
    return (
        picture,
        view.layers(told, layer, threshold, speak),
        view.steps(told, names, query, layer, threshold, speak),
        view.listens(heard(run.trace, layer, query), told, names, query, layer, speak),
        view.heads(
            run.image,
            run.trace,
            told,
            query,
            layer,
            held,
            speak(view.CONTROLS.get(control, "?")),
            control == "blank",
            speak,
        ),
    )


def against(run: traces.Run, query: int, layer: int, control: str) -> np.ndarray:
    """(H, h, w): the control for a query's attention."""
    if control == "blank" and run.blank is not None:
        return run.blank.cross_attention[layer, :, query]
    return run.trace.cross_attention[layer].mean(axis=1)


def look(
    ticket: str | None, query: int | None, layer: float, view_name: str, control: str, threshold: float,
    request: gr.Request,
) -> tuple[Any, ...]:  # fmt: skip
    """Another query, layer, view or control of the traced run."""
    run = traces.shelf().get(ticket)
    if run is None or query is None:
        return tuple(gr.skip() for _ in range(5))
    return shown(run, *within(run, query, layer), view_name, control, threshold, request)


def within(run: traces.Run, query: Any, layer: Any) -> tuple[int, int]:
    """Query and layer (counted from 0) as numbers that the run has. UserError: it has not."""
    queries = run.life.scores.shape[1]
    try:
        number, index = int(query), int(layer or 1) - 1
    except (TypeError, ValueError) as error:
        raise UserError("Choose a query in the list.") from error
    if not 0 <= number < queries:
        raise UserError(f"These weights have the queries 0 to {queries - 1}.")
    return number, min(max(index, 0), run.life.layers - 1)


def change_threshold(
    ticket: str | None, query: int | None, layer: float, view_name: str, control: str, threshold: float,
    request: gr.Request,
) -> tuple[Any, ...]:  # fmt: skip
    """Another least score of an answer: the list is marked anew."""
    run = traces.shelf().get(ticket)
    if run is None or query is None:
        return tuple(gr.skip() for _ in range(6))
    found = gr.update(choices=choices(run, threshold, partial(say, request)))
    return found, *look(ticket, query, layer, view_name, control, threshold, request)


def pick(
    ticket: str | None, layer: float, view_name: str, control: str, threshold: float, request: gr.Request,
    event: gr.SelectData,
) -> tuple[Any, ...]:  # fmt: skip
    """Take the query whose last box fits the clicked point best."""
    run = traces.kept(ticket)
    x, y = traces.point(event, run)
    query = at_point(run.life, x / run.size[1], y / run.size[0], threshold)
    return query, *look(ticket, query, layer, view_name, control, threshold, request)


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    gr.Markdown(
        label(
            "DETR asks a fixed set of queries, all at once, and lets them correct themselves layer by layer. Move the "
            "layer and watch answers and doubles come and go; click an object to follow the query that took it: its "
            "box, its class, where it looks in the picture, and which other queries it listens to."
        )
    )
    ticket, last = gr.State(None, delete_callback=lambda t: traces.shelf().drop(t)), gr.State(None)
    with gr.Row():
        with gr.Column(scale=2):
            picture = blocks.picture_input(
                "Picture", value=examples.PHOTOS[0], height=300, elem_id="detection-query-picture"
            )
            button = gr.Button(label("Trace the queries"), variant="primary", elem_id="detection-query-run")
            examples.photos(picture)
            steps = gr.HTML(elem_id="detection-query-steps")
            gr.Markdown(label("#### Whom it listens to: self-attention, mean of the heads"))
            listens = gr.HTML(elem_id="detection-query-listens")
        with gr.Column(scale=3):
            layers = gr.HTML(elem_id="detection-query-layers")
            with gr.Row():
                layer = gr.Slider(1, 3, 3, step=1, label=label("Decoder layer"), elem_id="detection-query-layer")
                query = gr.Dropdown([], label=label("Query"), elem_id="detection-query-query")
                threshold = traces.threshold_slider(switches, "Least score", "detection-query-threshold")
            views = gr.Radio(
                [(label(title), name) for name, title in view.VIEWS.items()], value="path", show_label=False,
                elem_id="detection-query-view",
            )  # fmt: skip
            shown_picture = blocks.picture_output(
                "Click an object to follow its query", height=520, elem_id="detection-query-shown"
            )
    gr.Markdown(label("### Where it looks: cross-attention of every head"))
    control = gr.Radio(
        [(label(title), name) for name, title in view.CONTROLS.items()], value="blank", label=label("Held against"),
        elem_id="detection-query-control",
    )  # fmt: skip
    heads = gr.HTML(elem_id="detection-query-heads")
    seen = [shown_picture, layers, steps, listens, heads]
    inputs = [picture, switches.weights, threshold, views, control]
    button.click(
        guarded(trace_queries), inputs, [ticket, query, layer, *seen], api_name="detection_trace", **blocks.HEAVY
    )
    gr.on(
        [tab.select, picture.change], guarded(trace_new), [last, *inputs], [last, ticket, query, layer, *seen],
        **QUICK, **blocks.HEAVY,
    )  # fmt: skip
    asked = [ticket, query, layer, views, control, threshold]
    gr.on([query.input, layer.input, views.input, control.input], guarded(look), asked, seen, **QUICK, **blocks.LIGHT)
    threshold.input(guarded(change_threshold), asked, [query, *seen], **QUICK, **blocks.LIGHT)
    shown_picture.select(
        guarded(pick), [ticket, layer, views, control, threshold], [query, *seen], **QUICK, **blocks.LIGHT
    )
    slots_page.build(page, tab, switches, threshold)
