"""A picture that is being drawn, on a page: whose turn it is, its progress, its end, and where its result is kept."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

import gradio as gr
import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.limits import limits
from pipelines.ui.shelf import Shelf
from pipelines.ui.turns import Turns

from .contract import DiffusionEvent, DiffusionResult, RaceEvent

EVERY = 0.06  # seconds between two looks at the picture, at least
PENDING = "pending"  # the ticket while a picture is being drawn
GONE = "This picture had to make room for others; draw it again."

Event = TypeVar("Event")


@dataclass(frozen=True)
class Seen(Generic[Event]):
    """One event of a run, as a page gets it.

    event: None only where a run was halted before its first one. due: whether it is time to show something again.
    ended: the run is over; nothing follows. halted: it was stopped before its own end. seconds: since the run began.
    """

    event: Event | None
    due: bool = True
    ended: bool = False
    halted: bool = False
    seconds: float = 0.0


def follow(events: Generator[Event, None, None], session: str | None, turns: Turns) -> Iterator[Seen[Event]]:
    """Every event of a run, and once at the end the last one again with `ended`, unless another run of the visitor has
    taken the page. Leaving the iteration stops the work before its next step. `halt` ends the run after its step.

    turns: of the page, so that one page's run does not end another's.
    """
    start, shown, event, halted = time.perf_counter(), 0.0, None, False
    with turns.take(session) as turn, closing(events):
        for event in events:
            now = time.perf_counter()
            if turn.halted:
                halted = not _finished(event)
                break
            due = now - shown >= EVERY
            shown = now if due else shown
            yield Seen(event, due, seconds=now - start)
        if turn.replaced:
            return
    yield Seen(event, ended=True, halted=halted, seconds=time.perf_counter() - start)


def _finished(event: Any) -> bool:
    """Whether a run had come to its own end when it was halted."""
    if isinstance(event, RaceEvent):
        return bool(event.lanes) and all(lane.done for lane in event.lanes)
    return isinstance(event, DiffusionEvent) and event.result is not None


def silence(count: int) -> tuple[Any, ...]:
    """The last word of a run that has lost its page: gradio shows what a generator yielded last once more when it
    ends, over what is there by then."""
    return tuple(gr.skip() for _ in range(count))


# --- what is kept ----------------------------------------------------------------------------------------------------


@cache
def shelf() -> Shelf:
    """Where the drawn pictures, runs and trees of all visitors are kept."""
    return Shelf(limits().traces_mb * 1_000_000)


def keep(result: DiffusionResult) -> str:
    """Put a drawn picture away; returns its ticket."""
    return shelf().put(result, nbytes(result))


def kept(ticket: str | None) -> DiffusionResult:
    """The picture behind a ticket. UserError: it had to make room."""
    result = shelf().get(ticket)
    if not isinstance(result, DiffusionResult):
        raise UserError(GONE)
    return result


def nbytes(result: DiffusionResult) -> int:
    """Bytes of all that a result holds."""
    request, history = result.request, result.history
    held: list[np.ndarray | None] = [result.image, request.image, request.mask]
    if request.start is not None:
        held += [request.start.latents, request.start.memory]
    if history is not None:
        held += [history.latents, history.clean, history.timesteps, *history.memory]
    return sum(array.nbytes for array in held if array is not None)
