"""The Text to image tab: the two switches, and one page for each thing a visitor can do."""

from __future__ import annotations

import gradio as gr

from pipelines.ui import blocks
from pipelines.ui.i18n import label

from . import draw_page, race_page, swap_page, travel_page, xray_page

TITLE = "Text to image"


def build(page: gr.Blocks, tab: gr.Tab) -> None:
    """Put the tab's widgets into `tab`, which is the current context."""
    gr.Markdown(
        label(
            "Draw with latent diffusion: a network takes noise away, call by call, until what the prompt says is left; "
            "watch it, go back in time inside a picture, and change its course."
        )
    )
    switches = blocks.switches(page, "diffusion", "model", "diffusers")
    with gr.Tabs():
        for title, module in (
            ("Draw", draw_page),
            ("Time travel", travel_page),
            ("X-ray", xray_page),
            ("Race", race_page),
            ("Swap", swap_page),
        ):
            with gr.Tab(label(title), id=f"diffusion-{module.__name__.rpartition('.')[2]}") as inner:
                module.build(page, inner, switches)
