"""Opens streams: checks what is asked for, picks the backend, keeps what a stream remembers. What the tab, the bench,
the tests and other programs call.

Letters: T past chunks, F future chunks, C classes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pipelines.common import backends, catalogue
from pipelines.common.backends import Backend
from pipelines.common.checkpoint import locate
from pipelines.common.device import pick
from pipelines.common.errors import UserError
from pipelines.common.images import check_array
from pipelines.common.video import Frame, Video

from .clock import ChunkClock, seconds
from .config import BACKGROUND, BRAINS
from .contract import LANDMARKS, Answer, Stage, StreamOptions, Update
from .features import ASPECT, JOINTS, FeatureStream, joints_of
from .hysteresis import Hysteresis
from .pose_tracker import Tracker
from .teach import Lesson, Pupil

ROLE = "brain"
ARCHITECTURES: dict[Backend, str] = {"local": "oadtr", "reference": "videomae"}
# A gap of more chunks says no more than one of so many: nobody was seen for longer than any window reaches back.
LONGEST_GAP = 64
MOST_CHUNKS = 36_000  # an hour's: what a stream may be asked to keep


@dataclass(frozen=True)
class Moment:
    """One chunk of a stream's past: what was said behind it, and its features (in_features,), None of a reference."""

    update: Update
    features: np.ndarray | None


def open_stream(weights: str = "auto", backend: Backend = "local", keep: int = 0, **options: Any) -> Stream:
    """A stream to push frames or poses into; close it, or use it in a `with`. Belongs to one visitor and one thread.

    weights, backend and the options: as in `StreamOptions`. keep: so many of the newest chunks are kept in
    `stream.past`. UserError: a value is out of range, or the weights are not on this machine.
    """
    try:
        asked = StreamOptions(weights=weights, backend=backend, **options)
    except TypeError as error:
        raise UserError(f"A stream has no such option: {str(error).rpartition(' ')[2]}.") from error
    check(asked)
    if not _whole(keep, 0, MOST_CHUNKS):
        raise UserError(f"A stream can keep 0 to {MOST_CHUNKS} chunks.")
    entry = resolve(asked.weights, asked.backend)
    loaded = load(entry, asked.backend)
    stream = PoseStream if asked.backend == "local" else ClipStream
    return stream(asked, entry, loaded, int(keep))


def watch(video: Video | str | Path, stream: Stream) -> Iterator[tuple[Frame, Update | None]]:
    """Every frame of a video, which may be a file's path, and the answer that it completed. The stream is left open;
    its last chunk is answered with the last frame. UserError: as of the video and of `push`."""
    if not isinstance(video, Video):
        with Video(video) as opened:
            yield from watch(opened, stream)
        return
    last: tuple[Frame, Update | None] | None = None
    for frame in video.every():
        if last is not None:
            yield last
        last = frame, stream.push(frame.pixels, frame.seconds)
    if last is not None:
        yield last[0], last[1]
        ended = stream.finish()
        if ended is not None:
            yield last[0], ended


def resolve(weights: str = "auto", backend: Backend = "local") -> catalogue.Entry:
    """The entry that is meant. "auto" is the first on this machine that the backend can run. UserError: there is none,
    or it is the other backend's."""
    backends.check(backend)
    kind = ARCHITECTURES[backend]
    if weights == "auto":
        known = [entry for entry in catalogue.entries("action", ROLE) if entry.architecture == kind]
        for entry in known:
            if locate(entry) is not None:
                return entry
        if backend == "reference":
            named = f"“{known[0].title}” is" if known else "Its weights are"
            raise UserError(f"{named} not on this machine: fetch it under Weights first, or choose local.")
        raise UserError("None of these weights is on this machine; fetch one under Weights first.")
    entry = catalogue.resolve("action", str(weights), ROLE)
    if entry.architecture != kind:
        other = "reference" if backend == "local" else "local"
        raise UserError(f"“{entry.title}” runs with the other implementation only: choose {other}, or other weights.")
    return entry


def usual_threshold(entry: catalogue.Entry) -> float:
    """The probability at which an action begins that suits these weights."""
    return float(entry.facts.get("threshold", 0.5))


def load(entry: catalogue.Entry, backend: Backend) -> Any:
    """The shared backend object over one checkpoint, loaded on first use."""
    assert __package__ is not None
    return backends.implementation(__package__, entry, backend)


def check(options: StreamOptions) -> None:
    """UserError unless every value, the weights aside, is one that a stream can be opened with."""
    backends.check(options.backend)
    if options.brain not in BRAINS:
        raise UserError(f"There is no brain called “{str(options.brain)[:40]}”; choose one of {', '.join(BRAINS)}.")
    thresholds(options.threshold, options.release)
    if options.memory is not None and not _whole(options.memory, 1, MOST_CHUNKS):
        raise UserError("The memory must be a whole number of chunks, at least 1.")
    if not _whole(options.seed, 0, 2**63 - 1):
        raise UserError("The seed must be a whole number from 0 on.")


def thresholds(threshold: Any, release: Any) -> None:
    """UserError unless an action may begin at the first probability and end below the second; None is any."""
    if threshold is not None and not (_number(threshold) and 0 < threshold <= 1):
        raise UserError("The threshold must lie above 0 and be at most 1.")
    if release is not None and not (_number(release) and 0 <= release <= (1 if threshold is None else threshold)):
        raise UserError("The level at which an action ends must lie between 0 and the threshold.")


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= high


class Stream:
    """What both kinds of stream share. Not for more than one thread at a time.

    labels: names of the classes. past: the newest chunks, as many as were asked for. pose: (33, 4) float32, landmarks
    of the newest frame, None where nobody is. aspect: its width over its height. dropped: frames that were passed over
    for a newer one. The levels at which an action begins and ends may be changed at any time by `call_at`.
    """

    def __init__(self, options: StreamOptions, entry: catalogue.Entry, backend: Any, keep: int) -> None:
        self.options, self.entry, self.backend = options, entry, backend
        self.labels: tuple[str, ...] = tuple(backend.labels)
        self.past: deque[Moment] = deque(maxlen=keep)
        self.pose: np.ndarray | None = None
        self.dropped = 0
        self.closed = False
        self.aspect = ASPECT
        self._clock = ChunkClock()
        self._calls = Hysteresis(0.5)
        self.call_at(options.threshold, options.release)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """Forget everything; may be called twice. After it nothing can be pushed."""
        self.closed = True
        self.reset()
        self.past.clear()

    def reset(self) -> None:
        """Forget what was seen: the next frame is the first. What is kept in `past` stays."""
        self.pose = None
        self._clock.reset()
        self._calls.current = BACKGROUND

    def call_at(self, threshold: float | None, release: float | None = None) -> None:
        """From now on an action begins at one probability and ends below the other; None is what suits the weights.
        UserError: out of range."""
        thresholds(threshold, release)
        if threshold is None:
            threshold, own = usual_threshold(self.entry), self.entry.facts.get("release")
            release = release if release is not None or own is None else float(own)
        self._calls.threshold = float(threshold)
        self._calls.release = 0.6 * float(threshold) if release is None else min(float(release), float(threshold))

    def push(self, frame: np.ndarray, timestamp: float) -> Update | None:
        """One frame of the stream, (H, W, 3) uint8 RGB, and its time in seconds, which grows; other frames may have
        other sizes. The answer behind a chunk comes with the first frame after it; else None.

        A time that repeats, or goes back by up to a second, is of a frame that is passed over; one further back begins
        the stream anew. UserError: no such frame, no finite time, or a stream that is closed.
        """
        raise NotImplementedError

    def push_pose(self, landmarks: np.ndarray, timestamp: float, aspect: float = ASPECT) -> Update | None:
        """As `push`, of somebody who was found already: (33, 4) x, y (normalised to the picture), z, visibility, in
        MediaPipe's order; NaN where unknown. aspect: the picture's width over its height. UserError: another shape, or
        a stream that wants pictures."""
        raise NotImplementedError

    def finish(self) -> Update | None:
        """No frame will follow: the answer behind the chunk that was begun. The stream may begin anew."""
        raise NotImplementedError

    def _usable(self, timestamp: float) -> float:
        if self.closed:
            raise UserError("This stream is closed; open a new one.")
        return seconds(timestamp)

    def _passed_over(self, now: float) -> bool:
        """Whether a frame of this time is too late. Begins anew where the clock did."""
        if self._clock.begins_anew(now):
            self.reset()
        if self._clock.behind(now):
            self.dropped += 1
            return True
        self._clock.came(now)
        return False

    def _update(self, answer: Answer, chunk: int, spent: dict[Stage, float], taught: dict[str, float]) -> Update:
        """The answer as it is told."""
        self._clock.answered(chunk)
        called = self._calls.step(answer.probabilities)
        return Update(
            self.labels, answer.probabilities, answer.anticipated, self._clock.end_of(chunk), chunk,
            None if called == BACKGROUND else self.labels[called], self.pose, answer.attention, spent, self.dropped,
            self._clock.late, taught, self.options.brain, self.entry.id, self.options.backend, self.aspect,
        )  # fmt: skip


class PoseStream(Stream):
    """Of our own brains: a tracker of its own, features, and a memory, whose length and order may be changed at any
    time (`stream.memory`, see `local.Memory`)."""

    def __init__(self, options: StreamOptions, entry: catalogue.Entry, backend: Any, keep: int) -> None:
        super().__init__(options, entry, backend, keep)
        self.memory = backend.open(options.brain, options.memory, options.shuffled, options.seed, options.attention)
        self._tracker, self._features = Tracker(), FeatureStream()
        self._frames: list[np.ndarray] = []  # joints (13, 3) of the chunk that is not complete
        self._shape: tuple[int, ...] = ()
        self.pupil: Pupil | None = None  # what the visitor taught

    def reset(self) -> None:
        super().reset()
        self._tracker.reset()
        self.memory.reset()
        self._features, self._frames = FeatureStream(), []
        if self.pupil is not None:
            self.pupil.reset()

    def learn(self, lessons: tuple[Lesson, ...]) -> None:
        """From now on these actions are looked for as well; none is none. UserError: made with other weights."""
        self.pupil = Pupil(lessons, self.backend, self.options.brain, self.entry.id) if lessons else None

    def push(self, frame: np.ndarray, timestamp: float) -> Update | None:
        now, picture = self._usable(timestamp), check_array(frame)
        if self._passed_over(now):
            return None
        spent: dict[Stage, float] = {}
        update = self._complete(now, spent)
        with _own("cpu", spent):
            start = time.perf_counter()
            found = self._tracker.track(picture, now)
            spent["pose"] = time.perf_counter() - start
        if picture.shape != self._shape and self._shape:  # another picture: its places can't be compared
            self._features, self._frames = FeatureStream(), []
        self._shape = picture.shape
        self._gather(None if found is None else found.landmarks, now, picture.shape[1] / picture.shape[0])
        return update

    def push_pose(self, landmarks: np.ndarray, timestamp: float, aspect: float = ASPECT) -> Update | None:
        now, known = self._usable(timestamp), pose_of(landmarks)
        if not (_number(aspect) and 0 < aspect < np.inf):
            raise UserError("The aspect must be the picture's width over its height, above 0.")
        if self._passed_over(now):
            return None
        update = self._complete(now, {})
        self._gather(known if np.isfinite(known).any() else None, now, float(aspect))
        return update

    def finish(self) -> Update | None:
        chunk = self._clock.chunk
        told = None if chunk is None or self.closed else self._told(chunk, {})
        self.reset()
        return told

    def _gather(self, landmarks: np.ndarray | None, now: float, aspect: float) -> None:
        self.pose, self.aspect = landmarks, aspect
        joints = np.full((LANDMARKS, 4), np.nan, np.float32) if landmarks is None else landmarks
        self._frames.append(joints_of(joints, aspect))
        self._clock.advance(now)

    def _complete(self, now: float, spent: dict[Stage, float]) -> Update | None:
        """The answer behind the chunk before this time's, if a frame of this time is the first after it. What the frame
        itself takes is added to `spent` later."""
        before, chunk = self._clock.chunk, self._clock.chunk_of(now)
        if before is None or chunk == before:
            return None
        update = self._told(before, spent)
        # Nobody was seen in the chunks between: the brain is told so, as its places are places in time.
        for _ in range(min(chunk - before - 1, LONGEST_GAP)):
            answer, _ = self._answer(spent)
            self._calls.step(answer.probabilities)
        return update

    def _told(self, chunk: int, spent: dict[Stage, float]) -> Update:
        answer, features = self._answer(spent)
        pupil = self.pupil
        update = self._update(answer, chunk, spent, {} if pupil is None else dict(pupil.probabilities))
        if pupil is not None and pupil.action is not None:
            update = replace(update, action=pupil.action)
        self.past.append(Moment(update, features))
        return update

    def _answer(self, spent: dict[Stage, float]) -> tuple[Answer, np.ndarray]:
        frames = np.stack(self._frames) if self._frames else np.empty((0, len(JOINTS), 3), np.float32)
        self._frames = []
        with _own(pick().device, spent):
            start = time.perf_counter()
            features = self._features.step(frames)
            answer = self.memory.push(features)
            if self.pupil is not None:
                self.pupil.push(features)
            spent["model"] = spent.get("model", 0.0) + time.perf_counter() - start
        return answer, features


class ClipStream(Stream):
    """Of a reference, which looks at pictures: an answer when its window has moved on."""

    def __init__(self, options: StreamOptions, entry: catalogue.Entry, backend: Any, keep: int) -> None:
        super().__init__(options, entry, backend, keep)
        self._window = backend.open()

    def reset(self) -> None:
        super().reset()
        if hasattr(self, "_window"):
            self._window.reset()

    def push(self, frame: np.ndarray, timestamp: float) -> Update | None:
        now, picture = self._usable(timestamp), check_array(frame)
        if self._passed_over(now):
            return None
        self._clock.advance(now)
        return self._look(self._window.push(picture, now))

    def push_pose(self, landmarks: np.ndarray, timestamp: float, aspect: float = ASPECT) -> Update | None:
        raise UserError("The reference looks at pictures and not at poses; choose local.")

    def finish(self) -> Update | None:
        told = None if self.closed else self._look(self._window.finish())
        self.reset()
        return told

    def _look(self, clip: np.ndarray | None) -> Update | None:
        if clip is None or self._clock.chunk is None:
            return None
        spent: dict[Stage, float] = {}
        with _own(pick().device, spent):
            start = time.perf_counter()
            answer = self.backend.answer(clip)
            spent["model"] = time.perf_counter() - start
        update = self._update(answer, self._clock.chunk, spent, {})
        self.past.append(Moment(update, None))
        return update


@contextmanager
def _own(device: str, spent: dict[Stage, float]) -> Iterator[None]:
    """A device to oneself; the time of waiting for it is added to "waited"."""
    start = time.perf_counter()
    with backends.step(device):
        spent["waited"] = spent.get("waited", 0.0) + time.perf_counter() - start
        yield


def pose_of(landmarks: Any) -> np.ndarray:
    """(33, 4) float32 with NaN for what is not finite. UserError: another shape, or no numbers."""
    try:
        given = np.array(landmarks, np.float32)
    except (TypeError, ValueError) as error:
        raise UserError("A pose must be an array of numbers of shape (33, 4).") from error
    if given.shape != (LANDMARKS, 4):
        raise UserError(f"A pose must have shape (33, 4), not {given.shape}.")
    given[~np.isfinite(given)] = np.nan
    return given
