"""A text that is being written, on a page: its progress, its end, and what the page shows of it."""

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
from pipelines.common.limits import limits
from pipelines.ui.i18n import say
from pipelines.ui.shelf import Shelf
from pipelines.ui.turns import Turn, Turns

from . import view
from .contract import RoutingTrace, TextRequest, TextResult
from .insight import traced
from .pipeline import entry, load, steps

# Not in the queue of the other models: a long answer would keep it for minutes. Every token waits for the device alone.
TEXT: dict[str, Any] = {"concurrency_id": "text", "concurrency_limit": 4}
EVERY = 0.06  # seconds between two looks at the text, at least
LOOK = 2.0  # seconds that a text which was stopped may be read once more for its experts, about
PENDING = "pending"  # the ticket while a text is being written

turns = Turns()


@dataclass
class Written:
    """A text that is being written or was. text: what is new so far. texts: of each token of the trace."""

    request: TextRequest
    text: str = ""
    tokens: int = 0
    seconds: float = 0.0  # since the first new token
    result: TextResult | None = None
    trace: RoutingTrace | None = None
    texts: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        held = (self.trace.logits, self.trace.experts, self.trace.weights) if self.trace is not None else ()
        return sum(array.nbytes for array in held) + 200 * len(self.texts)


@cache
def shelf() -> Shelf:
    """Where the texts of all visitors are kept."""
    return Shelf(limits().traces_mb * 1_000_000)


def kept(ticket: str | None) -> Written:
    """The text behind a ticket. UserError: it had to make room."""
    run = shelf().get(ticket)
    if run is None:
        raise UserError("This text had to make room for others; write it again.")
    return cast(Written, run)


def follow(run: Written, session: str | None) -> Iterator[bool]:
    """Write. Yields when there is something new to show: False, and True once at the end, unless another run of the
    visitor has taken the page. Leaving the iteration stops the work."""
    shown, first = 0.0, 0.0
    with turns.take(session) as turn, closing(steps(run.request)) as events:
        for event in events:
            now = time.perf_counter()
            first = first or (now if event.tokens else 0.0)
            run.text, run.tokens, run.result = event.continuation, event.tokens, event.result
            run.seconds = now - first if first else 0.0
            if turn.halted or event.result is not None:
                break
            if now - shown >= EVERY:
                shown = now
                yield False
        if not turn.replaced:
            yield from _look_inside(run, turn)
        if turn.replaced:
            return
    yield True


def _look_inside(run: Written, turn: Turn) -> Iterator[bool]:
    """Keep which experts worked. A text that was stopped is read once more for it, if that is soon done; yields False
    after each part of it."""
    if run.request.backend != "local":
        return
    weights = run.request.weights if run.result is None else run.result.weights
    tokenizer = load(entry(weights), "local").tokenizer
    if run.result is not None:
        run.trace = run.result.trace
    elif run.tokens and not run.request.messages:
        yield from _read_again(run, turn)
        if run.trace is not None:
            sizes = np.cumsum([len(tokenizer.piece(int(number))) for number in run.trace.tokens])
            given = int(np.searchsorted(sizes, len(run.request.prompt.encode()), side="right"))
            run.trace = replace(run.trace, prompt=given)
    if run.trace is not None:
        run.texts = view.spelled([tokenizer.piece(int(number)) for number in run.trace.tokens])
        begin = tuple(tokenizer.begin)
        if begin and tuple(run.trace.tokens[: len(begin)].tolist()) == begin:
            run.texts[: len(begin)] = [view.BEGIN] * len(begin)


def _read_again(run: Written, turn: Turn) -> Iterator[bool]:
    """Leaves no trace of a text that is too long for it, or would take longer than `LOOK`."""
    start = time.perf_counter()
    try:
        with closing(traced(run.request.prompt + run.text, run.request.weights)) as parts:  # type: ignore[type-var]
            for share, run.trace in parts:
                if turn.replaced or (share < 1 and time.perf_counter() - start > LOOK):
                    return
                if run.trace is None:
                    yield False
    except UserError:
        return


def summary(run: Written, say: view.Say) -> str:
    """How much was written, how fast, and why it ended."""
    result = run.result
    rate = result.tokens_per_second if result is not None else run.tokens / run.seconds if run.seconds else 0.0
    text = say("{n} tokens, {rate} tokens a second.", n=run.tokens, rate=f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}")
    if result is None:
        return text
    why = {
        "end": say("The model ended the text."),
        "stop": say("A stop string came."),
        "length": say("As many tokens as were asked for."),
        "context": say("The model's context is full."),
    }[result.finish]
    return f"{text} {why}"


def _layer(layer: float, layers: int) -> int:
    """Counted from 1; that of other weights may not be there."""
    return min(max(int(layer or 1), 1), layers)


def drawn(run: Written, layer: float, numbered: bool, picked: int | None, say: view.Say) -> tuple[str, str, str]:
    """Text, legend, and the token that was picked."""
    if run.trace is None:
        inside = say("Which experts worked is known for our own network only; choose “Rebuilt here” above.")
        missing = "" if run.request.backend == "local" else view.note(inside)
        return view.writing(run.request.prompt, run.text, busy=False), missing, ""
    place = _layer(layer, run.trace.logits.shape[0]) - 1
    kept = picked if picked is not None and 0 <= picked < len(run.texts) else None
    text = view.tokens(run.trace, run.texts, place, kept, numbered, say)
    token = "" if kept is None else view.detail(run.trace, run.texts, kept, place, say)
    return text, view.legend(run.trace, place, say), token


def show(run: Written, done: bool, layer: float, numbered: bool, request: gr.Request) -> tuple[Any, ...]:
    """Ticket, picked token, layer, text, legend, detail and summary."""
    speak = partial(say, request)
    if not done:
        told = view.note(summary(run, speak) if run.tokens else speak("Reading the prompt …"))
        # A chat's answer grows in the chat.
        text = "" if run.request.messages else view.writing(run.request.prompt, run.text)
        return PENDING, None, gr.skip(), text, "", "", told
    stopped = speak("Stopped.") + " " if run.result is None else ""
    ticket = shelf().put(run, run.nbytes)
    known = gr.skip()
    if run.trace is not None:  # other weights may have fewer layers, and the slider may have been moved meanwhile
        layers = run.trace.logits.shape[0]
        known = gr.update(maximum=layers, value=_layer(layer, layers))
    return ticket, None, known, *drawn(run, layer, numbered, None, speak), view.note(stopped + summary(run, speak))


def silence(count: int) -> tuple[Any, ...]:
    """The last word of a run that has lost its page: gradio shows what a generator yielded last once more when it
    ends, over what is there by then."""
    return tuple(gr.skip() for _ in range(count))


def halt(request: gr.Request) -> None:
    """End the visitor's run after the token that it is at."""
    turns.halt(request.session_hash)
