"""The picture that a drawing begins from, and what of it is painted over to be drawn anew."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from pipelines.common.errors import UserError
from pipelines.common.images import open_picture
from pipelines.common.limits import limits
from pipelines.ui import blocks
from pipelines.ui.i18n import label

from . import examples_page as examples

PAINT = "#d55e00"
DAMAGED = "What was painted over cannot be read; paint it again."


@dataclass(frozen=True)
class Given:
    """What is in the editor: files as bytes or paths of uploads. layers: what was painted, transparent elsewhere."""

    background: bytes | str | None
    layers: tuple[bytes | str, ...]


def _given(self: gr.ImageEditor, payload: Any) -> Given | None:
    """What a handler gets. gradio would decode the files itself, where an odd one raises before our door for pixels can
    say what is wrong."""
    if payload is None:
        return None
    if payload.id is not None:
        blobs = self.blob_storage.pop(payload.id, None)
        layers = () if blobs is None else tuple(each for each in blobs.layers if each is not None)
        return None if blobs is None else Given(blobs.background, layers)
    if payload.background is None:
        return None
    paths = [blocks.within_uploads(each.path) for each in (payload.background, *payload.layers)]
    return Given(paths[0], tuple(paths[1:]))


def editor(page: str) -> gr.ImageEditor:
    """An editor for a picture and a mask painted over it. Handlers get a `Given` or None: give it to `read`."""
    component = gr.ImageEditor(
        label=label("Start picture"), sources=["upload", "clipboard"], image_mode="RGBA", format="png", transforms=(),
        layers=False, canvas_size=(512, 512), height=420, buttons=["fullscreen"],
        brush=gr.Brush(colors=[PAINT], default_color=PAINT, color_mode="fixed"), elem_id=f"diffusion-{page}-start",
    )  # fmt: skip
    return blocks.override(component, preprocess=_given)


def read(given: Given | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The picture (height, width, 3) uint8 RGB and the mask (height, width) bool, true where something was painted;
    None where there is none. UserError: a file cannot be read, or is past a limit."""
    if given is None or not given.background or _blank(given.background):
        return None, None
    image = open_picture(given.background).pixels
    painted: np.ndarray | None = None
    for layer in given.layers:
        strokes = opacity(layer) > 0
        if strokes.any():
            painted = strokes if painted is None or painted.shape != strokes.shape else painted | strokes
    return image, None if painted is None else fitted(painted, image)


def fitted(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The mask in the picture's size where both have one shape; another one is left for the check to refuse."""
    (height, width), (rows, columns) = image.shape[:2], mask.shape
    if mask.shape == (height, width) or abs(rows * width - columns * height) > max(width, height):
        return mask
    shares = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    return np.asarray(shares) > 0


def opacity(layer: bytes | str) -> np.ndarray:
    """(height, width) uint8: the alpha of a painted layer, 255 all over where it has none. UserError: as `read`."""
    return _channel(layer, "A")


def white(mask: bytes | str) -> np.ndarray:
    """(height, width) bool: where a mask's picture is brighter than half. UserError: as `read`."""
    return _channel(mask, "L") > 127


def _channel(file: bytes | str, name: str) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture: Any = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
            if picture.width * picture.height > limits().pixels:
                raise UserError(f"The mask has more than {limits().pixels // 1_000_000} megapixels; make it smaller.")
            return np.asarray(picture.convert("RGBA").getchannel("A") if name == "A" else picture.convert(name))
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        raise UserError(DAMAGED) from error


def _blank(background: bytes | str) -> bool:
    """Whether this is the editor's own empty canvas: a picture that is transparent all over."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture: Any = Image.open(io.BytesIO(background) if isinstance(background, bytes) else background)
            if picture.mode != "RGBA" or picture.width * picture.height > limits().pixels:
                return False
            return not np.asarray(picture.getchannel("A")).any()
    except Exception:  # whatever it is, `open_picture` says what is wrong with it
        return False


def widgets(page: str) -> tuple[gr.ImageEditor, gr.Slider, gr.Button]:
    """The editor, the strength, and the button that takes the drawing."""
    with gr.Accordion(label("Begin from a picture"), open=False, elem_id=f"diffusion-{page}-begin"):
        gr.Markdown(
            label(
                "With a picture here, the drawing begins in it and not in noise. Paint over a part, and only that part "
                "is drawn anew. Empty it to draw from noise again."
            )
        )
        taken = gr.Button(label("Take the drawing above"), size="sm", elem_id=f"diffusion-{page}-take")
        start = editor(page)
        blocks.example_row(list(examples.pictures()), start)
        strength = gr.Slider(
            0.05, 1, 0.6, step=0.05, label=label("Strength: how much of it is drawn anew, 1: all"),
            elem_id=f"diffusion-{page}-strength",
        )  # fmt: skip
    return start, strength, taken
