"""The clock of a stream: which chunk a frame belongs to, which frames are too late, and who waits for whom."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pipelines.common.errors import UserError

from .config import CHUNKS_PER_SECOND

# Seconds by which a time may lie before the last one and be a frame that came late; further back the clock has begun
# anew, as when a video is played again.
LATE = 1.0
_ROUNDING = 1e-6  # seconds: 0.3 belongs to the fourth chunk, though 0.3 * 10 is a little less than 3


def seconds(timestamp: Any) -> float:
    """A time as a finite float. UserError: it is none."""
    number = isinstance(timestamp, int | float | np.number) and not isinstance(timestamp, bool)
    if not number or not math.isfinite(timestamp):
        raise UserError("The time of a frame must be a number of seconds, and a finite one.")
    return float(timestamp)


class ChunkClock:
    """Numbers the chunks of one stream, from its first frame on.

    chunk: of the newest frame, None before the first. late: how many chunks were answered more than a chunk's length
    after their end, by `now`, which counts seconds; a stream that is read faster than it was filmed is never late.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self.late = 0
        self.reset()

    def reset(self) -> None:
        """Forget the stream; what was late stays counted."""
        self.chunk: int | None = None
        self._start = self._last = -math.inf
        self._offset = math.inf

    def behind(self, timestamp: float) -> bool:
        """Whether the frame repeats a time or came after a newer one, and is to be passed over."""
        return self._last - LATE <= timestamp <= self._last

    def begins_anew(self, timestamp: float) -> bool:
        """Whether the time lies so far back that another stream begins."""
        return timestamp < self._last - LATE

    def chunk_of(self, timestamp: float) -> int:
        """The chunk of a time. The first time asked for begins the stream."""
        if self.chunk is None:
            self._start = timestamp
        return math.floor((timestamp - self._start + _ROUNDING) * CHUNKS_PER_SECOND)

    def came(self, timestamp: float) -> None:
        """A frame of this time is here, and nothing was done with it yet."""
        # The frame that came soonest after it was filmed tells how the two clocks lie.
        self._offset = min(self._offset, self._now() - timestamp)

    def advance(self, timestamp: float) -> None:
        """A frame of this time was looked at."""
        self.chunk = self.chunk_of(timestamp)
        self._last = timestamp

    def end_of(self, chunk: int) -> float:
        """Seconds of the stream's clock."""
        return self._start + (chunk + 1) / CHUNKS_PER_SECOND

    def answered(self, chunk: int) -> None:
        """The answer behind a chunk is there: count it if it is late."""
        if self._now() - self._offset - self.end_of(chunk) > 1 / CHUNKS_PER_SECOND:
            self.late += 1


class NewestFirst:
    """Serves one caller at a time. While one is served, only the newest of those who come waits; whom it replaces is
    sent away, so that there is never a backlog, however slow the machine is."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy = False
        self._newest = 0

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Waits for its turn; false if a newer caller came while it waited."""
        with self._changed:
            self._newest += 1
            mine = self._newest
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._busy or mine != self._newest)
            served = mine == self._newest
            self._busy = self._busy or served
        try:
            yield served
        finally:
            if served:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()
