"""One long run at a time for each visitor, and a Stop that ends it.

gradio's own cancelling at times shows "Error" on the page and loses what was there already; a run that looks at its
turn between two steps ends of itself, with a last word.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PATIENCE = 5.0  # seconds


@dataclass
class Turn:
    """A run's right to go on. about: what it works on, if that matters. halted: it shall end. replaced: the page is not
    its own any more, so that it has no last word: another run of the visitor has it, or it was cleared. over: set once
    the run has ended."""

    about: str = ""
    halted: bool = False
    replaced: bool = False
    over: threading.Event = field(default_factory=threading.Event)


class Turns:
    """The runs of all visitors on one page."""

    def __init__(self) -> None:
        self._running: dict[str, Turn] = {}
        self._lock = threading.Lock()

    @contextmanager
    def take(self, session: str | None, about: str = "") -> Iterator[Turn]:
        """The turn of a visitor's new run; the run before it is halted and replaced. Over with the context."""
        turn, key = Turn(about), session or ""
        with self._lock:
            if (before := self._running.get(key)) is not None:
                before.halted = before.replaced = True
            self._running[key] = turn
        try:
            yield turn
        finally:
            turn.over.set()
            with self._lock:
                if self._running.get(key) is turn:
                    del self._running[key]

    def halt(self, session: str | None, keep: str | None = None, clear: bool = False) -> None:
        """End the visitor's run, unless it works on `keep`. clear: without a last word, the page is cleared.

        To clear is to wait for the run's end, up to `PATIENCE`: what it yielded just before is on its way to the page,
        and would be drawn over the empty one.
        """
        with self._lock:
            turn = self._running.get(session or "")
            if turn is None or (keep is not None and turn.about == keep):
                return
            turn.halted, turn.replaced = True, turn.replaced or clear
        if clear:
            turn.over.wait(PATIENCE)

    def __len__(self) -> int:
        """How many visitors have a run."""
        with self._lock:
            return len(self._running)
