"""Recurrence: RNN, LSTM, GRU and two Transformers of equal size, trained side by side on tasks that ask for memory."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from pipelines.common.errors import UserError
from pipelines.ui import blocks
from pipelines.ui.charts import Series, ink, line_chart
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say
from pipelines.ui.turns import Turns

from . import recurrence_view as view
from .config import LIVE
from .recurrence_curves import read, shipped
from .tasks import TASKS, VALUES, steps_in_a_row

if TYPE_CHECKING:
    from .recurrence_training import Course

Speak = Callable[..., str]
KINDS = view.NAMES
TASK_NAMES = {"copy": "Copy", "recall": "Recall", "sort": "Sort"}
LONGEST, MOST = 40, 2_000
FIRST = 60  # steps when the page is opened
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

turns = Turns()


def run(
    task: str, length: float, kinds: list[str], steps: float, seed: float, request: gr.Request,
    progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[str, str]]:  # fmt: skip
    """Train networks of equal size on one task: accuracy as they learn; at the end how far back each one hears."""
    blocks.announce(progress)
    if task not in TASKS or not kinds or not set(kinds) <= set(KINDS):
        raise UserError("Choose a task, and at least one network in the list.")
    most = VALUES if task == "recall" else LONGEST
    if length is None or not 1 <= length <= most:
        raise UserError(f"For this task the length must lie between 1 and {most}.")
    if steps is None or not 1 <= steps <= MOST or seed is None or not 0 <= seed < 2**32:
        raise UserError(f"Between 1 and {MOST:,} steps can be trained, with a whole number from 0 on as the seed.")
    from .recurrence_training import train

    speak, kinds = partial(say, request), [each for each in KINDS if each in kinds]
    with turns.take(request.session_hash) as turn:
        for courses in train(kinds, task, int(length), int(steps), int(seed)):
            if not turn.replaced:
                yield curves(courses, speak), table(courses, int(length), task, speak)
            if turn.halted:
                return


def first(
    seen: bool, task: str, length: float, kinds: list[str], seed: float, request: gr.Request
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """A short training with the defaults when the page is opened for the first time."""
    if seen:
        yield gr.skip(), gr.skip(), gr.skip()
        return
    for shown in run(task, length, kinds, FIRST, seed, request, None):  # type: ignore[arg-type]
        yield True, *shown


def beforehand(task: str, request: gr.Request) -> str:
    """What larger networks have learnt of a task, and how far back their gradients reach, trained beforehand: HTML."""
    if task not in TASKS:
        raise UserError("Choose one of the tasks in the list.")
    return view.beforehand(shipped(task), partial(say, request))


def halt(request: gr.Request) -> None:
    """Stop was pressed."""
    turns.halt(request.session_hash)


def clear(request: gr.Request) -> None:
    """Make way for what is asked for next: work for what is on the page now would stand before it in the queue."""
    turns.halt(request.session_hash, clear=True)


# --- what is shown ---------------------------------------------------------------------------------------------------


def curves(courses: Sequence[Course], speak: Speak) -> str:
    """Accuracy over steps; and at the end the gradient over the distance."""
    places = {kind: place for place, kind in enumerate(KINDS)}
    learnt = [
        Series(KINDS[one.kind], one.steps, one.accuracies, True, True, ink(places[one.kind]), "") for one in courses
    ]  # fmt: skip
    chance = [(1 / VALUES, speak("a guess"))]
    parts = [
        line_chart(learnt, speak("Steps"), speak("Right symbols, in fresh examples"), y_range=(0.0, 1.0), at_y=chance)
    ]
    heard = [
        Series(KINDS[one.kind], list(range(len(one.distance))), one.distance.tolist(), True, True,
               ink(places[one.kind]), "")
        for one in courses if one.distance is not None
    ]  # fmt: skip
    if heard:
        parts.append(
            line_chart(heard, speak("Steps before the answer's last symbol"), speak("Norm of the gradient"), log_y=True)
        )
    grid = "display:grid;grid-template-columns:repeat(auto-fit,minmax(280px,1fr));gap:0 1.5rem"
    return f'<div style="{grid}">{"".join(parts)}</div>'


def table(courses: Sequence[Course], length: int, task: str, speak: Speak) -> str:
    """Size, steps that must wait for one another, accuracy and time of each network."""
    heads = (
        speak("Network"), speak("Parameters"), speak("Steps one after another"), speak("Right symbols"),
        speak("Seconds of one core"),
    )  # fmt: skip
    lines = []
    for one in courses:
        waits = steps_in_a_row(one.kind, read(task, length))
        cells = (KINDS[one.kind], f"{one.size:,}", str(waits), f"{one.accuracies[-1]:.0%}", f"{one.seconds:.1f}")
        lines.append(f'<tr data-kind="{one.kind}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heads)
    return (
        f'<div class="gh-scroll"><table class="gh-table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


# --- widgets ---------------------------------------------------------------------------------------------------------


def build(page: gr.Blocks, tab: gr.Tab) -> None:
    gr.Markdown(
        label(
            "A recurrent network hands its memory from step to step; a Transformer looks back at once. Make the length "
            "longer, and see who still learns to copy, recall and sort, and how far back each one's gradient reaches. "
            "The Transformer reads task and answer in one causal row of two layers; the encoder-decoder, as first "
            "published, reads the task with one layer and writes the answer with another. "
            "(Elman 1990; Hochreiter and Schmidhuber 1997; Cho et al. 2014; Vaswani et al. 2017.)"
        )
    )
    seen = gr.State(False)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            task = gr.Radio(
                [(label(TASK_NAMES[value]), value) for value in TASKS], value="copy", label=label("Task"),
                elem_id="foundations-recurrence-task",
            )  # fmt: skip
            length = gr.Slider(
                1, LONGEST, 6, step=1, label=label("Length (of recall, at most 8 pairs)"),
                elem_id="foundations-recurrence-length",
            )  # fmt: skip
            kinds = gr.CheckboxGroup(
                [(title, kind) for kind, title in KINDS.items()], value=list(KINDS), label=label("Networks"),
                elem_id="foundations-recurrence-kinds",
            )  # fmt: skip
            steps = gr.Slider(20, MOST, 400, step=20, label=label("Steps"), elem_id="foundations-recurrence-steps")
            seed = gr.Number(0, precision=0, label=label("Seed"), elem_id="foundations-recurrence-seed")
            with gr.Row():
                button = gr.Button(
                    label("Train"), variant="primary", scale=2, min_width=90, elem_id="foundations-recurrence-run"
                )
                stop = gr.Button(label("Stop"), min_width=80, elem_id="foundations-recurrence-stop")
        with gr.Column(scale=3, min_width=320):
            chart = gr.HTML(elem_id="foundations-recurrence-chart")
            rows = gr.HTML(elem_id="foundations-recurrence-table")
    gr.Markdown(
        label(
            "### Larger and longer, trained beforehand\nThe task that is chosen above, at greater lengths and with "
            "four times as many parameters. All read the same examples, and only the Transformers need not read them "
            "one symbol after another."
        )
    )
    curves_shown = gr.HTML(elem_id="foundations-recurrence-shipped")
    begun = button.click(guarded(clear), None, None, **QUIET, **blocks.LIGHT)
    begun.then(
        guarded(run), [task, length, kinds, steps, seed], [chart, rows], api_name="foundations_recurrence",
        trigger_mode="multiple", **LIVE,  # the page may not have heard yet that the run before has ended
    )  # fmt: skip
    stop.click(guarded(halt), None, None, **QUIET, **blocks.LIGHT)
    drawn: dict[str, Any] = {"show_progress": "hidden", **blocks.LIGHT}
    tab.select(guarded(beforehand), task, curves_shown, api_name="foundations_recurrence_curves", **drawn)
    task.input(guarded(beforehand), task, curves_shown, api_visibility="private", trigger_mode="always_last", **drawn)
    tab.select(
        guarded(first), [seen, task, length, kinds, seed], [seen, chart, rows], trigger_mode="once", **QUIET,
        **LIVE,
    )  # fmt: skip
