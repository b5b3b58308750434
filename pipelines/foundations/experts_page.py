"""Experts: a mixture of experts in the plane, whose switches can be turned while it trains."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

import gradio as gr

from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say
from pipelines.ui.turns import Turns

from . import experts_view as view
from .config import LIVE, ExpertsRecipe, Knobs, within
from .experts_contract import Picture

EVERY = 0.3  # seconds between two pictures, at least
turns = Turns()
live: dict[str, Knobs] = {}  # the switches of the trainings that run, by the visitor's session


def train(
    top: int, limited: bool, capacity: float, balanced: bool, balance: float, experts: float, hidden: float,
    steps: float, seed: float, request: gr.Request,
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """Train the toy mixture of experts beside dense networks of its size and of its cost, shown as it goes."""
    recipe = _recipe(top, experts, hidden, steps, seed)
    knobs = _knobs(top, limited, capacity, balanced, balance, recipe.experts)
    yield from _run(recipe, knobs, request)


def train_first(
    done: bool, top: int, limited: bool, capacity: float, balanced: bool, balance: float, experts: float,
    hidden: float, steps: float, seed: float, request: gr.Request,
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """`train` when the page is opened, once."""
    if done:
        yield tuple(gr.skip() for _ in range(6))
    else:
        yield from train(top, limited, capacity, balanced, balance, experts, hidden, steps, seed, request)


def _recipe(top: int, experts: float, hidden: float, steps: float, seed: float) -> ExpertsRecipe:
    """UserError: a number is missing or outside its slider."""
    for value, name in ((top, "number of experts that are asked"), (experts, "number of experts"),
                        (hidden, "number of hidden units"), (steps, "number of steps"), (seed, "seed")):  # fmt: skip
        within(value, 0, 2**31 - 1, name)
    return ExpertsRecipe(int(experts), int(hidden), int(top), int(steps), int(seed)).checked()


def _knobs(top: int, limited: bool, capacity: float, balanced: bool, balance: float, experts: int) -> Knobs:
    return Knobs(top, capacity if limited else None, balance if balanced else 0.0).checked(experts)


def _run(recipe: ExpertsRecipe, knobs: Knobs, request: gr.Request) -> Iterator[tuple[Any, ...]]:
    from .experts_training import bills
    from .experts_training import train as trained

    speak, session = partial(say, request), request.session_hash or ""
    shown, picture = 0.0, None
    turned: list[tuple[float, str]] = []
    with turns.take(request.session_hash) as turn, closing(trained(recipe, knobs)) as pictures:  # type: ignore[type-var]
        live[session] = knobs
        try:
            for latest in pictures:
                if picture is not None and latest.knobs != picture.knobs:
                    turned.append((latest.step, _words(latest.knobs)))
                picture = latest
                if turn.halted:
                    break
                if picture.step < recipe.steps and time.perf_counter() - shown >= EVERY:
                    shown = time.perf_counter()
                    yield False, *_shown(picture, turned, bills(recipe, knobs.top), False, speak)
        finally:
            if live.get(session) is knobs:
                del live[session]
        if turn.replaced or picture is None:
            yield tuple(gr.skip() for _ in range(6))
            return
        stopped = turn.halted
    yield True, *_shown(picture, turned, bills(recipe, knobs.top), stopped, speak)


def _words(knobs: Knobs) -> str:
    """The switches in signs that need no translation."""
    room = "∞" if knobs.capacity is None else f"{knobs.capacity:g}"
    return f"k = {knobs.top}, C = {room}, α = {knobs.balance:g}"


def _shown(
    picture: Picture, turned: list[tuple[float, str]], bills: dict[str, tuple[int, int, int]], stopped: bool,
    speak: view.Say,
) -> tuple[str, ...]:  # fmt: skip
    """Pictures, loads, curves, the bill, and the summary."""
    return (
        view.pictures(picture, speak), view.loads(picture, speak), view.chart(picture, turned[-4:], speak),
        view.table(picture, bills, speak), view.told(picture, stopped, speak),
    )  # fmt: skip


def switch(top: int, limited: bool, capacity: float, balanced: bool, balance: float, request: gr.Request) -> None:
    """Turn the switches of the visitor's training, if one runs; the next step minds them."""
    knobs = live.get(request.session_hash or "")
    new = _knobs(top, limited, capacity, balanced, balance, 2)
    if knobs is not None:
        knobs.top, knobs.capacity, knobs.balance = new.top, new.capacity, new.balance


def halt(request: gr.Request) -> None:
    """End the training after the step that it is at."""
    turns.halt(request.session_hash)


def build(page: gr.Blocks, tab: gr.Tab) -> None:
    gr.Markdown(
        label(
            "Four patches, each striped in its own direction, and a few small experts: a router learns who works "
            "where. While it trains, switch the balance loss off or ask two experts instead of one, and watch the map "
            "and the bars. The control, whose router never learns, tells what the map is worth."
        )
    )
    done = gr.State(False)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            gr.Markdown(label("These work at once, also while it trains:"))
            knobs = _switches()
            gr.Markdown(label("These count from the next start:"))
            sizes = _sizes()
            with gr.Row():
                start = gr.Button(label("Train"), variant="primary", min_width=90, elem_id="foundations-experts-run")
                stop = gr.Button(label("Stop"), min_width=70, elem_id="foundations-experts-stop")
        with gr.Column(scale=5, min_width=320):
            told = gr.HTML(elem_id="foundations-experts-told")
            pictures = gr.HTML(elem_id="foundations-experts-pictures")
            loads = gr.HTML(elem_id="foundations-experts-loads")
            chart = gr.HTML(elem_id="foundations-experts-chart")
    table = gr.HTML(elem_id="foundations-experts-table")
    gr.Markdown(
        label(
            "Top-1 after the Switch Transformer (Fedus et al. 2021), top-2 after GShard (Lepikhin et al. 2020), the "
            "balance loss after both. A point without room in its expert gets no answer in training, as in Switch."
        )
    )
    inputs, outputs = [*knobs, *sizes], [done, pictures, loads, chart, table, told]
    quiet: dict[str, Any] = {"show_progress_on": told, **LIVE}
    start.click(  # a second click takes the place of the first
        guarded(train), inputs, outputs, api_name="foundations_experts_train", trigger_mode="multiple", **quiet
    )
    tab.select(guarded(train_first), [done, *inputs], outputs, api_visibility="private", **quiet)
    quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", **blocks.LIGHT}
    stop.click(guarded(halt), None, None, **quick)
    gr.on([knob.input for knob in knobs], guarded(switch), knobs, None, trigger_mode="always_last", **quick)


def _switches() -> list[Any]:
    """What may be turned while it trains: experts a point, capacity, balance loss."""
    top = gr.Radio(
        [(label("one expert (top-1)"), 1), (label("two experts (top-2)"), 2)], value=1,
        label=label("Asked for a point"), elem_id="foundations-experts-top",
    )  # fmt: skip
    limited = gr.Checkbox(
        False, label=label("Experts have limited room"), container=False, elem_id="foundations-experts-limited"
    )
    capacity = gr.Slider(
        0.25, 4, 1, step=0.05, label=label("Capacity factor: room of an expert, in even shares"),
        elem_id="foundations-experts-capacity",
    )  # fmt: skip
    balanced = gr.Checkbox(True, label=label("Balance loss"), container=False, elem_id="foundations-experts-balanced")
    balance = gr.Slider(
        0, 1, 0.05, step=0.01, label=label("Weight of the balance loss"), elem_id="foundations-experts-balance"
    )
    return [top, limited, capacity, balanced, balance]


def _sizes() -> list[Any]:
    """What a training begins with: experts, hidden units of each, steps and seed."""
    experts = gr.Slider(2, 8, 4, step=1, label=label("Experts"), elem_id="foundations-experts-experts")
    hidden = gr.Slider(2, 32, 8, step=1, label=label("Hidden units of an expert"), elem_id="foundations-experts-hidden")
    steps = gr.Slider(100, 5000, 800, step=100, label=label("Steps"), elem_id="foundations-experts-steps")
    seed = gr.Number(0, precision=0, minimum=0, label=label("Seed"), elem_id="foundations-experts-seed")
    return [experts, hidden, steps, seed]
