"""Swap: our brain and transformers' VideoMAE over one clip. Two models, and the page says so."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import gradio as gr

from pipelines.common.backends import BACKENDS, Backend
from pipelines.common.errors import UserError
from pipelines.common.video import Video
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say

from . import examples_page as examples
from . import view
from .contract import Update
from .pipeline import open_stream, resolve, watch
from .watch_page import Shared

LONGEST = 20.0  # seconds of a clip that both look at


def over(path: str, weights: str, backend: Backend, progress: gr.Progress) -> tuple[list[Update], float, float]:
    """All answers of one implementation over a clip, the seconds that they took, and the clip's length.

    UserError: its weights are not here, or the clip cannot be read.
    """
    found: list[Update] = []
    with open_stream(weights, backend) as stream, Video(path) as video:
        start, last = time.perf_counter(), 0.0
        for frame, update in watch(video, stream):
            last = frame.seconds
            progress(min(1.0, last / min(video.seconds or LONGEST, LONGEST)), desc=f"{last:.1f} s")
            found += [] if update is None else [update]
            if last >= LONGEST:
                break
        return found, time.perf_counter() - start, last


def swap(
    path: str | None, weights: str, request: gr.Request, progress: gr.Progress = gr.Progress()
) -> tuple[str, list[dict[str, Any]]]:  # fmt: skip
    """Both implementations over one clip: what each says second by second, how long it took, and the same as data."""
    if not path:
        raise UserError("Choose or record a video first.")
    blocks.announce(progress)
    speak = partial(say, request)
    own = {"local": speak("rebuilt here"), "reference": speak("another model: VideoMAE")}
    answers: dict[str, list[Update]] = {}
    notes: list[str] = []
    for backend in BACKENDS:
        try:
            found, seconds, length = over(path, weights if _fits(weights, backend) else "auto", backend, progress)
        except UserError as error:
            if backend == "local":
                raise
            notes.append(speak("{name}: {why}", name=own[backend], why=str(error)))
            continue
        answers[backend] = found
        notes.append(speak(
            "{name}: {n} answers, {ms} ms each, {share} times as long as the clip in all.", name=own[backend],
            n=len(found), ms=round(1000 * seconds / max(1, len(found))), share=f"{seconds / max(length, 0.1):.2f}",
        ))  # fmt: skip
    notes.append(speak("Another model than ours, with other classes: no number of the two can be compared one to one."))
    data = [
        {"backend": name, "seconds": u.timestamp, "label": u.label, "probability": float(u.probabilities.max())}
        for name, found in answers.items() for u in found
    ]  # fmt: skip
    return view.side_by_side(answers, own, speak) + "".join(map(view.note, notes)), data


def _fits(weights: str, backend: Backend) -> bool:
    try:
        resolve(weights, backend)
    except UserError:
        return False
    return True


def build(page: gr.Blocks, tab: gr.Tab, shared: Shared) -> None:
    gr.Markdown(
        label(
            "Both over one clip. They are different models: ours names the newest tenth of a second by the movements "
            "of a body, VideoMAE names two seconds by their pictures, among the 400 classes of Kinetics."
        )
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            video = blocks.only_uploads(
                gr.Video(
                    examples.CLIPS[0], label=label("Video"), sources=["upload", "webcam"], elem_classes="gh-video",
                    elem_id="action-swap-video",
                )
            )  # fmt: skip
            button = gr.Button(label("Run both"), variant="primary", elem_id="action-swap-run")
            blocks.example_row(examples.CLIPS, video)
        with gr.Column(scale=3, min_width=320):
            told = gr.HTML(elem_id="action-swap-told")
            with gr.Accordion(label("The same as data"), open=False):
                data = gr.JSON(show_label=False)
    inputs, outputs = [video, shared.switches.weights], [told, data]
    button.click(
        guarded(swap), inputs, outputs, api_name="action_swap", show_progress_on=told, concurrency_id="video",
        concurrency_limit=4,
    )  # fmt: skip
