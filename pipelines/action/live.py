"""The streams that visitors' pages feed, frame by frame: how many at once, for how long, and what is left afterwards.

A page names its stream by a ticket that nobody can guess. Frames of one stream are looked at one after another, and
while one is, only the newest of the others waits. What a stream saw (poses and answers, never pictures) can be looked
back at until its place is needed.
"""

from __future__ import annotations

import base64
import binascii
import io
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipelines.common.errors import UserError
from pipelines.common.limits import limits

from .clock import NewestFirst
from .contract import Update
from .pipeline import Moment, PoseStream, Stream, open_stream
from .teach import Lesson

KEPT = 600  # chunks of a stream that can be looked back at: a minute
IDLE = 30.0  # seconds without a frame after which a place is given to somebody else
PAST = 24  # streams that are over and can still be looked back at
PIXELS, CODED = 1280 * 960, 1_500_000  # of a frame, and characters of its coding
OVER = "This stream is over; start it again."


@dataclass
class Look:
    """What came of a frame. served: false if a newer one was looked at in its place. pose: (33, 4) of the frame or
    None. update: if it completed a chunk. waited: seconds for the stream's own turn. decoded: seconds for reading the
    picture. seconds: of all of it."""

    served: bool
    pose: np.ndarray | None = None
    update: Update | None = None
    waited: float = 0.0
    decoded: float = 0.0
    seconds: float = 0.0


@dataclass
class Seat:
    """One visitor's stream. past: what is left when it is over."""

    stream: Stream
    opened: float
    used: float
    turns: NewestFirst = field(default_factory=NewestFirst)
    lock: threading.Lock = field(default_factory=threading.Lock)  # held by whoever uses the stream
    past: list[Moment] = field(default_factory=list)


class Live:
    """All streams that are fed at the moment. now: seconds, for tests."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._lock = now, threading.Lock()
        self._seats: OrderedDict[str, Seat] = OrderedDict()

    def open(self, lessons: tuple[Lesson, ...] = (), **options: Any) -> str:
        """A new stream's ticket. options: as of `open_stream`. UserError: all places are taken, or as there."""
        self._check_room()
        stream = open_stream(keep=KEPT, **options)
        # The networks are loaded by the first frame; a clip that is played meanwhile would be over.
        stream.push(np.zeros((48, 64, 3), np.uint8), 0.0)
        stream.finish()
        stream.past.clear()
        if lessons and isinstance(stream, PoseStream):
            stream.learn(lessons)
        with self._lock:
            self._check_room_locked()
            ticket = secrets.token_urlsafe(16)
            self._seats[ticket] = Seat(stream, self._now(), self._now())
            return ticket

    def look(self, ticket: Any, coded: Any, timestamp: Any, threshold: float | None = None) -> Look:
        """One frame of a stream, JPEG, PNG or WebP as base64, and its time. UserError: the stream is over, the frame
        cannot be read, or as of `Stream.push`."""
        start = time.perf_counter()
        seat = self._seat(ticket)
        with seat.turns.turn() as served:
            waited = time.perf_counter() - start
            if not served:
                seat.stream.dropped += 1
                return Look(False, waited=waited, seconds=time.perf_counter() - start)
            frame = read(coded)
            decoded = time.perf_counter() - start - waited
            with seat.lock:
                if threshold is not None:
                    seat.stream.call_at(threshold)
                update = seat.stream.push(frame, timestamp)
                return Look(True, seat.stream.pose, update, waited, decoded, time.perf_counter() - start)

    def finish(self, ticket: Any) -> Update | None:
        """The stream has ended: its last answer. What it saw can be looked back at."""
        with self._lock:
            seat = self._seats.get(ticket) if isinstance(ticket, str) else None
        return None if seat is None else self._end(seat, answered=True)

    def past(self, ticket: Any) -> tuple[Stream, list[Moment]] | None:
        """What a stream saw up to now, or up to its end: None if there is no such stream any more."""
        with self._lock:
            seat = self._seats.get(ticket) if isinstance(ticket, str) else None
        if seat is None:
            return None
        seen = list(seat.stream.past)  # before it is asked whether it is over, as its end takes this away
        return seat.stream, list(seat.past) if seat.stream.closed else seen

    def learn(self, ticket: Any, lessons: tuple[Lesson, ...]) -> None:
        """A stream that goes on looks for these actions from now on. UserError: made with other weights."""
        with self._lock:
            seat = self._seats.get(ticket) if isinstance(ticket, str) else None
        if seat is not None and isinstance(seat.stream, PoseStream):
            with seat.lock:
                if not seat.stream.closed:
                    seat.stream.learn(lessons)

    def drop(self, ticket: Any) -> None:
        """Forget a stream and all that it saw."""
        with self._lock:
            seat = self._seats.pop(ticket, None) if isinstance(ticket, str) else None
        if seat is not None:
            with seat.lock:
                seat.stream.close()
                seat.past.clear()

    def __len__(self) -> int:
        """How many are fed at the moment."""
        with self._lock:
            return sum(not seat.stream.closed for seat in self._seats.values())

    def _seat(self, ticket: Any) -> Seat:
        with self._lock:
            seat = self._seats.get(ticket) if isinstance(ticket, str) else None
            if seat is None or seat.stream.closed:
                raise UserError(OVER)
            seat.used = self._now()
        most = limits().stream_seconds
        if seat.used - seat.opened > most:
            self._end(seat)
            raise UserError(f"A stream is followed for {most // 60} minutes; start it again.")
        return seat

    def _check_room(self) -> None:
        with self._lock:
            self._check_room_locked()

    def _check_room_locked(self) -> None:
        now, fed = self._now(), 0
        for seat in self._seats.values():
            idle = now - seat.used > IDLE and not seat.lock.locked()  # whose frame is looked at, however long, stays
            if not seat.stream.closed and idle:
                self._end(seat)
            fed += not seat.stream.closed
        ended = [ticket for ticket, seat in self._seats.items() if seat.stream.closed]
        for ticket in ended[: max(0, len(ended) - PAST)]:
            del self._seats[ticket]
        if fed >= limits().live_streams:
            raise UserError(f"All {fed} places for live streams are taken at the moment; try again in a minute.")

    @staticmethod
    def _end(seat: Seat, answered: bool = False) -> Update | None:
        """Close a stream, once its frame is looked at. answered: the chunk that was begun gets its answer first."""
        with seat.lock:
            if seat.stream.closed:
                return None
            update = seat.stream.finish() if answered else None
            seat.past = list(seat.stream.past)
            seat.stream.close()
            return update


def read(coded: Any) -> np.ndarray:
    """A frame as a page sends it, with or without the head of a data address -> (H, W, 3) uint8 RGB.

    UserError: it is too large, or no picture.
    """
    if not isinstance(coded, str) or not coded:
        raise UserError("The frame could not be read; start the stream again.")
    if len(coded) > CODED:
        raise UserError("The frames are too large; let the camera take smaller ones.")
    try:
        data = base64.b64decode(coded.partition(",")[2] or coded, validate=True)
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as picture:
            if picture.width * picture.height > PIXELS:
                raise UserError("The frames are too large; let the camera take smaller ones.")
            return np.ascontiguousarray(picture.convert("RGB"))
    except (
        binascii.Error,
        UnidentifiedImageError,
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as e:
        raise UserError("The frame could not be read; start the stream again.") from e
