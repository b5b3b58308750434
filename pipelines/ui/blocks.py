"""Widgets and wiring that several tabs use."""

from __future__ import annotations

import html
import os
import secrets
import sys
from abc import ABCMeta
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.processing_utils import encode_pil_to_bytes, hash_bytes
from gradio.utils import get_upload_folder
from PIL import Image

from pipelines.common import catalogue, checkpoint
from pipelines.common.errors import UserError
from pipelines.common.images import open_picture

from .guard import guarded
from .i18n import label, say

HEAVY: dict[str, Any] = {"concurrency_id": "heavy", "concurrency_limit": 1}  # model work: one at a time, in order
LIGHT: dict[str, Any] = {"concurrency_id": "light", "concurrency_limit": 8}  # look-ups and drawing


def override(component: Any, **methods: Callable[..., Any]) -> Any:
    """Give a widget methods of ours, each called with the widget first. Returns the widget.

    On a class of its own: after an update, gradio makes the widget anew for that visitor, from its class, and methods
    of the instance would be gone, with what they check. Not by a class statement: gradio's metaclass would write a .pyi
    file beside this one.
    """
    base = type(component)
    inside = {**methods, "__module__": base.__module__}  # name and module are those by which the browser knows it
    component.__class__ = ABCMeta.__new__(type(base), base.__name__, (base,), inside)
    return component


def picture_input(text: str, **options: Any) -> gr.Image:
    """A picture from a file, the clipboard or the webcam. Handlers get a path or None: give it to `read_picture`."""
    sources: Any = ["upload", "webcam", "clipboard"]

    def path_only(self: gr.Image, payload: Any) -> Any:
        # gradio would open the file here, where an odd one raises before our door for pixels can say what is wrong.
        if payload is None or (payload.url and payload.url.startswith("data:")):
            return gr.Image.preprocess(self, payload)
        return within_uploads(payload.path)

    component = gr.Image(label=label(text), type="filepath", image_mode=None, sources=sources, **options)
    return override(component, preprocess=path_only)


def picture_output(text: str, **options: Any) -> gr.Image:
    """A picture for the visitor to look at and to save."""

    def whole(self: gr.Image, value: Any) -> Any:
        # gradio writes equal pictures to one file, again each time: a visitor who is loading it would get half of it.
        if isinstance(value, np.ndarray):
            value = offer(encode_pil_to_bytes(Image.fromarray(value), "webp"), "image.webp")
        return gr.Image.postprocess(self, value)

    component = gr.Image(label=label(text), interactive=False, buttons=["download", "fullscreen"], **options)
    return override(component, postprocess=whole)


def within_uploads(path: str | None) -> str:
    """The path, if it is one of an upload. A request put together by hand may name any file of the server."""
    folder = Path(get_upload_folder()).resolve()
    if not path or not Path(path).resolve().is_relative_to(folder):
        raise gr.Error("Upload the picture instead of naming a file on the server.", title="", print_exception=False)
    return path


def only_uploads(component: Any) -> Any:
    """Make a file widget refuse any file that was not uploaded; see `within_uploads`. Returns the widget."""
    take = type(component).preprocess

    def checked(self: Any, payload: Any) -> Any:
        for file in getattr(payload, "root", None) or ([payload] if payload is not None else []):
            within_uploads(file.path)
        return take(self, payload)

    return override(component, preprocess=checked)


def any_value(component: Any) -> Any:
    """Let through what the widget does not list, where its range and choices depend on what else is chosen; the
    handler says what is out of range. Returns the widget."""
    return override(component, preprocess=lambda self, value: value)


def read_picture(path: str | None, missing: str = "Choose a picture first.") -> np.ndarray:
    """(height, width, 3) uint8 RGB of an upload; tells the visitor if it was made smaller. UserError: see images."""
    if not path:
        raise UserError(missing)
    picture = open_picture(path)
    if picture.note:
        gr.Info(picture.note)
    return picture.pixels


def offer(data: bytes, name: str) -> str:
    """Path of a file for a visitor to download, in gradio's cache, where it is deleted after an hour like uploads.

    The folder is named by the content, as gradio's own are, so that it recognises the file; it appears there whole.
    """
    folder = Path(get_upload_folder()) / hash_bytes(data)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name
    if target.is_file():
        os.utime(target)  # its hour begins again
    else:
        partial = folder / f".{secrets.token_hex(8)}"
        partial.write_bytes(data)
        partial.replace(target)
    return str(target)


def announce(progress: gr.Progress | None, share: float = 0.05) -> None:
    """Tell the visitor what the first use of a model waits for."""
    if progress is not None:
        first = "torch" not in sys.modules
        progress(share, desc="Loading PyTorch and the networks (first time only) …" if first else "Working …")


@dataclass(frozen=True)
class Switches:
    """The two switches of a model tab, and the card that says what is behind them."""

    implementation: gr.Radio
    weights: gr.Dropdown
    refresh: Callable[[Any], None]  # (event) -> None: bring the card up to date after it


def weights_choices(pipeline: str, role: str) -> list[tuple[Any, str]]:
    """Every entry of the catalogue, those that are not on this machine marked."""
    choices: list[tuple[Any, str]] = [(label("Automatic: the best that is here"), "auto")]
    for entry in catalogue.entries(pipeline, role):
        absent = "" if checkpoint.locate(entry) else "  (not here yet)"
        choices.append((entry.title + absent, entry.id))
    return choices


def switches(page: gr.Blocks, pipeline: str, role: str, reference: str) -> Switches:
    """Implementation and weights for one tab, with the card and the button that fetches what is missing."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=260):
            implementation = gr.Radio(
                [(label("Rebuilt here"), "local"), (reference, "reference")],
                value="local", label=label("Implementation"), elem_id=f"{pipeline}-implementation",
            )  # fmt: skip
            weights = gr.Dropdown(
                weights_choices(pipeline, role), value="auto", label=label("Weights"), elem_id=f"{pipeline}-weights"
            )
            fetch = gr.Button(label("Fetch these weights"), visible=False, size="sm", elem_id=f"{pipeline}-fetch")
        with gr.Column(scale=3, min_width=320):
            card = gr.HTML(elem_id=f"{pipeline}-card")
    chosen = [implementation, weights]

    def show(implementation: str, weights: str, request: gr.Request) -> tuple[str, Any]:
        text = model_card(pipeline, role, implementation, weights, partial(say, request))
        return text, gr.update(visible=_missing(pipeline, role, weights))

    quietly: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", **LIGHT}
    gr.on([page.load, implementation.change, weights.change], guarded(show), chosen, [card, fetch], **quietly)
    run = fetch.click(
        guarded(_fetcher(pipeline, role)), weights, weights, api_name=f"{pipeline}_fetch",
        concurrency_id="fetch", concurrency_limit=2,
    )  # fmt: skip
    run.then(guarded(show), chosen, [card, fetch], **quietly)

    def refresh(event: Any) -> None:
        event.then(guarded(show), chosen, [card, fetch], **quietly)

    return Switches(implementation, weights, refresh)


def _find(pipeline: str, role: str, weights: str) -> catalogue.Entry | None:
    return next((entry for entry in catalogue.entries(pipeline, role) if entry.id == weights), None)


def _missing(pipeline: str, role: str, weights: str) -> bool:
    entry = _find(pipeline, role, weights)
    return entry is not None and entry.fetchable and checkpoint.locate(entry) is None


def _fetcher(pipeline: str, role: str) -> Callable[..., Iterator[Any]]:
    def fetch(weights: str, progress: gr.Progress = gr.Progress()) -> Iterator[Any]:
        """Download the weights that are not on this machine yet. Only a button does this, never a choice."""
        entry = _find(pipeline, role, weights)
        if entry is None:
            raise UserError("Choose the weights to fetch in the list first.")
        for event in checkpoint.fetch(entry):
            megabytes = f" {event.done / 1e6:.0f} of {event.total / 1e6:.0f} MB" if event.total > 1 else ""
            progress(event.done / event.total if event.total else 0.0, desc=event.message + megabytes)
            yield gr.skip()
        yield gr.update(choices=weights_choices(pipeline, role), value=weights)

    return fetch


def example_row(files: list[str], target: gr.components.Component) -> None:
    """A row of files, one of which goes into `target` when it is clicked."""
    gr.Examples(
        [[one] for one in files], [target], label=label("Examples"), cache_examples=False, api_visibility="private"
    )


def model_card(pipeline: str, role: str, implementation: str, weights: str, say: Callable[..., str]) -> str:
    """What is behind the switches, as HTML: implementation, weights, source, licence, size, training, score, device."""
    try:
        entry = catalogue.resolve(pipeline, weights, role)
        here = ""
    except UserError as error:
        found = _find(pipeline, role, weights)
        if found is None:
            return f'<div class="gh-card">{html.escape(str(error))}</div>'
        entry, here = found, say(" — not on this machine")
    rows = [
        (
            say("Implementation"),
            say("rebuilt in this repository") if implementation == "local" else say("the reference library"),
        ),
        (say("Weights"), entry.title + here),
        (say("Source"), _source(entry, say)),
        (say("Licence"), entry.licence),
        (say("Size"), f"{entry.size / 1e6:.1f} MB" if entry.size else f"≈ {entry.facts.get('megabytes', '?')} MB"),
        (say("Trained on"), str(entry.facts.get("trained_on") or say("not stated"))),
        (say("Measured"), str(entry.facts.get("score") or say("not measured here"))),
        (say("Runs on"), _device(say)),
    ]
    cells = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in rows)
    return f'<div class="gh-card"><dl>{cells}</dl></div>'


def _source(entry: catalogue.Entry, say: Callable[..., str]) -> str:
    return {
        "bundled": say("trained here, in this repository"),
        "package": say("the Python package {name}", name=entry.origin),
        "hub": say("{name} on the Hugging Face hub", name=entry.origin),
        "url": say("its authors' release, {name}", name=entry.files[0].path),
    }[entry.source]


def _device(say: Callable[..., str]) -> str:
    if "torch" not in sys.modules:  # asking would import it, and the page does not wait for that
        return say("chosen when the first model loads")
    from pipelines.common.device import pick

    chosen = pick()
    return f"{chosen.device}, {chosen.dtype}: {chosen.reason}"
