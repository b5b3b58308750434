"""Inside: the cascade replayed stage by stage; click a point to learn why no face was found there; move a threshold."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import gradio as gr

from pipelines.common.errors import UserError
from pipelines.common.limits import limits
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say
from pipelines.ui.shelf import Shelf

from . import examples_page as examples
from . import inside_view as view
from .detect_page import cascade_options, cascade_sliders
from .pipeline import trace, what_if

FIRST = "Replay the cascade first."


@cache
def shelf() -> Shelf:
    """Where the replayed runs of all visitors are kept."""
    return Shelf(limits().traces_mb * 1_000_000)


def replay(
    path: str | None, pnet: float, rnet: float, onet: float, smallest: float, shown: str, level: float,
    request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> tuple[Any, ...]:  # fmt: skip
    """Run the rebuilt cascade with everything kept, and show how many candidates each stage let through."""
    image = blocks.read_picture(path)
    blocks.announce(progress)
    run = trace(image, cascade_options(pnet, rnet, onet, smallest))
    ticket = shelf().put(run, run.nbytes)
    top = max(len(run.levels) - 1, 1)
    slider = gr.update(maximum=top, value=min(int(level), top))
    return ticket, ticket, view.funnel(run, partial(say, request)), view.picture(run, shown, int(level)), slider, ""


def replay_new(
    last: tuple[str, float] | None, path: str | None, pnet: float, rnet: float, onet: float, smallest: float,
    shown: str, level: float, request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> tuple[Any, ...]:  # fmt: skip
    """`replay` with no button pressed: when the page is opened, and for another picture or smallest face."""
    if not path:
        return None, None, None, "", None, gr.skip(), ""
    if last == (path, smallest):
        return tuple(gr.skip() for _ in range(7))
    outputs = replay(path, pnet, rnet, onet, smallest, shown, level, request, progress)
    return (path, smallest), *outputs


def move(
    base: str | None, pnet: float, rnet: float, onet: float, request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> tuple[Any, str, Any, str]:  # fmt: skip
    """The same picture with other thresholds: which faces come, which go."""
    old = shelf().get(base)
    if old is None:
        return gr.skip(), gr.skip(), gr.skip(), gr.skip()  # type: ignore[return-value]
    outcome = what_if(old, (pnet, rnet, onet))
    ticket = shelf().put(outcome.trace, outcome.trace.nbytes)
    speak = partial(say, request)
    text = view.what_changed(outcome, speak)
    return ticket, view.funnel(outcome.trace, speak), view.changes(outcome, old), text


def look(ticket: str | None, shown: str, level: float) -> Any:
    """Another view of the replayed run."""
    run = shelf().get(ticket)
    return gr.skip() if run is None else view.picture(run, shown, int(level))


def ask(ticket: str | None, request: gr.Request, event: gr.SelectData) -> tuple[Any, str]:
    """Why there is, or is not, a face at the point that was clicked."""
    from .insight import explain_point

    run = shelf().get(ticket)
    if run is None:
        raise UserError(FIRST)
    x, y = event.index
    told = explain_point(run, float(x), float(y))
    return view.pointed(run, told), view.explanation(told, partial(say, request))


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    # Tickets: what was replayed, and what is shown, which a moved threshold makes another.
    base, run = gr.State(None, delete_callback=lambda t: shelf().drop(t)), gr.State(None)
    gr.Markdown(
        label(
            "MTCNN looks at the picture in many sizes (P-Net), and looks again, closer, at what is left (R-Net, "
            "O-Net). Replay it, then click anywhere to learn why no face was found there, or move a threshold and see "
            "who comes and goes."
        )
    )
    with gr.Row():
        with gr.Column(scale=2):
            picture = blocks.picture_input(
                "Picture", value=examples.path("obama.jpg"), height=300, elem_id="face-inside-picture"
            )
            button = gr.Button(label("Replay the cascade"), variant="primary", elem_id="face-inside-run")
            examples.photos(picture)
            thresholds = cascade_sliders("face-inside")
        with gr.Column(scale=3):
            funnel = gr.HTML(elem_id="face-inside-funnel")
            with gr.Row():
                views = gr.Radio(
                    [(label(text), name) for name, text in view.VIEWS.items()], value="pnet_map", show_label=False,
                    elem_id="face-inside-view",
                )  # fmt: skip
                level = gr.Slider(
                    0, 10, 3, step=1, label=label("Pyramid level, finest first"), elem_id="face-inside-level"
                )
            shown = blocks.picture_output("Click a point", height=560, elem_id="face-inside-shown")
            told = gr.HTML(elem_id="face-inside-told")
    inputs, outputs = [picture, *thresholds, views, level], [base, run, funnel, shown, level, told]
    button.click(guarded(replay), inputs, outputs, api_name="face_replay", **blocks.HEAVY)
    quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "trigger_mode": "always_last"}
    # Opening the page also reports a change of its picture: what was replayed last tells the two apart.
    last = gr.State(None)
    news = [tab.select, picture.change, thresholds[3].release]
    gr.on(news, guarded(replay_new), [last, *inputs], [last, *outputs], **quick, **blocks.HEAVY)
    moved = [slider.change for slider in thresholds[:3]]
    gr.on(moved, guarded(move), [base, *thresholds[:3]], [run, funnel, shown, told], **quick, **blocks.HEAVY)
    for control in (views.change, level.release):
        control(guarded(look), [run, views, level], shown, **quick, **blocks.LIGHT)
    shown.select(guarded(ask), run, [shown, told], **quick, **blocks.LIGHT)
