"""The Face tab: the two switches, and one page for each thing a visitor can do."""

from __future__ import annotations

import gradio as gr

from pipelines.ui import blocks
from pipelines.ui.i18n import label

from . import compare_page, detect_page, gallery_page, inside_page, processing_page, swap_page

TITLE = "Face"


def build(page: gr.Blocks, tab: gr.Tab) -> None:
    """Put the tab's widgets into `tab`, which is the current context."""
    gr.Markdown(label("Find faces with MTCNN, align them, and recognise people by the angle between embeddings."))
    switches = blocks.switches(page, "face", "embedder", "facenet-pytorch, dlib")
    with gr.Tabs():
        for title, module in (
            ("Detect", detect_page),
            ("Compare", compare_page),
            ("Gallery", gallery_page),
            ("Face processing", processing_page),
            ("Inside", inside_page),
            ("Swap", swap_page),
        ):
            with gr.Tab(label(title), id=f"face-{module.__name__.rpartition('.')[2]}") as inner:
                module.build(page, inner, switches)
