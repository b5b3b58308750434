"""Gallery: enrol people with names, then say who is in a new picture. It lives in the visitor's session."""

from __future__ import annotations

import os
from functools import cache, partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from pipelines.common import catalogue
from pipelines.common.errors import UserError
from pipelines.common.limits import limits
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say

from . import examples_page as examples
from . import view
from .config import PRESETS
from .contract import Backend, FaceRequest
from .gallery import VARIABLE, Gallery, open_gallery
from .gallery_format import GalleryLimits, check_name
from .pipeline import run, threshold_of

MANAGE = "GLASSHOUSE_GALLERY_MANAGE"  # "1": visitors may export, change and erase the operator's gallery
# Twice the work, and far fewer errors at the same threshold; the same for all, as the two kinds should not be mixed.
FLIP_AVERAGE = True


@cache
def lasting(weights: str, dimension: int) -> Any:
    """The operator's gallery: one object for all visitors, since it keeps nothing of any of them."""
    return open_gallery(weights, dimension)


def opened(gallery: Any, weights: str) -> Any:
    """The visitor's gallery, a new one on first use. UserError if it holds faces described by other weights."""
    if weights == "auto" and gallery is not None and len(gallery):
        weights = gallery.weights  # what "auto" means may change while somebody fetches other weights
    entry = catalogue.resolve("face", weights, "embedder")
    if gallery is None or (gallery.weights != entry.id and len(gallery) == 0):
        dimension = PRESETS[entry.preset].embedding  # type: ignore[union-attr]
        if os.environ.get(VARIABLE):
            return lasting(entry.id, dimension)
        return open_gallery(entry.id, dimension, limits=GalleryLimits(embeddings=limits().session_gallery))
    gallery.check(entry.id)
    return gallery


def welcome(gallery: Any, weights: str, request: gr.Request) -> tuple[Any, str]:
    """Who is in the operator's gallery, when the page is opened."""
    gallery = opened(gallery, weights)
    return gallery, view.people(gallery, partial(say, request))


def enrol(
    gallery: Any, name: str, paths: list[str] | None, backend: Backend, weights: str,
    request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> tuple[Any, str, str, Any, str]:  # fmt: skip
    """Enrol a person with the largest face of each picture."""
    if not paths:
        raise UserError("Choose one or several pictures of the person first.")
    gallery = opened(gallery, weights)
    name = check_name(name, gallery.limits)
    if len(paths) > gallery.limits.per_person:
        raise UserError(f"A person may have at most {gallery.limits.per_person} pictures; choose the best of them.")
    speak = partial(say, request)
    vectors: list[np.ndarray] = []
    chips, without = [], []
    for i, path in enumerate(paths):
        progress(i / len(paths), desc=f"{i + 1} / {len(paths)}")
        image = blocks.read_picture(path)
        faces = run(FaceRequest(image, gallery.weights, backend, flip_average=FLIP_AVERAGE)).faces
        if faces and faces[0].embedding is not None:
            vectors.append(faces[0].embedding)
            chips.append(faces[0].chip)
        else:
            without.append(Path(path).name)
    if not vectors:
        raise UserError("No face was found in these pictures, so nobody was enrolled.")
    total = gallery.enrol(name, np.stack(vectors), chips)
    message = speak("Enrolled {new} picture(s); {name} has {total} now.", new=len(vectors), name=name, total=total)
    if without:
        message += " " + speak("No face was found in: {files}.", files=", ".join(without))
    return gallery, view.people(gallery, speak), view.note(message), None, ""


def identify(
    gallery: Any, path: str | None, backend: Backend, weights: str,
    request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> tuple[Any, Any, str]:  # fmt: skip
    """Name every face of a picture from the gallery, unknown ones included."""
    image = blocks.read_picture(path)
    blocks.announce(progress)
    gallery = opened(gallery, weights)
    result = run(FaceRequest(image, gallery.weights, backend, flip_average=FLIP_AVERAGE))
    described = [face.embedding for face in result.faces if face.embedding is not None]
    vectors = np.stack(described) if described else np.zeros((0, gallery.dimension), np.float32)
    entry = catalogue.manifest()[gallery.weights]
    found = gallery.identify(vectors, threshold_of(entry, FLIP_AVERAGE))
    names = [match.name or "?" for match in found]
    table = view.matches(image, result, found, entry.facts, len(gallery.people()), partial(say, request))
    return gallery, view.annotate(image, result.faces, names), table


def managed(gallery: Any, weights: str) -> Any:
    """The gallery, for what only its owner may do. UserError: it is the operator's, and not open to visitors."""
    if os.environ.get(VARIABLE) and os.environ.get(MANAGE) != "1":
        raise UserError("This gallery is the operator's: visitors may not export, change or erase it here.")
    # Whatever weights are chosen now: a gallery of other ones can still be erased and taken away.
    return opened(None, weights) if gallery is None else gallery


def export(gallery: Any, weights: str) -> str:
    """The gallery as one file. It holds embeddings and thumbnails: treat it as personal data."""
    gallery = managed(gallery, weights)
    if len(gallery) == 0:
        raise UserError("The gallery is empty; enrol somebody first.")
    return blocks.offer(gallery.export(), "gallery.safetensors")


def import_file(gallery: Any, path: str | None, weights: str, request: gr.Request) -> tuple[Any, str, str]:
    """Add everybody in an exported gallery file, all or nothing."""
    if not path:
        raise UserError("Choose an exported gallery file first.")
    gallery = managed(gallery, weights)
    file = Path(path)
    if file.stat().st_size > gallery.limits.file_bytes(gallery.dimension):
        raise UserError("The file is larger than a gallery can be.")
    count = gallery.include(file.read_bytes())
    speak = partial(say, request)
    return gallery, view.people(gallery, speak), view.note(speak("Imported {n} face(s).", n=count))


def forget(gallery: Any, name: str, weights: str, request: gr.Request) -> tuple[Any, str, str]:
    """Forget one person."""
    gallery = managed(gallery, weights)
    gone = gallery.remove(check_name(name, gallery.limits))
    if not gone:
        raise UserError("Nobody of that name is enrolled; write the name as it stands in the list.")
    speak = partial(say, request)
    return gallery, view.people(gallery, speak), view.note(speak("Forgotten: {n} face(s).", n=gone))


def erase(gallery: Any, weights: str, request: gr.Request) -> tuple[Any, str, str]:
    """Forget everybody, and prove it with a count."""
    gallery = managed(gallery, weights)
    gone, left = gallery.erase(), len(gallery)
    speak = partial(say, request)
    message = speak("Erased: {n} face(s). Left in the gallery: {left}.", n=gone, left=left)
    return gallery, view.people(gallery, speak), view.note(message)


def leave(gallery: Any) -> None:
    """Overwrite a session's gallery when gradio drops the session; the operator's stays."""
    if isinstance(gallery, Gallery):
        gallery.erase()


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    gallery = gr.State(None, delete_callback=leave)
    operators = bool(os.environ.get(VARIABLE))
    gr.Markdown(
        label("This gallery is the operator's: it lasts, and every visitor of this machine sees it.")
        if operators
        else label(
            "This gallery lives in your session: it is erased when you erase it, or about an hour after you close the "
            "page, unless you export it. Uploads and exports are deleted from the server within an hour and a half."
        )
    )
    with gr.Row():
        with gr.Column():
            name = gr.Textbox(label=label("Name"), max_lines=1, elem_id="face-gallery-name")
            files = gr.File(
                label=label("Pictures of this person"), file_count="multiple", file_types=["image"], height=140,
                elem_id="face-gallery-files",
            )  # fmt: skip
            add = gr.Button(label("Enrol"), variant="primary", elem_id="face-gallery-enrol")
            everybody = gr.HTML(elem_id="face-gallery-people")
            message = gr.HTML(elem_id="face-gallery-message")
            with gr.Accordion(label("Export, import, forget, erase"), open=False, elem_id="face-gallery-more"):
                saved = gr.File(label=label("Exported gallery"), interactive=False, visible=True, height=90)
                with gr.Row():
                    save = gr.Button(label("Export"), size="sm", elem_id="face-gallery-export")
                    load = gr.UploadButton(label("Import"), size="sm", elem_id="face-gallery-import")  # type: ignore[arg-type]
                    drop = gr.Button(label("Forget the person named above"), size="sm")
                    wipe = gr.Button(label("Erase everything"), size="sm", variant="stop", elem_id="face-gallery-erase")
        with gr.Column():
            picture = blocks.picture_input(
                "Who is in this picture?", value=examples.path("group.jpg"), height=300, elem_id="face-gallery-picture"
            )
            who = gr.Button(label("Identify"), variant="primary", elem_id="face-gallery-identify")
            shown = blocks.picture_output("Faces", elem_id="face-gallery-shown")
            table = gr.HTML(elem_id="face-gallery-table")
            examples.photos(picture)
    for widget in (files, load):
        blocks.only_uploads(widget)
    described = [switches.implementation, switches.weights]
    state = [gallery, everybody, message]
    if operators:
        tab.select(
            guarded(welcome),
            [gallery, switches.weights],
            [gallery, everybody],
            api_visibility="private",
            **blocks.LIGHT,
        )
    add.click(
        guarded(enrol), [gallery, name, files, *described], [*state, files, name], api_name="face_enrol", **blocks.HEAVY
    )
    who.click(
        guarded(identify),
        [gallery, picture, *described],
        [gallery, shown, table],
        api_name="face_identify",
        **blocks.HEAVY,
    )
    save.click(guarded(export), [gallery, switches.weights], saved, api_name="face_gallery_export", **blocks.HEAVY)
    # In the same queue as enrolment: an erasure must not finish while a face is still on its way in.
    for button, handler, extra in ((drop, forget, [name]), (wipe, erase, [])):
        inputs = [gallery, *extra, switches.weights]
        button.click(guarded(handler), inputs, state, api_name=f"face_gallery_{handler.__name__}", **blocks.HEAVY)
    load.upload(
        guarded(import_file), [gallery, load, switches.weights], state, api_name="face_gallery_import", **blocks.HEAVY
    )
