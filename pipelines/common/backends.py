"""Models are loaded on first use, shared by all visitors, and dropped least recently used first when memory is short.

Nothing about a visitor may be kept on what is stored here.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from .limits import limits


@dataclass
class _Slot:
    lock: threading.Lock = field(default_factory=threading.Lock)
    value: Any = None
    loaded: bool = False
    size: int = 0


class Backends:
    """A cache of loaded models with a memory budget in bytes.

    Two callers who want the same model at once wait for one load; different models load side by side. A dropped model
    lives on in the calls that still hold it.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._slots: OrderedDict[Hashable, _Slot] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, load: Callable[[], Any], size: int) -> Any:
        """The model under `key`, loaded by `load` if need be. `size` in bytes counts against the budget.

        What `load` raises is passed on, and the next caller tries again.
        """
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
        with slot.lock:
            if not slot.loaded:
                slot.value = load()
                slot.loaded, slot.size = True, size
                self._make_room(key)
            return slot.value

    def _make_room(self, keep: Hashable) -> None:
        with self._lock:
            total = sum(slot.size for slot in self._slots.values() if slot.loaded)
            for key, slot in list(self._slots.items()):
                if total <= self.budget:
                    return
                if key != keep and slot.loaded:
                    del self._slots[key]
                    total -= slot.size

    def loaded(self) -> list[Hashable]:
        """Keys in memory, least recently used first."""
        with self._lock:
            return [key for key, slot in self._slots.items() if slot.loaded]


_steps: dict[str, threading.Lock] = {}
_steps_guard = threading.Lock()


@contextmanager
def step(device: str) -> Iterator[None]:
    """One step of heavy work on a device at a time: two side by side would only share the same cores."""
    with _steps_guard:
        lock = _steps.setdefault(device, threading.Lock())
    with lock:
        yield


@cache
def shared() -> Backends:
    """The one cache of this process."""
    return Backends(limits().memory_mb * 1_000_000)
