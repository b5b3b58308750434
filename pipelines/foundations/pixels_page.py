"""Pixels: draw half a digit, let each autoregressive model complete it, and see what each pixel of yours costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gradio as gr
import numpy as np

from pipelines.common.errors import UserError
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say
from pipelines.ui.turns import Turn, Turns

from . import pixels_drawing as drawing
from . import pixels_pipeline as models
from . import pixels_view as view
from .config import LIVE
from .pixels import MODELS, ORDERS

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
EVERY = 0.3  # seconds between two looks at what is being drawn
FIRST = "3"
BOARD = "Board to draw on: press and move, or arrows and space"
HALVES = {"top": "Top", "left": "Left", "right": "Right", "bottom": "Bottom", "scattered": "Pixels here and there"}
ORDER_NAMES = {"rows": "Row by row", "columns": "Column by column", "spiral": "From the middle out", "random": "Random"}
BY_ORDER = {"rows": "fvsbn", "columns": "fvsbn-columns", "spiral": "fvsbn-spiral", "random": "fvsbn-random"}

turns = Turns()


def complete(
    bits: str, half: str, share: float, visit: str, temperature: float, count: float, seed: float,
    request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> Iterator[str]:  # fmt: skip
    """Let every model complete what is kept of a drawing. bits: 784 characters 0 and 1; half: top, left, right, bottom
    or scattered; share: of the drawing that is kept, in %; visit: order of the orderless model."""
    blocks.announce(progress)
    picture, known = drawing.from_text(bits), drawing.kept(half, float(share or 0) / 100)
    if seed is None or not 0 <= seed < 2**53:
        raise UserError("The seed must be a whole number from 0 on.")
    with turns.take(request.session_hash) as turn:
        yield from _completed(
            turn, picture, known, (visit, float(temperature or 0), int(count or 0), int(seed)), partial(say, request)
        )


def _completed(
    turn: Turn, picture: np.ndarray, known: np.ndarray, settings: tuple[Any, ...], speak: view.Speak
) -> Iterator[str]:  # fmt: skip
    names = [name for name in models.present() if name not in BY_ORDER.values() or name == BY_ORDER.get(settings[0])]
    rows: list[view.Drawn] = []
    visit, temperature, count, seed = settings
    shown = 0.0
    for place, name in enumerate(names):
        waiting = [speak(MODELS[each].title) for each in names[place + 1 :]]
        for step in models.completions(name, picture, known, visit, temperature, count, seed, lambda: turn.halted):
            last = view.Drawn(speak(MODELS[name].title), step.pictures, step.reached, _note(step.unheard, speak))
            if time.perf_counter() - shown >= EVERY or (step.done and not waiting):
                shown = time.perf_counter()
                yield view.completions([*rows, last], known, waiting)
        rows.append(last)
        if turn.halted:
            break
    if turn.halted and not turn.replaced:
        yield view.completions(rows, known)


def _note(unheard: int, speak: view.Speak) -> str:
    if not unheard:
        return ""
    return speak("Draws its first pixel before it has heard of {count} of those that are kept.", count=unheard)


def measure(bits: str, name: str, visit: str, request: gr.Request) -> tuple[str, str, str]:
    """Nats of a drawing: pixel by pixel under one model, in all under each, and in other orders."""
    picture = drawing.from_text(bits)
    speak, here = partial(say, request), models.present()
    if not here:
        note = view.html.escape(speak("The trained models are not on this machine."))
        return f'<div class="gh-note">{note}</div>', "", ""
    if name not in here:
        name = next(iter(here))
    both = np.stack([picture, drawing.scattered(picture)])
    found = {each: models.nats(each, both, visit) for each in here}
    rows = [_judged(each, found[each], here, each == name, speak) for each in here]
    orders = []
    for one, trained in BY_ORDER.items():
        title = speak(ORDER_NAMES[one])
        for each in (trained, "orderless"):
            if each in here:
                costs = found[each] if each == trained or one == visit else models.nats(each, both, one)
                test = here[each].facts.get("test_nats") if each == trained else None
                title_of = "FVSBN" if each == trained else speak(MODELS[each].title)
                own, control = costs.sum((1, 2)).tolist()
                orders.append(view.Judged(f"{title}: {title_of}", own, control, test, None))
    heat = view.heat(found[name][0], picture, speak(MODELS[name].title), speak)
    return heat, view.table(rows, speak), view.table(orders, speak)


def _judged(name: str, costs: np.ndarray, here: dict[str, Any], chosen: bool, speak: view.Speak) -> view.Judged:
    own, control = costs.sum((1, 2)).tolist()
    return view.Judged(
        speak(MODELS[name].title), own, control, here[name].facts.get("test_nats"), MODELS[name].paper, chosen
    )  # fmt: skip


def store(request: gr.Request, event: gr.EventData) -> Any:
    """What was drawn, as the board tells it. The run that still completes the drawing before is not waited for: two
    quick strokes would wait together, and the first might come out last."""
    halt(request)
    bits = event._data.get("bits") if isinstance(event._data, dict) else None
    return drawing.as_text(drawing.from_text(bits)) if bits is not None else gr.skip()


def put(name: str, request: gr.Request) -> tuple[str, str]:
    """An example, or with no name an empty board: (bits, board)."""
    halt(request)
    empty = np.zeros((28, 28), bool)
    bits = drawing.as_text(drawing.example(name) if name else empty)
    return bits, view.board(bits, say(request, BOARD))


def halt(request: gr.Request) -> None:
    """Stop was pressed."""
    turns.halt(request.session_hash)


def clear(request: gr.Request) -> None:
    """Make way for what is asked for next: work for what is on the page now would stand before it in the queue."""
    turns.halt(request.session_hash, clear=True)


def first(
    seen: bool, bits: str, name: str, visit: str, half: str, share: float, temperature: float, count: float,
    seed: float, request: gr.Request,
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """The example, judged and completed, when the page is opened for the first time."""
    if seen:
        yield tuple(gr.skip() for _ in range(5))
        return
    yield True, *measure(bits, name, visit, request), gr.skip()
    for shown in complete(bits, half, share, visit, temperature, count, seed, request, None):  # type: ignore[arg-type]
        yield True, gr.skip(), gr.skip(), gr.skip(), shown


# --- widgets ---------------------------------------------------------------------------------------------------------


def build(page: gr.Blocks, tab: gr.Tab) -> None:
    gr.Markdown(
        label(
            "An autoregressive model says how likely a picture is: pixel by pixel, each given those before it. Draw a "
            "digit, keep half of it, and see what each model makes of the other; then keep another half, and see "
            "which models cannot know what you kept. (FVSBN: Frey 1998; NADE: Larochelle and Murray 2011; MADE: "
            "Germain et al. 2015; orderless: Uria et al. 2014.)"
        )
    )
    start = drawing.as_text(drawing.example(FIRST))
    seen, bits = gr.State(False), gr.State(start)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            board = gr.HTML(view.board(start, BOARD), js_on_load=view.BOARD_SCRIPT, elem_id="foundations-pixels-board")
            with gr.Row():
                digits = [
                    gr.Button(digit, size="sm", min_width=40, elem_id=f"foundations-pixels-digit-{digit}")
                    for digit in drawing.EXAMPLES
                ]
                emptied = gr.Button(label("Clear"), size="sm", min_width=70, elem_id="foundations-pixels-clear")
            controls = _controls()
            with gr.Row():
                run = gr.Button(label("Complete it"), variant="primary", scale=2, elem_id="foundations-pixels-run")
                stop = gr.Button(label("Stop"), min_width=80, elem_id="foundations-pixels-stop")
        with gr.Column(scale=3, min_width=320):
            gr.Markdown(label("### Completions: white is yours, orange is the model's"))
            gallery = gr.HTML(elem_id="foundations-pixels-gallery")
            gr.Markdown(label("### What each pixel of your drawing costs"))
            here = [(label(MODELS[name].title), name) for name in models.present()]
            name = gr.Dropdown(
                here, value=here[0][1] if here else None, label=label("Model"), elem_id="foundations-pixels-model"
            )
            heat = gr.HTML(elem_id="foundations-pixels-heat")
    with gr.Row():
        with gr.Column(min_width=320):
            gr.Markdown(label("### Under each model"))
            table = gr.HTML(elem_id="foundations-pixels-table")
        with gr.Column(min_width=320):
            gr.Markdown(label("### The same drawing in other orders"))
            orders = gr.HTML(elem_id="foundations-pixels-orders")
    half, share, visit, temperature, count, seed = controls
    asked, drawn = [bits, name, visit], [heat, table, orders]
    drawing_of = [half, share, visit, temperature, count, seed]
    measured: dict[str, Any] = {"trigger_mode": "always_last", **QUIET, **blocks.LIGHT}
    stored = board.click(guarded(store), None, bits, trigger_mode="multiple", **QUIET, **blocks.LIGHT)
    stored.then(guarded(measure), asked, drawn, **measured)
    for button, digit in zip([*digits, emptied], [*drawing.EXAMPLES, ""], strict=True):
        put_there = button.click(guarded(_putter(digit)), None, [bits, board], **QUIET, **blocks.LIGHT)
        put_there.then(guarded(measure), asked, drawn, **measured)
    gr.on([name.input, visit.input], guarded(measure), asked, drawn, **measured)
    begun = run.click(guarded(clear), None, None, **QUIET, **blocks.LIGHT)
    # Multiple: the page may not have heard yet that the run before has ended, and would drop the click.
    begun.then(
        guarded(complete), [bits, *drawing_of], gallery, api_name="foundations_complete", trigger_mode="multiple",
        **LIVE,
    )  # fmt: skip
    gr.api(guarded(judge), api_name="foundations_nats", **LIVE)
    stop.click(guarded(halt), None, None, **QUIET, **blocks.LIGHT)
    tab.select(
        guarded(first), [seen, bits, name, visit, half, share, temperature, count, seed], [seen, *drawn, gallery],
        trigger_mode="once", **QUIET, **LIVE,
    )  # fmt: skip


def _putter(name: str) -> Callable[..., tuple[str, str]]:
    def put_there(request: gr.Request) -> tuple[str, str]:
        return put(name, request)

    return put_there


def judge(bits: str, model: str, order: str = "rows") -> list[list[float]]:
    """28 rows of 28: what each pixel of a drawing (784 characters 0 and 1) costs a model, in nats."""
    return models.nats(model, drawing.from_text(bits)[None], order)[0].tolist()


def _controls() -> list[Any]:
    half = gr.Radio(
        [(label(title), value) for value, title in HALVES.items()], value="top", label=label("Keep"),
        elem_id="foundations-pixels-half",
    )  # fmt: skip
    share = gr.Slider(0, 100, 50, step=5, label=label("Kept, %"), elem_id="foundations-pixels-share")
    visit = gr.Dropdown(
        [(label(ORDER_NAMES[value]), value) for value in ORDERS], value="rows",
        label=label("Order of pixels, for the models that can choose"), elem_id="foundations-pixels-order",
    )  # fmt: skip
    temperature = gr.Slider(0, 2, 0.8, step=0.1, label=label("Temperature"), elem_id="foundations-pixels-temperature")
    count = gr.Slider(1, models.MOST, 4, step=1, label=label("Completions"), elem_id="foundations-pixels-count")
    seed = gr.Number(0, precision=0, label=label("Seed"), elem_id="foundations-pixels-seed")
    return [half, share, visit, temperature, count, seed]
