"""The example photos and videos as widgets. Sources and licences: assets/examples/detection/README.md."""

from __future__ import annotations

import gradio as gr

from pipelines.common.catalogue import ROOT
from pipelines.ui.blocks import example_row

FOLDER = ROOT / "assets" / "examples" / "detection"


def path(name: str) -> str:
    """Absolute path of an example, for a widget."""
    return str(FOLDER / name)


PHOTOS = [
    path(f"{name}.jpg")
    for name in (
        "cows", "motorcycle", "dogs", "horses", "sheep", "kitten", "musicians", "kingfisher", "railway", "table",
    )
]  # fmt: skip
VIDEOS = [path("pan.webm"), path("dog.webm")]


def photos(picture: gr.Image) -> None:
    """A row of photos, one of which goes into `picture` when it is clicked."""
    example_row(PHOTOS, picture)


def videos(video: gr.Video) -> None:
    """The same of videos."""
    example_row(VIDEOS, video)
