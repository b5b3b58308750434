"""Teach it: a few repetitions and some idling before the camera, and the stream knows another action."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.limits import limits
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say

from . import player_page, teach, view
from .config import CHUNKS_PER_SECOND, CLASSES
from .insight import encoded
from .pipeline import Moment, Stream, load, resolve
from .teach import REPETITIONS, Course, Piece
from .watch_page import Shared, ticket_first

WEBCAM: dict[str, Any] = {"concurrency_id": "webcam", "concurrency_limit": limits().live_streams}
COURSE_BYTES = 3_600_000  # of a visitor's recordings, at most: 60 pieces of up to 82 chunks of 235 numbers
REPETITION, IDLING = 20, 50  # chunks
PATIENCE = 8.0  # times as long as filmed, at most, is waited for on a slow machine
MOST_PIECES = 20
_lock, _recording = threading.Lock(), set[str]()  # tickets of the streams that are being recorded
CLOSED = "Start the camera or a clip on this page first; then record."


def course_of(ticket: str | None) -> tuple[str, Course]:
    """The visitor's course and its ticket, begun if there is none."""
    course: Course | None = player_page.courses().get(ticket)
    if course is not None and ticket is not None:
        return ticket, course
    course = Course()
    return player_page.courses().put(course, COURSE_BYTES), course


def seen(ticket: Any) -> tuple[Stream, list[Moment]]:
    """The stream that plays on the page. UserError: none."""
    found = player_page.live().past(ticket)
    if found is None or found[0].options.backend != "local":
        raise UserError(CLOSED)
    return found


@contextmanager
def alone(ticket: Any) -> Iterator[None]:
    """One recording of a stream at a time: a page that has no course yet would get two. UserError: another goes on."""
    with _lock:
        if str(ticket) in _recording:
            raise UserError("A recording goes on; wait until it is complete.")
        _recording.add(str(ticket))
    try:
        yield
    finally:
        with _lock:
            _recording.discard(str(ticket))


def record(
    ticket: str, course_ticket: str | None, wanted: int, progress: gr.Progress
) -> tuple[str, Course, Piece]:  # fmt: skip
    """The next chunks of the stream, with what came before them. UserError: it ends before, nobody is seen, or another
    recording goes on."""
    with alone(ticket):
        return _record(ticket, course_ticket, wanted, progress)


def _record(
    ticket: str, course_ticket: str | None, wanted: int, progress: gr.Progress
) -> tuple[str, Course, Piece]:  # fmt: skip
    stream, moments = seen(ticket)
    if stream.closed:
        raise UserError(CLOSED)
    begun = moments[-1].update.chunk if moments else 0
    until = time.monotonic() + PATIENCE * wanted / CHUNKS_PER_SECOND
    while True:
        stream, moments = seen(ticket)
        own = [moment for moment in moments if moment.update.chunk > begun]
        gone = own[-1].update.chunk - begun if own else 0
        if gone >= wanted:
            break
        if stream.closed or time.monotonic() > until:
            raise UserError("The stream ended before the recording was complete; start it and record again.")
        progress(gone / wanted, desc=f"{gone / CHUNKS_PER_SECOND:.1f} / {wanted / CHUNKS_PER_SECOND:.1f} s")
        time.sleep(0.05)
    if len(own) < wanted // 6:  # the machine did not keep up, and saw next to nothing
        raise UserError("Too few frames came to learn from; close what else is running and record again.")
    if sum(moment.update.landmarks is not None for moment in own) < len(own) / 2:
        raise UserError("Nobody was seen for most of the time; step into the picture and record again.")
    course_ticket, course = course_of(course_ticket)
    if (course.weights, course.brain) != (stream.entry.id, stream.options.brain):
        course.repetitions, course.idle, course.older = [], [], []  # other movements' numbers
        course.weights, course.brain = stream.entry.id, stream.options.brain
    before = [moment for moment in moments if moment.update.chunk <= begun][-32:]
    features = np.stack([moment.features for moment in (*before, *own) if moment.features is not None])
    return course_ticket, course, Piece(features, len(before))


def repeat(
    ticket: str, course_ticket: str | None, request: gr.Request, progress: gr.Progress = gr.Progress()
) -> tuple[str, str]:  # fmt: skip
    """Record one repetition: the next two seconds."""
    course_ticket, course, piece = record(ticket, course_ticket, REPETITION, progress)
    course.repetitions = [*course.repetitions, piece][-MOST_PIECES:]
    return course_ticket, told(course, request)


def idle(
    ticket: str, course_ticket: str | None, request: gr.Request, progress: gr.Progress = gr.Progress()
) -> tuple[str, str]:  # fmt: skip
    """Record five seconds without the action."""
    course_ticket, course, piece = record(ticket, course_ticket, IDLING, progress)
    course.idle = [*course.idle, piece][-MOST_PIECES:]
    return course_ticket, told(course, request)


def learn(
    ticket: str, course_ticket: str | None, name: str, request: gr.Request
) -> tuple[str, str, Any]:  # fmt: skip
    """Fit a head to what was recorded; the stream that plays knows it from its next chunk on."""
    course_ticket, course = course_of(course_ticket)
    chosen = teach.name_of(name, [*CLASSES, *(lesson.name for lesson in course.lessons)])
    if len(course.lessons) >= teach.MOST_LESSONS:
        raise UserError(f"At most {teach.MOST_LESSONS} actions can be taught; erase some first.")
    if not course.repetitions:
        raise UserError("Record some repetitions first.")
    entry = resolve(course.weights, "local")
    start = time.perf_counter()
    lesson = teach.learn(chosen, course, load(entry, "local"), entry.id)
    course.lessons = teach.joined(course.lessons, (lesson,))
    course.older = [*course.older, *course.repetitions][-MOST_PIECES:]
    course.repetitions = []  # the idling serves the next lesson too
    player_page.live().learn(ticket, course.lessons)
    lead = say(
        request, "“{name}” is learnt, in {seconds} s: do it, and see it named.", name=chosen,
        seconds=f"{time.perf_counter() - start:.1f}",
    )  # fmt: skip
    return course_ticket, view.verdict(lead, True) + told(course, request), ""


def erase(ticket: str, course_ticket: str | None, request: gr.Request) -> tuple[None, str, Any]:
    """Forget all that was recorded and taught."""
    player_page.courses().drop(course_ticket)
    player_page.live().learn(ticket, ())
    return None, told(Course(), request), gr.update(value=None, visible=False)


def export(course_ticket: str | None) -> Any:
    """What was taught, as a file."""
    lessons = player_page.lessons_of(course_ticket)
    if not lessons:
        raise UserError("Nothing was taught yet.")
    return gr.update(value=blocks.offer(teach.export(lessons), "taught-actions.json"), visible=True)


def bring(ticket: str, course_ticket: str | None, path: str | None, weights: str, request: gr.Request) -> Any:
    """Actions from a file that was saved here, beside those that were taught."""
    if not path or Path(path).stat().st_size > 5_000_000:
        raise UserError("Choose a file of taught actions that was saved here.")
    entry = resolve(weights, "local")
    backend = load(entry, "local")
    brain: Any = "oadtr"
    width = encoded(backend, np.zeros((1, 1, backend.config(brain).in_features), np.float32), brain).shape[1]
    lessons = teach.restore(Path(path).read_bytes(), {(entry.id, brain): width})
    with alone(ticket):
        course_ticket, course = course_of(course_ticket)
        course.lessons = teach.joined(course.lessons, lessons)
    player_page.live().learn(ticket, course.lessons)
    return course_ticket, told(course, request)


def told(course: Course, request: gr.Request) -> str:
    """What is there: recordings, and lessons with what they are worth."""
    speak = partial(say, request)
    text = speak(
        "Recorded: {done} of {wanted} repetitions, {idle} s of idling.", done=len(course.repetitions),
        wanted=REPETITIONS, idle=sum(len(p.features) - p.start for p in course.idle) // CHUNKS_PER_SECOND,
    )  # fmt: skip
    return view.note(text) + view.lessons(course.lessons, speak)


def build(page: gr.Blocks, tab: gr.Tab, shared: Shared) -> None:
    gr.Markdown(
        label(
            "Start the camera, press “Record a repetition” and do your action within two seconds, five times; record "
            "some idling; give it a name. A head is fitted to what the frozen encoder says of you, in about a second. "
            "It is yours: it stays in this session, until you erase it."
        )
    )
    player_page.player("teach", auto=False)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            name = gr.Textbox(label=label("Name of the new action"), max_length=60, elem_id="action-teach-name")
            with gr.Row():
                again = gr.Button(label("Record a repetition (2 s)"), variant="primary", elem_id="action-teach-repeat")
                rest = gr.Button(label("Record idling (5 s)"), elem_id="action-teach-idle")
            done = gr.Button(label("Teach"), variant="primary", elem_id="action-teach-learn")
        with gr.Column(scale=3, min_width=300):
            said = gr.HTML(elem_id="action-teach-told")
            with gr.Row():
                save = gr.Button(label("Export what was taught"), size="sm", elem_id="action-teach-export")
                upload = blocks.only_uploads(
                    gr.UploadButton(
                        label("Import"),  # type: ignore[arg-type]
                        size="sm", file_types=[".json"], elem_id="action-teach-import",
                    )
                )  # fmt: skip
                away = gr.Button(label("Erase"), size="sm", elem_id="action-teach-erase")
            file = gr.File(
                label=label("Taught actions"), interactive=False, visible=False, height=90, elem_id="action-teach-file"
            )
    ticket, course = shared.ticket, shared.course
    long: dict[str, Any] = {"api_visibility": "private", "show_progress_on": said, **WEBCAM}
    quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", **blocks.LIGHT}
    again.click(guarded(repeat), [ticket, course], [course, said], js=ticket_first(2), **long)
    rest.click(guarded(idle), [ticket, course], [course, said], js=ticket_first(2), **long)
    events = [
        done.click(guarded(learn), [ticket, course, name], [course, said, name], js=ticket_first(3), **long),
        away.click(guarded(erase), [ticket, course], [course, said, file], js=ticket_first(2), **quick),
        upload.upload(guarded(bring), [ticket, course, upload, shared.switches.weights], [course, said],
                      js=ticket_first(4), **quick),
    ]  # fmt: skip
    for event in events:
        event.success(guarded(player_page.setup), shared.settings, shared.setup, **quick)
    save.click(guarded(export), course, file, **quick)
    tab.select(guarded(look), course, said, **quick)


def look(course_ticket: str | None, request: gr.Request) -> str:
    """What is there when the page is opened."""
    course: Course | None = player_page.courses().get(course_ticket)
    return told(course or Course(), request)
