"""Operate: change the routers, and see two texts from one seed and what the change costs on the same text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import gradio as gr

from pipelines.common.errors import UserError
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say
from pipelines.ui.turns import Turn, Turns

from . import examples_page as examples
from . import operate_view as view
from . import traces_page as traces
from .checks import check_text
from .config import MoeConfig
from .contract import RouterChange, TextEvent, TextRequest
from .pipeline import entry, load, steps
from .running_page import EVERY, TEXT, silence

QUICK: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "trigger_mode": "always_last"}
CONTROLS = {"none": "The model's own", "random": "Random", "hash": "Hash table"}
USUAL_BAN = ("1", "2")  # what the page begins with: enough to be seen


reading, writing = Turns(), Turns()


def halt(request: gr.Request) -> None:
    """End what the visitor's page is doing."""
    reading.halt(request.session_hash)
    writing.halt(request.session_hash)


# --- the change ------------------------------------------------------------------------------------------------------


def changed(
    config: MoeConfig, layers: list[str] | None, ban: list[str] | None, force: list[str] | None, active: float,
    temperature: float, control: str, seed: float,
) -> RouterChange:  # fmt: skip
    """The widgets' values as a change. layers: numbers from 1, none for all; ban, force: experts from 1.

    UserError: a number that is none, or a layer or expert that is not there.
    """
    where = _numbers(layers, config.layers) or range(config.layers)
    number = int(active or 0)
    return RouterChange(
        frozenset((layer, expert) for layer in where for expert in _numbers(ban, config.experts)),
        frozenset((layer, expert) for layer in where for expert in _numbers(force, config.experts)),
        None if number == config.active else number,
        float(temperature or 0), control, _seed(seed),  # type: ignore[arg-type]
    )  # fmt: skip


def _numbers(chosen: list[str] | None, most: int) -> list[int]:
    """Values of a list, counted from 1 there and from 0 here."""
    found = sorted({int(value) - 1 if str(value).isdecimal() else -1 for value in chosen or []})
    if found and not 0 <= found[0] <= found[-1] < most:
        raise UserError("Choose layers and experts in the lists.")
    return found


def _seed(seed: float | None) -> int:
    if seed is None or not 0 <= seed < 2**53:
        raise UserError("The seed must be a whole number from 0 on.")
    return int(seed)


# --- what it does to a given text ------------------------------------------------------------------------------------


def measure(
    text: str, weights: str, layers: list[str], ban: list[str], force: list[str], active: float, temperature: float,
    control: str, seed: float, request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[str, str, str]]:  # fmt: skip
    """Read one text with the routers as they are, as you change them, and with a random and a hash router: bits per
    byte, divergence, and the share of choices that moved. Layers and experts are counted from 1; no layer means all."""
    with reading.take(request.session_hash) as turn:
        yield from _measured(turn, text, weights, (layers, ban, force, active, temperature, control, seed), request,
                             progress)  # fmt: skip


def _measured(
    turn: Turn, text: str, weights: str, widgets: tuple[Any, ...], request: gr.Request, progress: gr.Progress | None
) -> Iterator[tuple[str, str, str]]:  # fmt: skip
    from .insight import effects

    check_text(text or "", "text")
    blocks.announce(progress)
    speak, chosen = partial(say, request), entry(weights)
    backend = load(chosen, "local")
    change = changed(backend.config, *widgets)
    words = view.in_words(change, backend.config, speak)
    rows = [("own", change)]
    rows += [(name, RouterChange(control=name, seed=change.seed)) for name in ("random", "hash")]  # type: ignore[arg-type]
    found: list[tuple[str, str, Any]] = []
    with closing(effects(text or "", [each for _, each in rows], chosen.id)) as done:  # type: ignore[type-var]
        for (name, _), one in zip(rows, done, strict=True):
            found.append((speak(view.ROWS[name]), words if name == "own" else "", one))
            texts = traces.spelled(backend, one.plain.tokens) if name == "own" else None
            first = (view.verdict(one, words, speak), view.shaded(one, texts, speak)) if texts else (gr.skip(),) * 2
            yield first[0], view.table(found, speak), first[1]  # type: ignore[misc]
            if turn.halted:
                return


# --- two texts from one seed -----------------------------------------------------------------------------------------


def write(
    prompt: str, weights: str, layers: list[str], ban: list[str], force: list[str], active: float, temperature: float,
    control: str, seed: float, count: float, request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[str, str, str]]:  # fmt: skip
    """Write two texts from one prompt and one seed, with the routers as they are and as you change them. Layers and
    experts are counted from 1; no layer means all."""
    with writing.take(request.session_hash) as turn:
        yield from _written(turn, prompt, weights, (layers, ban, force, active, temperature, control, seed), count,
                            request, progress)  # fmt: skip


def _written(
    turn: Turn, prompt: str, weights: str, widgets: tuple[Any, ...], count: float, request: gr.Request,
    progress: gr.Progress | None,
) -> Iterator[tuple[str, str, str]]:  # fmt: skip
    blocks.announce(progress)
    speak, chosen = partial(say, request), entry(weights)
    config = load(chosen, "local").config
    change = changed(config, *widgets)
    titles = speak("As it is"), view.in_words(change, config, speak) or speak("Nothing is changed")
    asked = [
        TextRequest(prompt or "", chosen.id, max_new_tokens=int(count or 0), seed=change.seed, change=each)
        for each in (RouterChange(), change)
    ]
    shown, busy, told = ["", ""], [True, True], 0.0
    with ExitStack() as stack:
        both = [stack.enter_context(closing(steps(one))) for one in asked]
        while any(busy) and not turn.halted:
            for i, events in enumerate(both):
                event: TextEvent | None = next(events, None) if busy[i] else None
                if event is not None:
                    shown[i] = event.continuation
                busy[i] = event is not None and event.result is None
            if time.perf_counter() - told >= EVERY:
                told = time.perf_counter()
                sides = [view.side(titles[i], prompt or "", shown[i], busy[i]) for i in range(2)]
                yield sides[0], sides[1], ""
    if turn.replaced:
        yield silence(3)  # type: ignore[misc]
        return
    sides = [view.side(titles[i], prompt or "", shown[i], False) for i in range(2)]
    yield sides[0], sides[1], view.apart(shown[0], shown[1], speak)


def first(
    seen: bool, text: str, prompt: str, weights: str, layers: list[str], ban: list[str], force: list[str],
    active: float, temperature: float, control: str, seed: float, count: float, request: gr.Request,
    progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """Both with the example when the page is opened for the first time."""
    if seen:
        yield tuple(gr.skip() for _ in range(7))
        return
    widgets = (layers, ban, force, active, temperature, control, seed)
    same = (gr.skip(),) * 3
    with reading.take(request.session_hash) as turn:
        for found in _measured(turn, text, weights, widgets, request, progress):
            yield True, *found, *same
    if turn.halted:
        return
    with writing.take(request.session_hash) as turn:
        for sides in _written(turn, prompt, weights, widgets, count, request, None):
            yield True, *same, *sides


def choices(weights: str) -> tuple[Any, ...]:
    """Layers, experts and their usual number for other weights; what was chosen before may not be there."""
    config = traces.meant(weights)
    experts = _choices(config.experts)
    return (
        gr.update(choices=_choices(config.layers), value=[]), gr.update(choices=experts, value=list(USUAL_BAN)),
        gr.update(choices=experts, value=[]), gr.update(maximum=config.experts, value=config.active),
    )  # fmt: skip


def _choices(count: int) -> list[tuple[str, str]]:
    return [(str(number + 1), str(number + 1)) for number in range(count)]


# --- the page --------------------------------------------------------------------------------------------------------


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    gr.Markdown(
        label(
            "In every layer a router gives each token to a few experts. Change the routers, and see what becomes of "
            "the text: written twice from one seed, and read once more, with the change in bits per byte beside that "
            "of routers that know nothing."
        )
    )
    seen = gr.State(False)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            widgets = _pickers(traces.meant("auto"))
        with gr.Column(scale=3, min_width=420):
            text = gr.Textbox(
                traces.story(), lines=4, max_lines=8, label=label("The text that is read both ways"),
                elem_id="moe-operate-text",
            )  # fmt: skip
            button = gr.Button(label("Measure on this text"), elem_id="moe-operate-measure")
            verdict = gr.HTML(elem_id="moe-operate-verdict")
            table = gr.HTML(elem_id="moe-operate-table")
            with gr.Accordion(label("Which tokens it moves"), open=False):
                shaded = gr.HTML(elem_id="moe-operate-shaded")
    gr.Markdown(label("### Two texts from one seed"))
    with gr.Row():
        prompt = gr.Textbox(examples.stories()[0], label=label("Prompt"), scale=4, elem_id="moe-operate-prompt")
        count = gr.Slider(10, 300, 100, step=10, label=label("New tokens"), scale=2, elem_id="moe-operate-count")
        with gr.Column(scale=1, min_width=140):
            write_both = gr.Button(label("Write both"), variant="primary", elem_id="moe-operate-run")
            stop = gr.Button(label("Stop"), elem_id="moe-operate-stop")
    apart = gr.HTML(elem_id="moe-operate-apart")
    with gr.Row():
        plain, other = gr.HTML(elem_id="moe-operate-plain"), gr.HTML(elem_id="moe-operate-changed")
    _wire(tab, switches, seen, widgets, (text, button, verdict, table, shaded),
          (prompt, count, write_both, stop, plain, other, apart))  # fmt: skip


def _pickers(config: MoeConfig) -> list[Any]:
    """The widgets that make a change, in the order of `changed`."""
    experts = _choices(config.experts)
    ban = gr.CheckboxGroup(experts, value=list(USUAL_BAN), label=label("Ban experts"), elem_id="moe-operate-ban")
    force = gr.CheckboxGroup(experts, value=[], label=label("Force experts"), elem_id="moe-operate-force")
    layers = gr.CheckboxGroup(
        _choices(config.layers), value=[], label=label("Ban and force in these layers (none means all)"),
        elem_id="moe-operate-layers",
    )  # fmt: skip
    active = gr.Slider(
        1, config.experts, config.active, step=1, label=label("Experts that work for a token"),
        elem_id="moe-operate-active",
    )  # fmt: skip
    temperature = gr.Slider(
        0.1, 10, 1, step=0.1, label=label("Temperature of the router: who is chosen stays, how they share does not"),
        elem_id="moe-operate-temperature",
    )  # fmt: skip
    control = gr.Radio(
        [(label(title), name) for name, title in CONTROLS.items()], value="none", label=label("Router"),
        elem_id="moe-operate-control",
    )  # fmt: skip
    seed = gr.Number(0, precision=0, label=label("Seed"), elem_id="moe-operate-seed")
    for picker in (layers, ban, force, active):
        blocks.any_value(picker)
    return [layers, ban, force, active, temperature, control, seed]


def _wire(
    tab: gr.Tab, switches: blocks.Switches, seen: gr.State, widgets: list[Any], above: tuple[Any, ...],
    below: tuple[Any, ...],
) -> None:  # fmt: skip
    text, button, *measured = above
    prompt, count, write_both, stop, *sides = below
    asked = [text, switches.weights, *widgets]
    button.click(guarded(measure), asked, measured, api_name="moe_measure", **blocks.HEAVY)
    layers, ban, force, active, temperature, control, _ = widgets
    moves = [layers.input, ban.input, force.input, active.release, temperature.release, control.input]
    quietly: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", **blocks.LIGHT}
    gr.on(moves, guarded(measure), asked, measured, **QUICK, **blocks.HEAVY)
    write_both.click(guarded(write), [prompt, switches.weights, *widgets, count], sides, api_name="moe_operate", **TEXT)
    stop.click(guarded(halt), None, None, **quietly)
    opened = tab.select(
        guarded(first), [seen, text, prompt, switches.weights, *widgets, count], [seen, *measured, *sides],
        **QUICK, **TEXT,
    )  # fmt: skip
    switches.refresh(opened)
    switches.weights.change(guarded(choices), switches.weights, [layers, ban, force, active], **quietly)
