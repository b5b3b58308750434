"""The Foundations tab: a page for each idea."""

from __future__ import annotations

import gradio as gr

from pipelines.ui.i18n import label

from . import attention_page, experts_page, margin_page, pixels_page, recurrence_page, scale_page

TITLE = "Foundations"
PAGES = (
    ("Margins", margin_page),
    ("Attention", attention_page),
    ("Recurrence", recurrence_page),
    ("Scale", scale_page),
    ("Pixels", pixels_page),
    ("Experts", experts_page),
)


def build(page: gr.Blocks, tab: gr.Tab) -> None:
    """Put the tab's widgets into `tab`, which is the current context."""
    gr.Markdown(label("The ideas that the other tabs stand on, each small enough to train or measure while you watch."))
    with gr.Tabs():
        for title, module in PAGES:
            with gr.Tab(label(title), id=f"foundations-{module.__name__.rpartition('.')[2]}") as inner:
                module.build(page, inner)
