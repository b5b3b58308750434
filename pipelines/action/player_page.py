"""The widget that plays a camera, a file or an example and shows what a stream says of it; and what it calls."""

from __future__ import annotations

import base64
import html
import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.limits import limits
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import say
from pipelines.ui.shelf import Shelf

from . import examples_page as examples
from .config import CLASSES
from .contract import Update
from .live import Live
from .pipeline import ClipStream
from .teach import Course, Lesson

SCRIPT = Path(__file__).with_name("player.js")


@cache
def live() -> Live:
    """All visitors' streams."""
    return Live()


@cache
def courses() -> Shelf:
    """What visitors taught, by their tickets."""
    return Shelf(limits().courses_mb * 1_000_000)


def lessons_of(ticket: Any) -> tuple[Lesson, ...]:
    """What one visitor taught."""
    course: Course | None = courses().get(ticket) if isinstance(ticket, str) else None
    return () if course is None else course.lessons


# --- what the script calls -------------------------------------------------------------------------------------------
# Not events of gradio: its queue takes two requests and two threads for each, and thirty frames come in a second. Live
# holds the limits that a concurrency group would.


def _answered(call: Any, *given: Any) -> dict[str, Any]:
    """What a call returns, or its sentence as {"error": ...}: the script has no other way to learn it."""
    try:
        return guarded(call)(*given)
    except gr.Error as error:
        return {"error": html.unescape(str(error.message))}


def open(asked: Any) -> dict[str, Any]:
    """Begin a stream: {"weights", "backend", "threshold", "lessons"} -> its ticket, the names of its classes,
    how many chunks it foretells, and whether it finds poses."""
    return _answered(_open, asked)


def _open(asked: Any) -> dict[str, Any]:
    if not isinstance(asked, dict):
        raise UserError("The stream could not be begun; load the page again.")
    lessons = lessons_of(asked.get("lessons"))
    backend = asked.get("backend", "local")
    ticket = live().open(
        lessons, weights=asked.get("weights", "auto"), backend=backend, threshold=asked.get("threshold"),
        attention=backend == "local",
    )  # fmt: skip
    found = live().past(ticket)
    assert found is not None
    stream = found[0]
    future = 0 if isinstance(stream, ClipStream) else stream.backend.config(stream.options.brain).future
    labels = list(stream.labels)
    return {"ticket": ticket, "known": labels, "future": future, "poses": backend == "local"}


def look(given: Any) -> dict[str, Any]:
    """One frame: [ticket, seconds, JPEG as a data address, threshold] -> the pose on it, and what it completed."""
    return _answered(_look, given)


def _look(given: Any) -> dict[str, Any]:
    if not isinstance(given, list) or len(given) != 4:
        raise UserError("The frame could not be read; start the stream again.")
    ticket, timestamp, coded, threshold = given
    found = live().look(ticket, coded, timestamp, threshold)
    spent = {} if found.update is None else found.update.seconds
    waited = found.waited + spent.get("waited", 0.0)
    model, ours = spent.get("model", 0.0), found.seconds - found.decoded  # decoding is of the way here, as coding is
    return {
        "served": found.served, "pose": None if found.pose is None else points(found.pose),
        "update": None if found.update is None else packed(found.update), "seconds": ours,
        "waited": waited, "model_seconds": model, "pose_seconds": max(0.0, ours - waited - model),
    }  # fmt: skip


def finish(ticket: Any) -> dict[str, Any]:
    """The stream has ended: its last answer, if there is one."""
    return _answered(_finish, ticket)


def _finish(ticket: Any) -> dict[str, Any]:
    update = live().finish(ticket)
    return {"update": None if update is None else packed(update)}


def example(index: Any) -> dict[str, Any]:
    """One of the example clips, as a data address."""
    return _answered(_example, index)


def _example(index: Any) -> dict[str, Any]:
    if not isinstance(index, int) or index not in range(len(examples.CLIPS)):
        raise UserError("There is no such example.")
    data = base64.b64encode(Path(examples.CLIPS[index]).read_bytes()).decode("ascii")
    return {"address": f"data:video/webm;base64,{data}"}


def points(pose: np.ndarray) -> list[list[float]] | None:
    """(33, 4) -> 33 times x, y and visibility, short; None if a place is unknown."""
    return None if not np.isfinite(pose[:, :2]).all() else np.round(pose[:, (0, 1, 3)], 4).tolist()


def packed(update: Update) -> dict[str, Any]:
    """An update as the script reads it. Behind the classes stand the actions that were taught."""
    p = [*update.probabilities.tolist(), *update.taught.values()]
    f = [[*row.tolist(), *[0.0] * len(update.taught)] for row in update.anticipated]
    short = [round(v, 3) for v in p]
    return {
        "p": short, "f": [[round(v, 3) for v in row] for row in f], "action": update.action, "time": update.timestamp,
        "chunk": update.chunk, "taught": list(update.taught),
    }  # fmt: skip


# --- the widget ------------------------------------------------------------------------------------------------------


def words(request: gr.Request | None) -> dict[str, str]:
    """What the script says, in the visitor's language."""
    speak = partial(say, request)
    return {
        "camera": speak("Use the camera"), "pick": speak("Choose a video"), "stop": speak("Stop"),
        "jacks": speak("Jumping jacks"), "flip": speak("Backflip"),
        "opening": speak("Opening …"), "watching": speak("The camera is on."),
        "playing": speak("The video is playing."),
        "ended": speak("The video is over; its end is shown."), "stopped": speak("Stopped."),
        "unplugged": speak("The camera was switched off."), "nothing": speak("nothing"),
        "hidden": speak("This page is hidden: no frames come until it is shown again."),
        "refused": speak("The camera was refused. Allow it in the browser's address bar, or choose a video."),
        "nocamera": speak("No camera was found. Plug one in, or choose a video."),
        "busy": speak("The camera is used by another program. Close it there, or choose a video."),
        "insecure": speak("Browsers give the camera to https pages and to localhost only; choose a video instead."),
        "unreadable": speak("The browser cannot play this video; save it again as MP4 (H.264) or WebM."),
        "offline": speak("The server does not answer; start again in a moment."),
        "nobody": speak("nobody is seen"), "next": speak("The next 0.8 s"),
        "over": speak("The last 13 s, and the next 0.8"),
        "clock": speak("Honest clock: where the time of an answer goes"),
        "newest": speak("the newest"), "median": speak("in the middle"),
        "captured": speak("captured"), "sent": speak("sent there and back"), "waited": speak("waited"),
        "pose": speak("pose"), "model": speak("model"), "drawn": speak("drawn"),
        "counts": speak(
            "[looked] frames were looked at, [rate] a second, and [missed] passed over for newer ones. [updates] "
            "answers, [late] of them later than a chunk (0.1 s); they are on the screen [behind] ms after their "
            "chunk's end."
        ),
    }  # fmt: skip


def setup(weights: str, backend: str, threshold: float, lessons: str | None, request: gr.Request) -> str:
    """Words and settings as the script finds them on the page."""
    names = {label: say(request, label) for label in CLASSES}
    told = {
        "words": words(request), "names": names, "weights": weights, "backend": backend, "threshold": threshold,
        "lessons": lessons,
    }  # fmt: skip
    return f'<div hidden data-setup="{html.escape(json.dumps(told, ensure_ascii=False))}"></div>'


def player(name: str, auto: bool) -> gr.HTML:
    """The widget. auto: plays the first example when it is first seen."""
    return gr.HTML(
        html_template=TEMPLATE.replace("AUTO", "1" if auto else "0"), css_template=STYLE,
        js_on_load=SCRIPT.read_text(encoding="utf-8"), server_functions=[open, look, finish, example],
        elem_id=f"action-{name}-player",
    )  # fmt: skip


TEMPLATE = """
<div class="gh-player" data-auto="AUTO" data-state="still">
  <div class="gh-stage">
    <div class="gh-screen">
      <video data-part="video" muted playsinline></video>
      <canvas data-part="screen" width="640" height="480"></canvas>
      <span data-part="nobody" data-word="nobody" hidden></span>
    </div>
    <div class="gh-side">
      <div class="gh-buttons">
        <button type="button" class="gh-main" data-part="camera" data-word="camera"></button>
        <button type="button" data-part="pick" data-word="pick"></button>
        <button type="button" data-part="stop" data-word="stop"></button>
        <button type="button" data-example="0" data-word="jacks"></button>
        <button type="button" data-example="1" data-word="flip"></button>
        <input type="file" accept="video/*,.mkv,.avi" data-part="file" hidden>
      </div>
      <div data-part="told" class="gh-note" role="status"></div>
      <div data-part="action" class="gh-action" aria-live="polite"></div>
      <div data-part="sure" class="gh-note"></div>
      <div class="gh-note" data-word="next"></div>
      <div data-part="forecast" class="gh-forecast"></div>
    </div>
  </div>
  <div class="gh-note" data-word="over"></div>
  <div class="gh-time"><div data-part="labels"></div><canvas data-part="strip" width="548" height="128"></canvas></div>
  <div class="gh-clock"><b data-word="clock"></b><div data-part="bars"></div><div data-part="keys"></div>
  <div data-part="counts" class="gh-note"></div></div>
</div>
"""
STYLE = """
.gh-player { display: flex; flex-direction: column; gap: .5rem; }
.gh-stage { display: flex; flex-wrap: wrap; gap: 1rem; }
.gh-screen { position: relative; flex: 3 1 300px; max-width: 560px; background: #0f172a; border-radius: 10px;
  overflow: hidden; min-height: 180px; }
.gh-screen canvas { width: 100%; display: block; }
.gh-screen video { position: absolute; width: 2px; height: 2px; opacity: 0; pointer-events: none; }
.gh-screen span { position: absolute; left: .6rem; bottom: .5rem; color: #fff; background: rgba(15,23,42,.7);
  padding: .1rem .5rem; border-radius: 6px; font-size: .85rem; }
.gh-side { flex: 2 1 260px; display: flex; flex-direction: column; gap: .45rem; }
.gh-buttons { display: flex; flex-wrap: wrap; gap: .4rem; }
.gh-buttons button { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .4rem .8rem;
  background: var(--button-secondary-background-fill); color: var(--button-secondary-text-color); cursor: pointer; }
.gh-buttons button.gh-main { background: var(--button-primary-background-fill);
  color: var(--button-primary-text-color); border-color: transparent; }
.gh-buttons button:focus-visible { outline: 3px solid var(--color-accent); }
.gh-action { font-size: 2rem; font-weight: 700; line-height: 1.2; min-height: 2.4rem; overflow-wrap: anywhere; }
.gh-action.gh-quiet { opacity: .45; font-weight: 500; }
.gh-note { opacity: .75; font-size: .88rem; min-height: 1.2rem; }
.gh-no { color: #b45309; opacity: 1; }
.dark .gh-no { color: #fbbf24; }
.gh-forecast { display: grid; grid-template-columns: repeat(8, 1fr); gap: 2px; font-size: .72rem; min-height: 2.4rem; }
.gh-forecast span { background: color-mix(in srgb, #d97706 var(--s, 0%), transparent); border-radius: 4px;
  border: 1px solid var(--border-color-primary); padding: .2rem .1rem; text-align: center; overflow: hidden;
  display: flex; align-items: center; justify-content: center; overflow-wrap: anywhere; line-height: 1.1; }
.gh-time { display: grid; grid-template-columns: minmax(5.5rem, max-content) 1fr; gap: .5rem; --rows: 16; }
.gh-time > div { display: grid; grid-template-rows: repeat(var(--rows), 1.05rem); font-size: .78rem;
  line-height: 1.05rem; }
.gh-time > div > div { overflow: hidden; white-space: nowrap; text-overflow: ellipsis; max-width: 9rem; }
.gh-time canvas { width: 100%; height: calc(var(--rows) * 1.05rem); image-rendering: pixelated; }
.gh-clock { border-top: 1px solid var(--border-color-primary); padding-top: .5rem; font-size: .85rem; display: flex;
  flex-direction: column; gap: .3rem; }
.gh-spent { display: grid; grid-template-columns: 9.5rem 1fr; gap: .5rem; align-items: center; margin: .15rem 0; }
.gh-spent > div { display: flex; height: 1rem; border-radius: 4px; overflow: hidden;
  background: color-mix(in srgb, currentColor 9%, transparent); }
.gh-clock [data-part="keys"] { display: flex; flex-wrap: wrap; gap: .2rem .9rem; }
.gh-clock [data-part="keys"] i { display: inline-block; width: .8rem; height: .8rem; border-radius: 3px;
  margin-right: .35rem; vertical-align: -1px; }
"""
