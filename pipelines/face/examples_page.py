"""The example photos as widgets. Sources and licences: assets/examples/face/README.md."""

from __future__ import annotations

import gradio as gr

from pipelines.common.catalogue import ROOT
from pipelines.ui.blocks import LIGHT, example_row
from pipelines.ui.i18n import label

FOLDER = ROOT / "assets" / "examples" / "face"


def path(name: str) -> str:
    """Absolute path of an example, for a widget."""
    return str(FOLDER / name)


PHOTOS = [path(name) for name in ("group.jpg", "astronaut.jpg", "hopper.jpg", "obama.jpg", "obama2.jpg", "biden.jpg")]
PAIRS = {
    "One person, twice": (path("obama.jpg"), path("obama2.jpg")),
    "Two men": (path("obama.jpg"), path("biden.jpg")),
    "Two women": (path("astronaut.jpg"), path("hopper.jpg")),
}
FIRST_PAIR = PAIRS["One person, twice"]


def photos(picture: gr.Image) -> None:
    """A row of photos, one of which goes into `picture` when it is clicked."""
    example_row(PHOTOS, picture)


def pairs(first: gr.Image, second: gr.Image) -> None:
    """Buttons that fill both widgets."""
    with gr.Row():
        for name, pair in PAIRS.items():
            button = gr.Button(label(name), size="sm")
            button.click(lambda pair=pair: pair, None, [first, second], api_visibility="private", **LIGHT)
