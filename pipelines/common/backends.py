"""Models are loaded on first use, shared by all visitors, and dropped least recently used first when memory is short.

Nothing about a visitor may be kept on what is stored here.
"""

from __future__ import annotations

import importlib
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from .device import pick
from .errors import UserError
from .limits import limits

if TYPE_CHECKING:
    from .catalogue import Entry

Backend = Literal["local", "reference"]
BACKENDS: tuple[Backend, ...] = ("local", "reference")


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


class FairLock:
    """A lock that serves in the order of arrival: an ordinary one may hand itself to the same busy thread for long."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._taken = False

    def __enter__(self) -> None:
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            turn = threading.Event()
            self._waiting.append(turn)
        turn.wait()  # who leaves hands the lock over: it is never free in between

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._taken = False

    def locked(self) -> bool:
        return self._taken


_steps: dict[str, FairLock] = {}
_steps_guard = threading.Lock()


@contextmanager
def step(device: str) -> Iterator[None]:
    """One step of heavy work on a device at a time: two side by side would only share the same cores."""
    with _steps_guard:
        lock = _steps.setdefault(device, FairLock())
    with lock:
        yield


@cache
def shared() -> Backends:
    """The one cache of this process."""
    return Backends(limits().memory_mb * 1_000_000)


def check(backend: Any) -> None:
    """UserError unless this is the name of an implementation."""
    if backend not in BACKENDS:
        raise UserError(f"There is no implementation called “{str(backend)[:60]}”; choose local or reference.")


def implementation(package: str, entry: Entry, backend: Backend) -> Any:
    """The shared object over one checkpoint, loaded on first use by `load(entry, device)` of the pipeline's module of
    that name, local.py or reference.py. package: of the pipeline, such as pipelines.face.

    UserError: there is no such implementation, or what `load` says.
    """
    check(backend)
    module = importlib.import_module(f".{backend}", package)
    device = pick().device
    # Half the digits on disk are often twice the memory: such an entry says so itself.
    told = int(entry.facts.get("memory_megabytes", 0)) * 1_000_000
    size = told or entry.size or int(entry.facts.get("megabytes", 100)) * 1_000_000
    return shared().get((package, backend, entry.id, device), lambda: module.load(entry, device), size)
