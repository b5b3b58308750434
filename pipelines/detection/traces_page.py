"""What the pages about the inside share: a photo's traced run, kept on a shelf, and the truth drawn at the desk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import gradio as gr
import numpy as np

from pipelines.common import catalogue
from pipelines.common.errors import UserError
from pipelines.common.limits import limits
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label
from pipelines.ui.shelf import Shelf

from . import coco
from . import examples_page as examples
from .config import PRESETS, NetworkConfig
from .contract import Trace
from .desk import Truth, read_rows, to_rows
from .detect_page import meant
from .insight import Life, life
from .labels import categories
from .pipeline import trace, usual_threshold

FIRST = "Run the network on a picture first."
BLANK = (124, 116, 104)  # the mean colour of ImageNet, which the network sees as zeros


@dataclass(frozen=True)
class Run:
    """One picture's trace. image: (H, W, 3) uint8. weights: id. threshold: usual least score of an object. blank: the
    trace of a blank picture of the same size, or None where none was wanted."""

    image: np.ndarray
    weights: str
    config: NetworkConfig
    threshold: float
    trace: Trace
    blank: Trace | None = None

    @cached_property
    def life(self) -> Life:
        return life(self.trace, self.names)

    @property
    def names(self) -> Mapping[int, str]:
        """Class index -> name."""
        return class_names(self.config)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def nbytes(self) -> int:
        return self.image.nbytes + self.trace.nbytes + (self.blank.nbytes if self.blank is not None else 0)


@dataclass(frozen=True)
class Drawn:
    """The truth of one picture, as it was last drawn. picture: its `digest`. boxes: (n, 4) xyxy in its pixels."""

    picture: str
    boxes: np.ndarray
    labels: tuple[str, ...]


@cache
def shelf() -> Shelf:
    """Where the traced runs of all visitors are kept."""
    return Shelf(limits().traces_mb * 1_000_000)


def class_names(config: NetworkConfig) -> dict[int, str]:
    """Class index -> name."""
    return {index: category.name for index, category in categories(config.labels).items()}


def network(weights: str) -> tuple[str, NetworkConfig, float]:
    """Id, configuration and usual threshold of the weights that are meant. UserError: they are not on this machine."""
    entry = catalogue.resolve("detection", weights, "detector")
    return entry.id, PRESETS[entry.preset], usual_threshold(entry)


def meant_threshold(weights: str) -> float:
    """The threshold that fits the chosen weights, be they on this machine or not."""
    return meant(weights)[1]


def threshold_slider(switches: blocks.Switches, text: str, elem_id: str) -> gr.Slider:
    """A least score that follows the chosen weights."""
    slider = gr.Slider(0.01, 0.99, meant_threshold("auto"), step=0.01, label=label(text), elem_id=elem_id)
    switches.weights.change(
        guarded(meant_threshold), switches.weights, slider, api_visibility="private", show_progress="hidden",
        **blocks.LIGHT,
    )  # fmt: skip
    return slider


def take(path: str | None, weights: str, progress: gr.Progress | None, blank: bool = False) -> tuple[str, Run]:
    """Trace a picture and put it on the shelf: ticket and run."""
    image = blocks.read_picture(path)
    blocks.announce(progress)
    name, config, threshold = network(weights)
    traced = trace(image, name)
    empty = None
    if blank:
        if progress is not None:
            progress(0.6, desc="The blank picture …")
        empty = trace(np.broadcast_to(np.array(BLANK, np.uint8), image.shape).copy(), name)
    run = Run(image, name, config, threshold, traced, empty)
    return shelf().put(run, run.nbytes), run


def kept(ticket: str | None) -> Run:
    """The run of a ticket. UserError: nothing was run yet, or it had to make room for others' runs."""
    run = shelf().get(ticket)
    if run is None:
        raise UserError(FIRST)
    return run


def digest(image: np.ndarray) -> str:
    """Tells one picture from another."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()[:24]


def shipped(path: str | None, size: tuple[int, int], config: NetworkConfig) -> Truth | None:
    """The truth that comes with an example photo, in the classes of these weights, if this is one. size: of the picture
    as it was read."""
    if not path:
        return None
    photo, document = examples.FOLDER / Path(path).name, examples.FOLDER / "truth.json"
    if not (photo.is_file() and document.is_file()) or photo.read_bytes() != Path(path).read_bytes():
        return None
    images, _ = coco.read(document.read_bytes())
    chosen = [image for image in images if image.name == photo.name]
    if not chosen:
        return None
    truth = coco.fit(chosen[0], size)
    found = read_rows(to_rows(truth.boxes, truth.labels), size, config.labels)
    return found if len(found) else None


_truths: WeakKeyDictionary[gr.Blocks, gr.State] = WeakKeyDictionary()


def drawn_truth(page: gr.Blocks) -> gr.State:
    """The visitor's `Drawn` or None: one state of the page, which the desk writes and others read."""
    if page not in _truths:
        _truths[page] = gr.State(None)
    return _truths[page]


def point(event: Any, run: Run) -> tuple[float, float]:
    """Where a picture was clicked, in its pixels."""
    height, width = run.size
    x, y = event.index
    return min(max(float(x), 0), width), min(max(float(y), 0), height)
