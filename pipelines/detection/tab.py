"""The Detection tab: the two switches, and one page for each thing a visitor can do."""

from __future__ import annotations

import gradio as gr

from pipelines.ui import blocks
from pipelines.ui.i18n import label

from . import ablate_page, desk_page, detect_page, query_page, swap_page, video_page

TITLE = "Detection"


def build(page: gr.Blocks, tab: gr.Tab) -> None:
    """Put the tab's widgets into `tab`, which is the current context."""
    gr.Markdown(
        label("Find objects with DETR: a fixed set of queries, each of which answers with one object or with none.")
    )
    switches = blocks.switches(page, "detection", "detector", "transformers")
    with gr.Tabs():
        for title, module in (
            ("Detect", detect_page),
            ("Video", video_page),
            ("Query life", query_page),
            ("Hungarian desk", desk_page),
            ("Ablate", ablate_page),
            ("Swap", swap_page),
        ):
            with gr.Tab(label(title), id=f"detection-{module.__name__.rpartition('.')[2]}") as inner:
                module.build(page, inner, switches)
