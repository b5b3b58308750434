"""A saved picture is brought back: its settings onto the page, its run drawn again and held against the file."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.common import catalogue
from pipelines.common.errors import UserError
from pipelines.common.images import open_picture
from pipelines.common.limits import limits
from pipelines.ui import blocks
from pipelines.ui.i18n import label, say

from . import record as records
from . import settings_page as settings
from . import start_page, view
from .contract import DiffusionRequest


def widget(page: str) -> gr.File:
    """Where a saved picture is dropped. It does not filter by name: what is none of ours gets a sentence."""
    return blocks.only_uploads(
        gr.File(
            label=label("Replay a saved picture"),
            height=150,
            elem_id=f"diffusion-{page}-back",
        )
    )


def read(path: str | None) -> tuple[bytes, dict[str, Any]]:
    """The file, and the record inside. UserError: there is none, or it cannot be believed."""
    if not path:
        raise UserError("Drop a picture first that was saved here.")
    with Path(path).open("rb") as stream:
        data = stream.read(limits().upload_bytes + 1)
    return data, records.read_record(data)


def restore(path: str | None) -> tuple[Any, ...]:
    """All settings of a dropped picture: prompt, strength, implementation, weights, editor, then the settings' own.

    The start picture is not in the file: the editor keeps what it has if one is needed, and is emptied if none is.
    """
    _, record = read(path)
    request = records.request_of(record["request"])
    known = request.weights in catalogue.manifest()
    return (
        request.prompt,
        request.strength,
        request.backend,
        request.weights if known else gr.skip(),
        gr.skip() if record["image"] else None,
        *settings.restored(request),
    )


def asked(path: str | None, given: start_page.Given | None) -> DiffusionRequest:
    """The request of a dropped picture. UserError: as `record.read_png`, or its weights are not in the catalogue."""
    _, record = read(path)
    if record["weights"]["id"] not in catalogue.manifest():
        raise UserError("These weights are none that this demo knows, so the picture cannot be drawn again here.")
    image, mask = start_page.read(given)
    return replace(records.replay(record, image, mask), previews=True)


def verdict(path: str, image: Any, request: gr.Request) -> str:
    """Whether the picture that was drawn is the file's, and what is different here."""
    data, record = read(path)
    return view.replayed(open_picture(data).pixels, image, records.notes(record), partial(say, request))
