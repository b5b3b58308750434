"""Several brains on one stream: what memory is worth, whether its order matters, and whether the future leaks back."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr
import numpy as np

from pipelines.common import catalogue
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say

from . import insight, source_page, view
from .pipeline import load
from .recording import Recording
from .watch_page import Shared


def run(
    backend: Any, features: np.ndarray, brain: Any, memory: int | None = None, shuffled: bool = False
) -> np.ndarray:  # fmt: skip
    """(N, in_features) -> (N, C): what a brain says behind every chunk, by the streaming path."""
    held = backend.open(brain, memory, shuffled)
    return np.stack([held.push(chunk).probabilities for chunk in features])


def shown(recording: Recording, memory: float, shuffled: bool, speak: Any) -> tuple[str, str]:
    """The bands of every brain, and the causality check."""
    backend = load(catalogue.resolve("action", recording.weights, "brain"), "local")
    features, parts, rows = recording.features, [], []
    for brain in backend.brains:
        most = backend.config(brain).chunks
        cut = None if brain == "none" else min(int(memory), most)
        mixed = shuffled and brain != "none"
        plain = run(backend, features, brain)
        whole = cut in (None, most)
        found = plain if whole and not mixed else run(backend, features, brain, None if whole else cut, mixed)
        name = view.brain_name(brain, speak)
        moved = float(np.abs(found - plain).sum(axis=1).mean() / 2)
        same = float((found.argmax(axis=1) == plain.argmax(axis=1)).mean())
        with_oadtr = float((found.argmax(axis=1) == recording.probabilities.argmax(axis=1)).mean())
        rows.append((name, moved, same, with_oadtr))
        parts.append(f"<h4>{name}</h4>{view.classes(found, recording.labels, speak)}")
    return "".join(parts) + view.brains(rows, speak), check(backend, recording, speak)


def check(backend: Any, recording: Recording, speak: Any) -> str:
    """A changed future must not change the past; and a brain that is shown the next chunk too must fail."""
    features = recording.features
    at = len(features) // 2
    if at < 1:
        return view.note(speak("The recording is too short for this check."))
    found = {}
    for brain in backend.brains:
        whole = partial(_said, backend, brain)
        found[view.brain_name(brain, speak)] = insight.causality(whole, features, at)

    def ahead(stream: np.ndarray) -> np.ndarray:
        return _said(backend, backend.brains[0], np.concatenate([stream[1:], stream[-1:]]))

    found[speak("control: shown one chunk of the future")] = insight.causality(ahead, features, at)
    return view.causality(found, recording.update(at).timestamp, speak)


def _said(backend: Any, brain: Any, features: np.ndarray) -> np.ndarray:
    probabilities: np.ndarray = backend.sequence(features, brain)[0]
    return probabilities


def look(ticket: str | None, memory: float, shuffled: bool, request: gr.Request) -> tuple[str, str]:
    """Another memory over the same recording."""
    return shown(source_page.held(ticket), memory, shuffled, partial(say, request))


def build(page: gr.Blocks, tab: gr.Tab, shared: Shared) -> None:
    gr.Markdown(
        label(
            "The same movements read by every brain that comes with these weights. Cut the memory, or shuffle it: what "
            "does not change was not read from the past, or not from its order."
        )
    )
    with gr.Row():
        left, right = gr.Column(scale=2, min_width=280), gr.Column(scale=3, min_width=320)
    with right:
        memory = gr.Slider(1, 32, 32, step=1, label=label("Memory (chunks)"), elem_id="action-brains-memory")
        shuffled = gr.Checkbox(False, label=label("Shuffle the past (control)"), elem_id="action-brains-shuffled")
        told = gr.HTML(elem_id="action-brains-told")
        bands = gr.HTML(elem_id="action-brains-bands")
    causal = gr.HTML(elem_id="action-brains-causality")
    with left:
        ticket = source_page.build(tab, shared, "brains", shown, [memory, shuffled], [bands, causal], told)
    gr.on(
        [memory.release, shuffled.input], guarded(look), [ticket, memory, shuffled], [bands, causal],
        trigger_mode="always_last", api_visibility="private", show_progress_on=told, **blocks.LIGHT,
    )  # fmt: skip
