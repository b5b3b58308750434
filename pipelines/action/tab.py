"""The Action tab: the two switches, the threshold, and one page for each thing a visitor can do."""

from __future__ import annotations

import gradio as gr

from pipelines.ui import blocks
from pipelines.ui.i18n import label

from . import brains_page, player_page, ribbon_page, swap_page, teach_page, watch_page

TITLE = "Action"


def build(page: gr.Blocks, tab: gr.Tab) -> None:
    """Put the tab's widgets into `tab`, which is the current context."""
    gr.Markdown(
        label(
            "Name what somebody does while they do it: BlazePose finds the body in each frame, and OadTR reads the "
            "last 3.2 seconds of its movement, on one processor core."
        )
    )
    switches = blocks.switches(page, "action", "brain", "VideoMAE (transformers)")
    threshold = gr.Slider(
        0.05, 1, watch_page.meant("auto", "local"), step=0.01, label=label("Threshold at which an action begins"),
        elem_id="action-threshold",
    )  # fmt: skip
    shared = watch_page.Shared(
        switches, threshold, gr.HTML(elem_id="action-setup", padding=False),
        gr.State(None, delete_callback=lambda t: player_page.courses().drop(t)),
        gr.Textbox(visible=False, elem_id="action-ticket"),
    )  # fmt: skip
    with gr.Tabs():
        for title, module in (
            ("Watch", watch_page),
            ("Memory and future", ribbon_page),
            ("Brains", brains_page),
            ("Teach", teach_page),
            ("Swap", swap_page),
        ):
            with gr.Tab(label(title), id=f"action-{module.__name__.rpartition('.')[2]}") as inner:
                module.build(page, inner, shared)
    watch_page.wire(page, shared)
