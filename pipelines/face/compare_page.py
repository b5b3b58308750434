"""Compare: are the faces of two pictures one person, how sure, and what the threshold is worth."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from pipelines.common import catalogue
from pipelines.common.errors import UserError
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say

from . import examples_page as examples
from . import view
from .contract import Backend, Face, FaceRequest
from .pipeline import compare as compare_embeddings
from .pipeline import run


class Described(NamedTuple):
    """The largest face of a picture, and the catalogue id of the weights that described it."""

    image: np.ndarray
    face: Face
    chip: np.ndarray
    embedding: np.ndarray
    weights: str


def described_pair(
    first: str | None, second: str | None, progress: gr.Progress, **options: Any
) -> tuple[Described, Described]:
    """The largest face of each picture. UserError says in which picture there is none."""
    names = ("first", "second")
    paths = zip((first, second), names, strict=True)
    images = [blocks.read_picture(path, f"Choose the {which} picture.") for path, which in paths]
    blocks.announce(progress)
    found = []
    for image, which in zip(images, names, strict=True):
        result = run(FaceRequest(image, **options))
        if not result.faces:
            raise UserError(
                f"No face was found in the {which} picture; choose one in which the face is larger or clearer."
            )
        face = result.faces[0]
        assert face.chip is not None and face.embedding is not None  # the request asked for them
        found.append(Described(image, face, face.chip, face.embedding, result.weights))
    return found[0], found[1]


def compare(
    first: str | None, second: str | None, backend: Backend, weights: str, flip_average: bool,
    request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> tuple[str, dict[str, Any]]:  # fmt: skip
    """Compare the largest face of two pictures: aligned chips, similarity, verdict; and the same as JSON."""
    a, b = described_pair(first, second, progress, backend=backend, weights=weights, flip_average=flip_average)
    outcome = compare_embeddings(a.embedding, b.embedding, a.weights, flip_average)
    facts = catalogue.manifest()[a.weights].facts
    speak = partial(say, request)
    chips = view.chips([a.chip, b.chip], [speak("first, aligned"), speak("second, aligned")], 140)
    data = {
        "similarity": round(outcome.similarity, 5),
        "threshold": outcome.threshold,
        "same": outcome.same,
        "weights": a.weights,
    }
    return chips + view.comparison(outcome, facts, flip_average, speak), data


def compare_new(
    last: tuple[Any, ...] | None, first: str | None, second: str | None, backend: Backend, weights: str,
    flip_average: bool, request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> tuple[Any, Any, Any]:  # fmt: skip
    """`compare` with no button pressed: when the page is opened and for another pair, once each."""
    pair = (first, second, backend, weights, flip_average)
    if not first or not second:
        return None, "", None
    if pair == last:
        return gr.skip(), gr.skip(), gr.skip()  # type: ignore[return-value]
    return pair, *compare(*pair, request, progress)  # type: ignore[arg-type]


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    with gr.Row():
        first, second = (
            blocks.picture_input(text, value=path, height=300, elem_id=f"face-compare-{i}")
            for i, (text, path) in enumerate(zip(("First picture", "Second picture"), examples.FIRST_PAIR, strict=True))
        )
    with gr.Row():
        button = gr.Button(label("Compare"), variant="primary", elem_id="face-compare-run")
        flip = gr.Checkbox(False, label=label("Average each face with its mirror image"), elem_id="face-compare-flip")
    result = gr.HTML(elem_id="face-compare-result")
    with gr.Accordion(label("The same as data"), open=False):
        data = gr.JSON(show_label=False)
    examples.pairs(first, second)
    inputs = [first, second, switches.implementation, switches.weights, flip]
    button.click(guarded(compare), inputs, [result, data], api_name="face_compare", **blocks.HEAVY)
    # Opening the page shows the example, a new pair its result. Both pictures of a pair report a change, and so does
    # opening the page: what was compared last tells which of them brings something new.
    last = gr.State(None)
    triggers = [tab.select, first.change, second.change, flip.change]
    quiet: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "always_last", **blocks.HEAVY}
    gr.on(triggers, guarded(compare_new), [last, *inputs], [last, result, data], **quiet)
    # A result of other weights must not stay; the page may not be the one that is open, so nothing is computed.
    stale = [switches.implementation.change, switches.weights.change]
    gr.on(stale, lambda: (None, "", None), None, [last, result, data], api_visibility="private", **blocks.LIGHT)
