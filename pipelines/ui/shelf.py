"""What visitors' pages come back to, such as a replayed run: all of it together within a budget, oldest use goes first.

A session's `gr.State` holds only the ticket. Gradio keeps the state of closed sessions for an hour, so that large
values in it would add up.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from typing import Any


class Shelf:
    """A bounded store. budget: in bytes, as the callers count them."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._lock = threading.Lock()
        self._held: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def put(self, value: Any, size: int) -> str:
        """Keep a value of `size` bytes; returns its ticket. The newest is kept even if it alone is over the budget."""
        ticket = secrets.token_urlsafe(16)
        with self._lock:
            self._held[ticket] = (value, size)
            while len(self._held) > 1 and sum(held for _, held in self._held.values()) > self.budget:
                self._held.popitem(last=False)
        return ticket

    def get(self, ticket: str | None) -> Any:
        """The value, or None if the ticket is none or the value had to make room."""
        with self._lock:
            if ticket is None or ticket not in self._held:
                return None
            self._held.move_to_end(ticket)
            return self._held[ticket][0]

    def drop(self, ticket: str | None) -> None:
        """Forget a value, if it is still here."""
        with self._lock:
            self._held.pop(ticket or "", None)
