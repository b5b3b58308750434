"""The Text tab: the two switches, and one page for each thing a visitor can do."""

from __future__ import annotations

import gradio as gr

from pipelines.ui import blocks
from pipelines.ui.i18n import label

from . import ledger_page, memory_page, operate_page, swap_page, write_page

TITLE = "Text"


def build(page: gr.Blocks, tab: gr.Tab) -> None:
    """Put the tab's widgets into `tab`, which is the current context."""
    gr.Markdown(
        label(
            "Write with a mixture of experts: in every layer a router picks, for each token, the few small networks "
            "that work."
        )
    )
    switches = blocks.switches(page, "moe", "decoder", "transformers")
    with gr.Tabs():
        for title, module in (
            ("Write", write_page),
            ("Operate", operate_page),
            ("Ledger", ledger_page),
            ("Memory", memory_page),
            ("Swap", swap_page),
        ):
            with gr.Tab(label(title), id=f"moe-{module.__name__.rpartition('.')[2]}") as inner:
                module.build(page, inner, switches)
