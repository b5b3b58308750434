"""Margins: train a small network to features of two or three numbers under each softmax loss, and see the gaps grow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, cast

import gradio as gr
import numpy as np

from pipelines.common.errors import UserError
from pipelines.ui import blocks
from pipelines.ui.charts import Series, line_chart
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say
from pipelines.ui.shelf import Shelf
from pipelines.ui.turns import Turns

from . import margin_table_view as words
from . import margin_view as view
from .config import LIVE, MARGIN_LOSSES, SCALE, MarginRecipe, within
from .margin_contract import TESTED, Moment

EVERY = 0.35  # seconds between two pictures of a training, at least
GRID, STEPS = 96, 360  # cells a side of the plane, and steps around the circle
KEPT = 12  # trainings in a visitor's table
PICKED = 12  # the test picture that is looked at first
turns = Turns()


@dataclass
class Study:
    """A visitor's trainings. current: the one on the page. before: the network untrained."""

    current: Moment
    before: Moment
    done: list[Moment] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in (self.current, self.before, *self.done))


@cache
def shelf() -> Shelf:
    """Where the trainings of all visitors are kept."""
    return Shelf(50_000_000)


def kept(ticket: str | None) -> Study:
    """UserError: it had to make room."""
    found = shelf().get(ticket)
    if found is None:
        raise UserError("This training had to make room for others; train once more.")
    return cast(Study, found)


def train(
    ticket: str | None, loss: str, margin: float, scale: float, dimension: int, unseen: float, steps: float,
    seed: float, picture: float, request: gr.Request,
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """Train a network on the digits under one loss; the features of the test pictures are shown as they move."""
    recipe = _recipe(loss, margin, scale, dimension, unseen, steps, seed)
    yield from _run([recipe], ticket, picture, request)


def train_all(
    ticket: str | None, loss: str, margin: float, scale: float, dimension: int, unseen: float, steps: float,
    seed: float, picture: float, request: gr.Request,
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """`train` under every loss, one after another: the chosen one with its margin, the others with their own."""
    chosen = _recipe(loss, margin, scale, dimension, unseen, steps, seed)
    recipes = [
        chosen if name == loss else replace(chosen, loss=name, margin=kind.margin.value if kind.margin else 0.0)
        for name, kind in MARGIN_LOSSES.items()
    ]
    yield from _run(recipes, ticket, picture, request)


def train_first(
    ticket: str | None, loss: str, margin: float, scale: float, dimension: int, unseen: float, steps: float,
    seed: float, picture: float, request: gr.Request,
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """`train` when the page is opened, once."""
    if ticket is not None:
        yield tuple(gr.skip() for _ in range(6))
    else:
        yield from train(ticket, loss, margin, scale, dimension, unseen, steps, seed, picture, request)


def _recipe(
    loss: str, margin: float, scale: float, dimension: int, unseen: float, steps: float, seed: float
) -> MarginRecipe:
    """UserError: a number is missing or outside its slider."""
    for value, name in ((unseen, "number of digits kept out"), (steps, "number of steps"), (seed, "seed")):
        within(value, 0, 2**31 - 1, name)
    return MarginRecipe(loss, margin, scale, dimension, int(unseen), int(steps), int(seed)).checked()


def _run(
    recipes: list[MarginRecipe], ticket: str | None, picture: float, request: gr.Request
) -> Iterator[tuple[Any, ...]]:
    from .margin_training import train as trained

    study: Study | None = shelf().get(ticket)
    with turns.take(request.session_hash) as turn:
        for recipe in recipes:
            shown = 0.0
            with closing(trained(recipe)) as moments:  # type: ignore[type-var]
                for moment in moments:
                    if turn.replaced:  # the study may be the next run's now
                        break
                    study = study or Study(moment, moment)
                    if moment.step == 0:
                        study.before = moment
                    study.current = moment
                    if turn.halted:
                        break
                    if moment.step < recipe.steps and time.perf_counter() - shown >= EVERY:
                        shown = time.perf_counter()
                        yield (gr.skip(), *_shown(study, recipe.margin, recipe.scale, picture, False, request))
            if study is not None and study.current.step and not turn.replaced:
                study.done = [*study.done, study.current][-KEPT:]
            if turn.halted:
                break
            if recipe is not recipes[-1]:
                yield (gr.skip(), *_shown(cast(Study, study), recipe.margin, recipe.scale, picture, False, request))
        if turn.replaced or study is None:
            yield tuple(gr.skip() for _ in range(6))
            return
        done = study.current.recipe
    shelf().drop(ticket)
    new = shelf().put(study, study.nbytes)
    yield (new, *_shown(study, done.margin, done.scale, picture, turn.halted, request))


def look(
    ticket: str | None, loss: str, margin: float, scale: float, picture: float, request: gr.Request
) -> tuple[Any, ...]:
    """Other numbers for what was trained already: the borders and the gradient under another margin or scale, and the
    curves of the loss that is chosen now."""
    if ticket is None:
        return tuple(gr.skip() for _ in range(5))
    study, kind = kept(ticket), MARGIN_LOSSES.get(loss)
    if kind is None:
        raise UserError("Choose one of the losses in the list.")
    if kind.margin is not None:
        within(margin, kind.margin.low, kind.margin.high, "margin")
    within(scale, SCALE.low, SCALE.high, "scale")
    trained = study.current.recipe
    same = loss == trained.loss
    drawn = _shown(study, margin if same else trained.margin, scale if same else trained.scale, picture, False, request)
    return (drawn[0], _curves(loss, margin, scale, 10 - trained.unseen, partial(say, request)), *drawn[2:])


def pick(event: gr.EventData) -> Any:
    """The number of the picture that was clicked, for the slider."""
    place = event._data.get("picture") if isinstance(event._data, dict) else None
    return place + 1 if isinstance(place, int) and 0 <= place < TESTED else gr.skip()


def choose(loss: str) -> tuple[Any, Any]:
    """The sliders of another loss."""
    kind = MARGIN_LOSSES.get(loss)
    if kind is None:
        raise UserError("Choose one of the losses in the list.")
    margin = kind.margin
    slider = gr.update(visible=False) if margin is None else gr.update(
        visible=True, minimum=margin.low, maximum=margin.high, step=margin.step, value=margin.value
    )  # fmt: skip
    return slider, gr.update(visible=kind.scaled)


def halt(request: gr.Request) -> None:
    """End the training after the step that it is at."""
    turns.halt(request.session_hash)


# --- what is shown ---------------------------------------------------------------------------------------------------


def _shown(
    study: Study, margin: float, scale: float, picture: float, stopped: bool, request: gr.Request
) -> tuple[str, ...]:
    """Features, curves, the picture's detail, the summary, and the table."""
    from .margin_training import digits, probe

    speak, moment = partial(say, request), study.current
    data = digits()
    place = min(max(int(picture or 1), 1), len(data.test_labels)) - 1
    found = probe(moment, place, margin, scale)
    steps = [] if found is None else [-found.gradient, -found.unmoved]
    figures = _figures(moment, margin, scale, place, steps, speak)
    if len(moment.losses) > 1:
        losses = Series("", range(1, len(moment.losses) + 1), moment.losses)
        figures += line_chart([losses], speak("step"), speak("loss, nats"), height=110)
    detail = words.detail(found, data.test[place], int(data.test_labels[place]), place, speak)
    recipe = moment.recipe
    return (
        figures, _curves(recipe.loss, margin, scale, 10 - recipe.unseen, speak), detail,
        words.told(moment, stopped, speak), words.table(study.done, study.before, speak),
    )  # fmt: skip


def _figures(moment: Moment, margin: float, scale: float, place: int, steps: list[np.ndarray], speak: view.Say) -> str:
    from .margin_training import restored, territory

    if moment.recipe.dimension == 3:
        return view.sphere(moment, place, speak)
    loss, side = restored(moment, margin, scale), view.reach(moment.features)
    line = (np.arange(GRID) + 0.5) / GRID * 2 - 1
    grid = np.stack(np.meshgrid(line, -line), axis=-1).reshape(-1, 2) * side
    land = tuple(each.reshape(GRID, GRID) for each in territory(loss, grid))
    angles = (np.arange(STEPS) + 0.5) / STEPS * 2 * np.pi
    length = float(np.median(np.linalg.norm(moment.features, axis=1)))
    around = territory(loss, np.stack((np.cos(angles), np.sin(angles)), axis=1) * length)
    plane = view.plane(moment, cast(Any, land), place, steps, speak)
    return (
        f'<div class="gh-chips" style="align-items:flex-start">{plane}{view.circle(moment, around, place, speak)}</div>'
    )


def _curves(loss: str, margin: float, scale: float, classes: int, speak: view.Say) -> str:
    from .margin_training import curve

    kind, length = MARGIN_LOSSES[loss], scale if MARGIN_LOSSES[loss].scaled else 1.0
    lines = [(speak("the right class"), curve(loss, margin, np.array(view.ANGLES)))]
    if kind.margin is not None and loss != "center":
        half = round((kind.margin.high - kind.margin.low) / 2 / kind.margin.step) * kind.margin.step
        margins = [margin, kind.margin.low, kind.margin.low + half, kind.margin.high]
        margins = list(dict.fromkeys(round(each, 4) for each in margins))
        lines = [(f"m = {each:g}", curve(loss, each, np.array(view.ANGLES))) for each in margins]
    if loss in ("l-softmax", "a-softmax"):
        name = speak("as trained at the end: five parts cosine, one part ψ")
        lines.insert(1, (name, curve(loss, margin, np.array(view.ANGLES), blended=True)))
    chosen = (scale, 1, 4, 16, 64) if kind.scaled else (4, 1, 16, 64)
    second = view.losses_by_scale(lines[0][1], chosen, "s" if kind.scaled else "|x|", classes, speak)
    return view.curves(lines, length, speak) + second


# --- widgets ---------------------------------------------------------------------------------------------------------


def build(page: gr.Blocks, tab: gr.Tab) -> None:
    kind = MARGIN_LOSSES["arcface"]
    gr.Markdown(
        label(
            "How faces are told apart: the right class must win although its logit is made smaller by a margin. Train "
            "with m = 0, then with 0.3, and see the digits draw together and the gaps between them open; then look at "
            "the error on unseen digits in the table, which no picture of the known ones shows."
        )
    )
    ticket = gr.State(None, delete_callback=lambda t: shelf().drop(t))
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            settings, train_button, all_button, stop = _settings(kind)
        with gr.Column(scale=5, min_width=320):
            told = gr.HTML(elem_id="foundations-margins-told")
            figures = gr.HTML(elem_id="foundations-margins-figures", js_on_load=view.SPIN)
            gr.Markdown(label(
                "Left, the features as they are, on the ground of the class that wins there: strong where it wins with "
                "its margin too, pale where only without. Right, their directions alone, with a bar for how many there "
                "are. In three dimensions drag the sphere, or use the arrow keys. Grey digits took no part."
            ))  # fmt: skip
    with gr.Row():
        with gr.Column(min_width=320):
            gr.Markdown(label("### The logit over the angle"))
            curves = gr.HTML(elem_id="foundations-margins-curves")
        with gr.Column(min_width=320):
            gr.Markdown(label("### The gradient on one picture"))
            gr.Markdown(label(
                "Click a digit above, or choose a number. The arrow is where its feature is pushed; dashed, without "
                "the margin."
            ))  # fmt: skip
            picture = gr.Slider(
                1, TESTED, PICKED, step=1, label=label("Test picture"), elem_id="foundations-margins-picture"
            )
            detail = gr.HTML(elem_id="foundations-margins-detail")
    gr.Markdown(label("### The error after each training"))
    table = gr.HTML(elem_id="foundations-margins-table")
    loss, margin, scale = settings[:3]
    inputs, outputs = [ticket, *settings, picture], [ticket, figures, curves, detail, told, table]
    quiet: dict[str, Any] = {"show_progress_on": told, **LIVE}
    again: dict[str, Any] = {"trigger_mode": "multiple", **quiet}  # a second click takes the place of the first
    train_button.click(guarded(train), inputs, outputs, api_name="foundations_margins_train", **again)
    all_button.click(guarded(train_all), inputs, outputs, api_name="foundations_margins_all", **again)
    tab.select(guarded(train_first), inputs, outputs, api_visibility="private", **quiet)
    quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", **blocks.LIGHT}
    stop.click(guarded(halt), None, None, **quick)
    seen = [figures, curves, detail, told, table]
    looked = [ticket, loss, margin, scale, picture]
    last: dict[str, Any] = {"trigger_mode": "always_last", **quick}
    loss.input(guarded(choose), loss, [margin, scale], **last).then(guarded(look), looked, seen, **last)
    gr.on([margin.release, scale.release, picture.release], guarded(look), looked, seen, **last)
    # Not the last one always, for which the page would repeat what came with the first click.
    picked = figures.click(guarded(pick), None, picture, trigger_mode="multiple", **quick)
    picked.then(guarded(look), looked, seen, **last)


def _settings(kind: Any) -> tuple[list[Any], gr.Button, gr.Button, gr.Button]:
    """Loss, margin, scale, dimensions, digits kept out, steps and seed; the buttons."""
    loss = gr.Dropdown(
        [(each.title, name) for name, each in MARGIN_LOSSES.items()], value="arcface", label=label("Loss"),
        elem_id="foundations-margins-loss",
    )  # fmt: skip
    margin = gr.Slider(
        kind.margin.low, kind.margin.high, kind.margin.value, step=kind.margin.step,
        label=label("Margin m (ArcFace: in radians)"), elem_id="foundations-margins-margin",
    )  # fmt: skip
    scale = gr.Slider(
        SCALE.low, SCALE.high, SCALE.value, step=SCALE.step, label=label("Scale s"), elem_id="foundations-margins-scale"
    )
    dimension = gr.Radio(
        [(label("2: a plane"), 2), (label("3: a sphere"), 3)], value=2, label=label("Numbers in a feature"),
        elem_id="foundations-margins-dimension",
    )  # fmt: skip
    unseen = gr.Slider(
        0,
        3,
        2,
        step=1,
        label=label("Digits kept out of the training, from 9 down"),
        elem_id="foundations-margins-unseen",
    )
    steps = gr.Slider(50, 3000, 500, step=50, label=label("Steps"), elem_id="foundations-margins-steps")
    seed = gr.Number(0, precision=0, minimum=0, label=label("Seed"), elem_id="foundations-margins-seed")
    with gr.Row():
        train_button = gr.Button(label("Train"), variant="primary", min_width=90, elem_id="foundations-margins-run")
        stop = gr.Button(label("Stop"), min_width=70, elem_id="foundations-margins-stop")
    all_button = gr.Button(label("Train with all six, in turn"), elem_id="foundations-margins-all")
    return [loss, margin, scale, dimension, unseen, steps, seed], train_button, all_button, stop
