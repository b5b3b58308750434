"""Face processing: normalise both faces or vary one, and see how far that moves their similarity."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr
import numpy as np

from pipelines.common import catalogue
from pipelines.common.errors import UserError
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say

from . import examples_page as examples
from . import view
from .compare_page import described_pair
from .contract import Backend
from .pipeline import embed, threshold_of, unaligned_chip
from .processing import AUGMENTATIONS, NORMALISATIONS
from .processing import effects as measure


def effects(
    first: str | None, second: str | None, normalisations: list[str], augmentations: list[str], seed: float,
    backend: Backend, weights: str, request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> tuple[str, list[dict[str, Any]]]:  # fmt: skip
    """How far each switch moves the similarity of the largest faces of two pictures: a table, and the same as JSON."""
    names = [*normalisations, *augmentations]
    if not names:
        raise UserError("Switch on at least one normalisation or augmentation.")
    a, b = described_pair(first, second, progress, backend=backend, weights=weights)
    embedder = partial(embed, weights=a.weights, backend=backend)
    found = measure(a.chip, b.chip, embedder, names, a.face.pose.yaw, b.face.pose.yaw, int(seed or 0))
    crops = np.stack([unaligned_chip(one.image, one.face, len(one.chip)) for one in (a, b)])
    loose = embedder(crops)
    threshold = threshold_of(catalogue.manifest()[a.weights])
    table = view.effects_table(found, (crops[0], float(loose[0] @ loose[1])), a.chip, threshold, partial(say, request))
    data = [{"name": e.name, "before": e.similarity_before, "after": e.similarity_after} for e in found]
    return table, data


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    gr.Markdown(
        label(
            "Normalisations are applied to both faces and bring many conditions to one; augmentations change only the "
            "first face and make many conditions out of one. The number is the cosine similarity of your pair."
        )
    )
    with gr.Row():
        with gr.Column(scale=2):
            with gr.Row():
                first, second = (
                    blocks.picture_input(text, value=path, height=220, elem_id=f"face-processing-{i}")
                    for i, (text, path) in enumerate(
                        zip(("First picture", "Second picture"), examples.FIRST_PAIR, strict=True)
                    )
                )
            examples.pairs(first, second)
            normalisations = gr.CheckboxGroup(
                [(label(one.label), name) for name, one in NORMALISATIONS.items()], value=list(NORMALISATIONS),
                label=label("Normalisations (both faces)"),
            )  # fmt: skip
            augmentations = gr.CheckboxGroup(
                [(label(one.label), name) for name, one in AUGMENTATIONS.items()], value=list(AUGMENTATIONS),
                label=label("Augmentations (first face)"),
            )  # fmt: skip
            seed = gr.Number(0, label=label("Seed of what is random"), precision=0, minimum=0, maximum=2**31 - 1)
            button = gr.Button(label("Measure the effects"), variant="primary", elem_id="face-processing-run")
        with gr.Column(scale=3):
            table = gr.HTML(elem_id="face-processing-table")
            with gr.Accordion(label("The same as data"), open=False):
                data = gr.JSON(show_label=False)
    inputs = [first, second, normalisations, augmentations, seed, switches.implementation, switches.weights]
    button.click(guarded(effects), inputs, [table, data], api_name="face_effects", **blocks.HEAVY)
