"""What the pages that look back have in common: a clip or the visitor's own stream becomes a recording on the shelf."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import gradio as gr

from pipelines.common.errors import UserError
from pipelines.common.limits import limits
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say
from pipelines.ui.shelf import Shelf
from pipelines.ui.turns import Turns

from . import examples_page as examples
from . import player_page, recording, view
from .recording import Recording
from .watch_page import Shared, ticket_first

VIDEO: dict[str, Any] = {"concurrency_id": "video", "concurrency_limit": 4}
CHUNK_BYTES = 4_000  # of a recording, about
FIRST = "Look at a video or take what Watch saw first."
NOTHING = "Nothing was watched yet on this page: open Watch, start the camera or a clip, and come back."

turns = Turns()


@cache
def shelf() -> Shelf:
    """All visitors' recordings."""
    return Shelf(limits().predictions_mb * 1_000_000 // 2)


def read(path: str | None, weights: str, request: gr.Request, progress: gr.Progress) -> Iterator[Recording]:
    """A video as a recording; nothing if another run has taken its place."""
    if not path:
        raise UserError("Choose or record a video first.")
    blocks.announce(progress)
    with turns.take(request.session_hash, path) as turn:
        for share, done in recording.of_video(path, weights):
            if turn.halted:
                return
            if done is not None:
                yield done
            else:
                progress(share, desc=f"{100 * share:.0f} %")


def taken(ticket: str) -> Recording:
    """What the visitor's own stream saw. UserError: nothing."""
    found = player_page.live().past(ticket)
    if found is None or not found[1]:
        raise UserError(NOTHING)
    stream, moments = found
    made = Recording(stream.labels, moments, stream.entry.id, stream.options.brain)
    _ = made.features  # of a reference there are none
    return made


def keep(made: Recording) -> str:
    """Its ticket."""
    return shelf().put(made, CHUNK_BYTES * len(made))


def held(ticket: str | None) -> Recording:
    """UserError: it had to make room, or there never was one."""
    found: Recording | None = shelf().get(ticket)
    if found is None:
        raise UserError(FIRST)
    return found


def build(
    tab: gr.Tab, shared: Shared, name: str, shown: Callable[..., tuple[Any, ...]], extra: list[Any], outputs: list[Any],
    told: gr.HTML,
) -> gr.State:  # fmt: skip
    """The column with clip and buttons, wired. shown(recording, *extra, say) -> outputs. Returns the ticket's state."""
    ticket, last = gr.State(None, delete_callback=lambda t: shelf().drop(t)), gr.State(None)
    video = blocks.only_uploads(
        gr.Video(
            examples.CLIPS[0], label=label("Video"), sources=["upload", "webcam"], elem_classes="gh-video",
            elem_id=f"action-{name}-video",
        )
    )  # fmt: skip
    with gr.Row():
        button = gr.Button(label("Look at the video"), variant="primary", elem_id=f"action-{name}-run")
        own = gr.Button(label("Take what Watch saw"), elem_id=f"action-{name}-own")
    blocks.example_row(examples.CLIPS, video)

    def run(request: gr.Request, progress: gr.Progress, path: str | None, weights: str, *more: Any) -> Iterator[Any]:
        for made in read(path, weights, request, progress):
            yield keep(made), *shown(made, *more, partial(say, request)), view.note(_lead(made, request))

    # What gradio itself puts in stands first: it can't follow inputs whose number is open.
    def look(
        request: gr.Request, progress: gr.Progress = gr.Progress(), path: str | None = None, weights: str = "auto",
        *more: Any,
    ) -> Iterator[Any]:  # fmt: skip
        yield from run(request, progress, path, weights, *more)

    def look_new(
        request: gr.Request, progress: gr.Progress = gr.Progress(), before: Any = None, path: str | None = None,
        weights: str = "auto", *more: Any,
    ) -> Iterator[Any]:  # fmt: skip
        if not path or (path, weights) == before:
            yield tuple(gr.skip() for _ in range(len(outputs) + 3))
            return
        for found in run(request, progress, path, weights, *more):
            yield (path, weights), *found

    def take(request: gr.Request, given: str, path: str | None, weights: str, *more: Any) -> tuple[Any, ...]:
        made = taken(given)
        # A clip that is still looked at would be drawn over it, now or when the page is opened again.
        turns.halt(request.session_hash, clear=True)
        return (path, weights), keep(made), *shown(made, *more, partial(say, request)), view.note(_lead(made, request))

    inputs, out = [video, shared.switches.weights, *extra], [ticket, *outputs, told]
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress_on": told}
    button.click(guarded(look), inputs, out, **quiet, **VIDEO)
    gr.on([tab.select, video.change], guarded(look_new), [last, *inputs], [last, *out], trigger_mode="always_last",
          **quiet, **VIDEO)  # fmt: skip
    own.click(guarded(take), [shared.ticket, *inputs], [last, *out], js=ticket_first(1 + len(inputs)), **quiet,
              **blocks.LIGHT)  # fmt: skip
    return ticket


def _lead(made: Recording, request: gr.Request) -> str:
    return say(request, "{n} chunks of a tenth of a second.", n=len(made))
