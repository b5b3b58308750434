"""The example prompts of the Text tab, and the row of them. Written for this project."""

from __future__ import annotations

import json
from functools import cache

import gradio as gr

from pipelines.common.catalogue import ROOT
from pipelines.ui.blocks import example_row

FILE = ROOT / "assets" / "examples" / "moe" / "prompts.json"


@cache
def _all() -> dict[str, list[str] | str]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def stories() -> list[str]:
    """Beginnings of stories."""
    return list(_all()["stories"])


def questions() -> list[str]:
    """First messages of a chat with an instruct model."""
    return list(_all()["chat"])


def passage() -> str:
    """A short text whose bits are counted."""
    return str(_all()["score"])


def prompts(box: gr.Textbox) -> None:
    """A row of beginnings, one of which goes into `box` when it is clicked."""
    example_row(stories(), box)
