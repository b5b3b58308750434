"""Ledger: the books of the routers over the visitor's text, tastes beside their baseline, and what a capacity drops."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr

from pipelines.common.errors import UserError
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say

from . import ledger_view as view
from . import traces_page as traces

QUICK: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "trigger_mode": "always_last"}


def book(
    text: str, weights: str, layer: float, expert: float, factor: float, request: gr.Request,
    progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """Read a text and keep the routers' books: load, entropy and losses by layer, tastes of an expert, and what a
    capacity would have refused. Layers and experts are counted from 1."""
    for run in traces.take(text, weights, request, progress):
        if run is None:
            yield tuple(gr.skip() for _ in range(8))
            continue
        layers, experts = run.config.layers, run.config.experts
        place = min(int(layer or 1), layers), min(int(expert or 1), experts)
        pickers = gr.update(maximum=layers, value=place[0]), gr.update(maximum=experts, value=place[1])
        shown = _shown(run, place[0] - 1, place[1] - 1, factor, request)
        yield traces.shelf().put(run, run.nbytes), *pickers, *shown


def book_new(
    last: tuple[Any, ...] | None, text: str, weights: str, layer: float, expert: float, factor: float,
    request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """`book` with no button pressed: when the page is opened, once for each text."""
    if not text or last == (text, weights):
        yield tuple(gr.skip() for _ in range(9))
        return
    for shown in book(text, weights, layer, expert, factor, request, progress):
        yield (text, weights), *shown


def look(ticket: str | None, layer: float, expert: float, factor: float, request: gr.Request) -> tuple[Any, ...]:
    """Another layer, expert or capacity of the text that was read."""
    if ticket is None:
        return tuple(gr.skip() for _ in range(5))
    run = traces.kept(ticket)
    return _shown(run, int(layer or 1) - 1, int(expert or 1) - 1, factor, request)


def _shown(run: traces.Run, layer: int, expert: int, factor: float, request: gr.Request) -> tuple[str, ...]:
    from .insight import ledger, tastes

    if not (0 <= layer < run.config.layers and 0 <= expert < run.config.experts):
        raise UserError(
            f"This model has {run.config.layers} layers of {run.config.experts} experts; choose among those."
        )
    speak = partial(say, request)
    found = ledger(run.trace, factor)
    return (
        view.identity(found, speak),
        view.books(found, layer, expert, speak),
        view.tastes(tastes(run.trace, layer, expert), layer, expert, speak),
        view.places(run.trace, run.texts, layer, expert),
        view.capacity(run.trace, found.dropped, run.texts, layer, factor, speak),
    )


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    config = traces.meant("auto")
    gr.Markdown(
        label(
            "Who does the work? The routers' books over a text of yours: how evenly each layer loads its experts, "
            "which tokens an expert gets, and how much of that is only which token it is."
        )
    )
    ticket, last = gr.State(None, delete_callback=lambda t: traces.shelf().drop(t)), gr.State(None)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            text = traces.text_box("moe-ledger-text")
            with gr.Row():
                button = gr.Button(label("Keep the books"), variant="primary", scale=3, elem_id="moe-ledger-run")
                stop = gr.Button(label("Stop"), scale=1, min_width=80, elem_id="moe-ledger-stop")
        with gr.Column(scale=5, min_width=480):
            verdict = gr.HTML(elem_id="moe-ledger-identity")
            books = gr.HTML(elem_id="moe-ledger-books")
    gr.Markdown(label("### What an expert likes"))
    with gr.Row():
        layer = gr.Slider(1, config.layers, 1, step=1, label=label("Layer"), elem_id="moe-ledger-layer")
        expert = gr.Slider(1, config.experts, 1, step=1, label=label("Expert"), elem_id="moe-ledger-expert")
    for picker in (layer, expert):
        blocks.any_value(picker)
    with gr.Row():
        with gr.Column(scale=3, min_width=420):
            tastes = gr.HTML(elem_id="moe-ledger-tastes")
        with gr.Column(scale=2, min_width=320):
            gr.Markdown(label("Where it worked:"))
            places = gr.HTML(elem_id="moe-ledger-places")
    gr.Markdown(label("### If experts had limited room"))
    factor = gr.Slider(
        0.25, 4, 1.25, step=0.05, label=label("Capacity factor: room of an expert, in even shares"),
        elem_id="moe-ledger-capacity",
    )  # fmt: skip
    dropped = gr.HTML(elem_id="moe-ledger-dropped")
    seen = [verdict, books, tastes, places, dropped]
    inputs = [text, switches.weights, layer, expert, factor]
    outputs = [ticket, layer, expert, *seen]
    button.click(guarded(book), inputs, outputs, api_name="moe_ledger", **blocks.HEAVY)
    first = tab.select(guarded(book_new), [last, *inputs], [last, *outputs], **QUICK, **blocks.HEAVY)
    switches.refresh(first)
    stop.click(guarded(traces.halt), None, None, api_visibility="private", show_progress="hidden", **blocks.LIGHT)
    gr.on(
        [layer.input, expert.input, factor.input], guarded(look), [ticket, layer, expert, factor], seen, **QUICK,
        **blocks.LIGHT,
    )  # fmt: skip
