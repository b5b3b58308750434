"""The examples of the Text to image tab: prompts worded like the training's captions, and pictures to begin from."""

from __future__ import annotations

import json
from functools import cache

import gradio as gr

from pipelines.common.catalogue import ROOT
from pipelines.ui.i18n import label

FOLDER = ROOT / "assets" / "examples" / "diffusion"


@cache
def prompts() -> tuple[str, ...]:
    """What the bundled model was taught to draw."""
    return tuple(json.loads((FOLDER / "prompts.json").read_text(encoding="utf-8")))


@cache
def pictures() -> tuple[str, ...]:
    """Paths of pictures to begin from, drawn by the bundled model; each carries its run."""
    return tuple(str(path) for path in sorted(FOLDER.glob("*.png")))


def prompt_row(box: gr.Textbox) -> None:
    """A row of prompts, one of which goes into `box` when it is clicked."""
    gr.Examples(
        [[one] for one in prompts()], [box], label=label("Examples"), cache_examples=False, api_visibility="private",
        examples_per_page=len(prompts()),
    )  # fmt: skip
