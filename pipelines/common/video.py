"""Frames of a visitor's video, and the annotated frames as a video that browsers play. OpenCV's FFmpeg does both."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from .errors import UserError
from .limits import Limits, limits

FASTEST = 60.0  # frames a second that may be asked for
GRABS = 240  # frames a second that are at most skipped through, whatever the file claims
FALLBACK_RATE = 25.0  # of a file that does not say

KINDS = "use MP4, WebM, MOV, MKV or AVI"
UNREADABLE = (
    "The video cannot be read: it is cut short, has no picture, or its codec is not known here; "
    "save it again as MP4 (H.264) or WebM."
)


@dataclass(frozen=True)
class Frame:
    """index: number in the file. seconds: from the start. pixels: (height, width, 3) uint8 RGB, contiguous."""

    index: int
    seconds: float
    pixels: np.ndarray


class Video:
    """A file opened for reading; close it, or use it in a `with`.

    size: (height, width) that the file claims. rate: its frames a second. seconds: its length, None if it does not say.
    notes: sentences on what was left out, complete when the frames have been read.
    UserError: not a video, a codec that is not known here, or frames of too many pixels.
    """

    def __init__(self, path: str | Path, bounds: Limits | None = None) -> None:
        self.bounds = bounds or limits()
        _check_container(Path(path))
        self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        try:
            if not self._capture.isOpened():
                raise UserError(UNREADABLE)
            width, height = self._number(cv2.CAP_PROP_FRAME_WIDTH), self._number(cv2.CAP_PROP_FRAME_HEIGHT)
            rate, count = self._number(cv2.CAP_PROP_FPS), self._number(cv2.CAP_PROP_FRAME_COUNT)
            if width * height > self.bounds.pixels:
                most = self.bounds.pixels // 1_000_000
                raise UserError(f"A frame of the video has more than {most} megapixels; make it smaller and retry.")
        except BaseException:
            self._capture.release()
            raise
        self.size = (int(height), int(width))
        self.rate = rate if 0 < rate <= 1000 else FALLBACK_RATE
        self.seconds = count / self.rate if 0 < count < 1e9 else None
        self.notes: list[str] = []

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """Let go of the file; may be called twice."""
        self._capture.release()

    def frames(self, rate: float = 4.0) -> Iterator[Frame]:
        """Frames at `rate` a second or, if that is less, at the file's own rate. Can be read once.

        Stops at the limits on seconds and frames, with a note; a frame that cannot be decoded is passed over.
        UserError: the rate is not in (0, 60], or not one frame can be read.
        """
        if not isinstance(rate, int | float) or not 0 < rate <= FASTEST:
            raise UserError(f"The frames a second must be more than 0 and at most {FASTEST:.0f}.")
        yield from self._frames(rate, self.bounds.video_seconds, self.bounds.video_frames)

    def every(self) -> Iterator[Frame]:
        """Each frame of the file, at most 60 a second, with times that only grow, up to the limit on the seconds of a
        stream. Otherwise as `frames`: notes, errors, read once."""
        yield from self._frames(FASTEST, self.bounds.stream_seconds, None)

    def _frames(self, rate: float, most_seconds: int, most_frames: int | None) -> Iterator[Frame]:
        taken, due, last = 0, 0.0, 0.0
        for index, seconds in self._grabbed(most_seconds):
            last = seconds
            # A file's clock is rounded to milliseconds.
            if seconds < due - 0.002:
                continue
            if taken == most_frames:
                self.notes.append(f"The first {taken} frames were looked at, up to second {seconds:.1f}.")
                return
            there, pixels = self._capture.retrieve()
            if not there or pixels is None:
                continue
            due = (math.floor((seconds + 0.002) * rate) + 1) / rate
            taken += 1
            yield Frame(index, seconds, self._bounded(pixels))
        if taken == 0:
            raise UserError(UNREADABLE)
        expected = min(self.seconds or 0.0, most_seconds)
        if last + 1 / self.rate < 0.95 * expected - 0.5:
            self.notes.append(f"The video is cut short or damaged: {last:.1f} of {self.seconds:.1f} seconds were read.")

    def _grabbed(self, most: int) -> Iterator[tuple[int, float]]:
        """Number and time of every frame, decoded but not yet converted, up to so many seconds."""
        before = -1.0
        for index in range(most * GRABS):
            if not self._capture.grab():
                return
            seconds = self._number(cv2.CAP_PROP_POS_MSEC) / 1000
            if seconds <= before:  # some files have no clock, or one that jumps
                seconds = before + 1 / self.rate
            before = seconds
            if seconds > most:
                length = f" of {self.seconds:.0f}" if self.seconds and self.seconds > most else ""
                self.notes.append(f"The first {most}{length} seconds were looked at.")
                return
            yield index, seconds
        self.notes.append(f"The video has more than {GRABS} frames a second; the end was left out.")

    def _number(self, what: int) -> float:
        value = float(self._capture.get(what))
        return value if math.isfinite(value) else 0.0

    def _bounded(self, pixels: np.ndarray) -> np.ndarray:
        """BGR, or grey, of any size -> RGB with its longest side within the limit."""
        height, width = pixels.shape[:2]
        if max(height, width) > self.bounds.side:
            scale = self.bounds.side / max(height, width)
            small = (max(1, round(width * scale)), max(1, round(height * scale)))
            pixels = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
            note = f"Made smaller: {width}×{height} to {small[0]}×{small[1]} pixels."
            if note not in self.notes:
                self.notes.append(note)
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB if pixels.ndim == 2 else cv2.COLOR_BGR2RGB)


def _check_container(path: Path) -> None:
    """Only containers of pictures and sound reach FFmpeg: a playlist could name other files or addresses."""
    try:
        if not path.is_file():
            raise OSError(f"{path.name} is no file")
        with path.open("rb") as stream:
            head = stream.read(192)
    except OSError as error:
        raise UserError("The file could not be read; upload it again.") from error
    if not head:
        raise UserError(f"The file is empty; {KINDS}.")
    known = (
        head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"),  # MP4 and MOV
        head.startswith((b"\x1a\x45\xdf\xa3", b"OggS", b"FLV\x01", b"GIF8")),  # the first: WebM and MKV
        head.startswith(b"RIFF") and head[8:12] == b"AVI ",
        head.startswith((b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")),  # MPEG
        head[0:1] == b"\x47" and head[188:189] == b"\x47",  # MPEG transport stream
        head.startswith(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),  # WMV
    )
    if not any(known):
        raise UserError(f"This is not a video that can be read; {KINDS}.")


class Recorder:
    """Writes RGB frames as WebM (VP8), the one format that OpenCV's wheel can write and every browser plays.

    Frames must have one size; an odd row or column at the edge is lost. RuntimeError: the file cannot be written.
    """

    def __init__(self, path: str | Path, rate: float) -> None:
        self.path, self.rate = Path(path), rate
        self._writer: cv2.VideoWriter | None = None
        self._size = (2, 2)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self.close()

    def add(self, pixels: np.ndarray) -> None:
        """(height, width, 3) uint8 RGB."""
        if self._writer is None:
            # VP8 wants even sides, and none below two.
            height, width = (max(2, n - n % 2) for n in pixels.shape[:2])
            self._size = (width, height)
            code = cv2.VideoWriter.fourcc(*"VP80")
            self._writer = cv2.VideoWriter(str(self.path), cv2.CAP_FFMPEG, code, self.rate, self._size)
            if not self._writer.isOpened():
                raise RuntimeError("this build of OpenCV writes no WebM")
        width, height = self._size
        if pixels.shape[0] < height or pixels.shape[1] < width:
            pixels = cv2.resize(pixels, self._size)
        self._writer.write(cv2.cvtColor(np.ascontiguousarray(pixels[:height, :width]), cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file; may be called twice."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None
