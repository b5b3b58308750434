"""Video: the objects of each frame as soon as it is done; counts over time; all frames as COCO and as a film."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from pipelines.common import catalogue
from pipelines.common.errors import UserError
from pipelines.common.limits import limits
from pipelines.common.video import Frame, Recorder, Video
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say
from pipelines.ui.shelf import Shelf
from pipelines.ui.turns import Turns

from . import examples_page as examples
from . import video_view, view
from .coco import Found, document
from .config import PRESETS
from .contract import Backend, DetectionRequest, DetectionResult
from .detect_page import meant
from .pipeline import detect_video

# Not in the queue of the photos: a film of a minute would keep it for minutes. Every frame waits for the device alone.
FILM: dict[str, Any] = {"concurrency_id": "video", "concurrency_limit": 4}
FIRST = "Look at a video first."
SIDE = 640  # longest side of the frames that are shown and recorded, pixels
STRIP = 16  # frames in the strip at most; half of them go when it is full
REEL_BYTES = 3_000_000  # of the detections of a film, at most about


@dataclass
class Reel:
    """What was found in a film so far. counts: objects of each class, a frame each."""

    path: str
    labels: str  # the label file of the weights
    found: list[Found] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    counts: list[Counter[str]] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)  # of the strip
    times: list[float] = field(default_factory=list)
    stride: int = 1
    film: str = ""  # path of the recorded film, once it is complete

    @property
    def name(self) -> str:
        return Path(self.path).stem[:60] or "video"

    def add(self, frame: Frame, result: DetectionResult) -> bool:
        """Keep a frame's objects; true if the strip has changed."""
        k = len(self.seconds)
        size = frame.pixels.shape[0], frame.pixels.shape[1]
        self.found.append(Found(f"{self.name}-{frame.index:06d}.png", size, result))
        self.seconds.append(frame.seconds)
        self.counts.append(Counter(result.labels))
        if k % self.stride:
            return False
        if len(self.frames) == STRIP:
            self.frames, self.times, self.stride = self.frames[::2], self.times[::2], 2 * self.stride
            if k % self.stride:
                return True
        self.frames.append(video_view.thumbnail(frame.pixels, result))
        self.times.append(frame.seconds)
        return True


turns = Turns()  # one film at a time for a visitor


def halt(request: gr.Request, keep: str | None = None) -> None:
    """End the visitor's run after the frame that it is at, unless it looks at the video `keep`."""
    turns.halt(request.session_hash, keep)


def halt_other(path: str | None, request: gr.Request) -> None:
    """Another video was chosen."""
    halt(request, path or "")


@cache
def shelf() -> Shelf:
    """Where the detections of all visitors' films are kept."""
    return Shelf(limits().predictions_mb * 1_000_000)


def watch(
    path: str | None, backend: Backend, weights: str, threshold: float, rate: float, request: gr.Request,
    progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """Find the objects of a video's frames, each shown when it is done: frame, strip, counts over time, a summary."""
    if not path:
        raise UserError("Choose or record a video first.")
    blocks.announce(progress)
    speak = partial(say, request)
    entry = catalogue.resolve("detection", weights, "detector")
    # Masks of every frame would take longer to draw than to find, and gigabytes to keep.
    asked = DetectionRequest(np.zeros((1, 1, 3), np.uint8), threshold, entry.id, backend, masks=False)
    reel = Reel(path, PRESETS[entry.preset].labels)
    ticket, start, spent = shelf().put(reel, REEL_BYTES), time.perf_counter(), 0.0
    with ExitStack() as stack:
        film = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "film.webm"
        turn = stack.enter_context(turns.take(request.session_hash, path))
        video = stack.enter_context(Video(path))
        expected = min(video.seconds or limits().video_seconds, limits().video_seconds)
        with Recorder(film, min(rate or 1, video.rate)) as recorder, closing(detect_video(video, asked, rate)) as done:
            for frame, result in done:
                spent += result.seconds["network"]
                picture = video_view.small(view.boxes(frame.pixels, result), SIDE)
                recorder.add(picture)
                fresh = reel.add(frame, result)
                strip = video_view.strip(reel.frames, reel.times) if fresh else gr.skip()
                n = len(reel.seconds)
                progress(min(frame.seconds / max(expected, 0.1), 1.0), desc=f"{n}: {frame.seconds:.1f} s")
                lead = speak("{n} frame(s) so far.", n=n)
                yield ticket, picture, strip, video_view.chart(reel.seconds, reel.counts, speak), view.note(lead)
                if turn.halted:
                    break
        if turn.replaced:  # the page is another run's
            return
        if film.is_file():
            reel.film = blocks.offer(film.read_bytes(), f"{reel.name}-objects.webm")
        notes = [_summary(reel, turn.halted, time.perf_counter() - start, spent, speak), *video.notes]
        yield gr.skip(), gr.skip(), gr.skip(), gr.skip(), "".join(map(view.note, notes))


def _summary(reel: Reel, halted: bool, seconds: float, spent: float, say: view.Say) -> str:
    n = len(reel.seconds)
    stopped = say("Stopped.") + " " if halted else ""
    return stopped + say(
        "{n} frame(s) in {seconds} s; the network took {ms} ms a frame.", n=n, seconds=f"{seconds:.1f}",
        ms=round(1000 * spent / max(n, 1)),
    )  # fmt: skip


def watch_new(
    last: tuple[Any, ...] | None, path: str | None, backend: Backend, weights: str, threshold: float, rate: float,
    request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    """`watch` with no button pressed: when the page is opened and for another video, once each."""
    key = (path, backend, weights)
    if not path:
        yield None, None, None, "", "", ""
    elif key == last:
        yield tuple(gr.skip() for _ in range(6))
    else:
        for shown in watch(path, backend, weights, threshold, rate, request, progress):
            yield key, *shown


def export(ticket: str | None) -> list[str]:
    """The objects of all frames as one COCO document, and the frames with boxes as a film."""
    reel = shelf().get(ticket)
    if reel is None or not reel.found:
        raise UserError(FIRST)
    data = json.dumps(document(list(reel.found), reel.labels))
    files = [blocks.offer(data.encode("utf-8"), f"{reel.name}-coco.json")]
    return [*files, reel.film] if Path(reel.film).is_file() else files


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    ticket = gr.State(None, delete_callback=lambda t: shelf().drop(t))
    with gr.Row():
        with gr.Column():
            video = blocks.only_uploads(
                gr.Video(
                    examples.VIDEOS[0],
                    label=label("Video"),
                    sources=["upload", "webcam"],
                    elem_classes="gh-video",
                    elem_id="detection-video-video",
                )
            )
            with gr.Row():
                button = gr.Button(label("Look at the video"), variant="primary", elem_id="detection-video-run")
                stop = gr.Button(label("Stop"), elem_id="detection-video-stop")
            examples.videos(video)
            least = gr.Slider(
                0, 1, meant("auto")[1], step=0.01, label=label("Threshold"), elem_id="detection-video-threshold"
            )
            rate = gr.Slider(1, 10, 4, step=1, label=label("Frames a second"), elem_id="detection-video-rate")
        with gr.Column():
            shown = blocks.picture_output("Latest frame", height=340, elem_id="detection-video-shown")
            told = gr.HTML(elem_id="detection-video-told")
            chart = gr.HTML(elem_id="detection-video-chart")
            save = gr.Button(label("Export as COCO and film"), elem_id="detection-video-export")
            files = gr.File(
                label=label("Exported"), file_count="multiple", interactive=False, visible=False,
                elem_id="detection-video-files",
            )  # fmt: skip
    strip = gr.HTML(elem_id="detection-video-strip")
    inputs = [video, switches.implementation, switches.weights, least, rate]
    outputs = [ticket, shown, strip, chart, told]
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress_on": told}
    button.click(guarded(watch), inputs, outputs, api_name="detection_video", show_progress_on=told, **FILM)
    last = gr.State(None)
    gr.on(
        [tab.select, video.change], guarded(watch_new), [last, *inputs], [last, *outputs], trigger_mode="always_last",
        **quiet, **FILM,
    )  # fmt: skip
    quickly: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", **blocks.LIGHT}
    stop.click(guarded(halt), None, None, **quickly)
    video.change(guarded(halt_other), video, None, **quickly)
    switches.weights.change(
        lambda weights: meant(weights)[1], switches.weights, least, api_visibility="private", **blocks.LIGHT
    )
    # What was exported before belongs to another result.
    gr.on(
        [video.change, button.click], lambda: gr.update(value=None, visible=False), None, files,
        api_visibility="private", show_progress="hidden", **blocks.LIGHT,
    )  # fmt: skip
    save.click(guarded(export), ticket, files, api_name="detection_video_export", **blocks.LIGHT).success(
        lambda: gr.update(visible=True), None, files, api_visibility="private", **blocks.LIGHT
    )
