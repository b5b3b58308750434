"""Detect: a picture in; boxes, scores, the query behind each, and panoptic segments out, as a picture and as COCO."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from pipelines.common import catalogue
from pipelines.common.errors import UserError
from pipelines.common.limits import limits
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say, untranslated
from pipelines.ui.shelf import Shelf

from . import examples_page as examples
from . import view
from .coco import Found, document
from .config import PRESETS, InputSize, NetworkConfig
from .contract import Backend, DetectionRequest, DetectionResult, Prediction
from .labels import names
from .pipeline import LONGEST, cost, finish, predict, usual_threshold
from .preprocess import sizes

SIDES = (96, 800, 32)  # least, most and step of the input size; published DETRs are meant for 800
FIRST = "Find the objects of a picture first."


@dataclass(frozen=True)
class Seen:
    """A picture and what the network said of it, so that another threshold costs no pass through the network.

    seconds: of the stages so far. name: of the file.
    """

    request: DetectionRequest
    prediction: Prediction
    seconds: Mapping[str, float]
    name: str

    @property
    def nbytes(self) -> int:
        held = (self.request.image, self.prediction.logits, self.prediction.boxes, self.prediction.masks)
        return sum(array.nbytes for array in held if array is not None)

    @property
    def config(self) -> NetworkConfig:
        return PRESETS[catalogue.manifest()[self.request.weights].preset]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return self.request.image.shape[0], self.request.image.shape[1]

    def sifted(self, threshold: float, classes: list[str] | None) -> DetectionResult:
        """The objects at a threshold. UserError: an unknown class, or no share."""
        request = replace(self.request, threshold=threshold, classes=_names(classes))
        return finish(request, self.prediction, self.seconds)

    def guess(self, classes: list[str] | None) -> DetectionResult:
        """All that the network said, the surest first, without masks."""
        return replace(self, prediction=replace(self.prediction, masks=None)).sifted(0.0, classes)


@cache
def shelf() -> Shelf:
    """Where pictures and predictions of all visitors are kept."""
    return Shelf(limits().predictions_mb * 1_000_000)


def meant(weights: str) -> tuple[NetworkConfig, float]:
    """Configuration and usual threshold of the weights that are chosen, be they on this machine or not."""
    known = {entry.id: entry for entry in catalogue.entries("detection", "detector")}
    try:
        entry = known.get(weights) or catalogue.resolve("detection", weights, "detector")
    except UserError:  # none is here yet: the page opens all the same
        return PRESETS["voc"], 0.5
    return PRESETS[entry.preset], usual_threshold(entry)


def input_size(config: NetworkConfig, side: float | None) -> InputSize | None:
    """The size of a shortest side, with the longest in the weights' own proportion; None for their own size."""
    own = config.input
    if not side or int(side) == own.shortest:
        return None
    return InputSize(int(side), min(round(int(side) * own.longest / own.shortest), LONGEST))


def detect(
    path: str | None, backend: Backend, weights: str, side: float, threshold: float, classes: list[str] | None,
    what: str, request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> tuple[Any, ...]:  # fmt: skip
    """Find the objects of a picture: a picture with boxes or segments, a table, and the same as JSON."""
    image = blocks.read_picture(path)
    blocks.announce(progress)
    entry = catalogue.resolve("detection", weights, "detector")
    size = input_size(PRESETS[entry.preset], side)
    asked = DetectionRequest(image, threshold, entry.id, backend, size, _names(classes))
    seconds: dict[str, float] = {}
    prediction = predict(asked, seconds)
    seen = Seen(asked, prediction, seconds, Path(str(path)).name)
    ticket = shelf().put(seen, seen.nbytes)
    masks = gr.update(visible=prediction.masks is not None)
    return ticket, masks, price(ticket, side, request), *_shown(seen, threshold, classes, what, False, request)


def detect_if_any(
    path: str | None, backend: Backend, weights: str, side: float, threshold: float, classes: list[str] | None,
    what: str, request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> Any:  # fmt: skip
    """As `detect`, but an emptied widget empties the result."""
    if not path:
        return None, gr.skip(), "", None, "", None
    return detect(path, backend, weights, side, threshold, classes, what, request, progress)


def detect_first(
    ticket: str | None, path: str | None, backend: Backend, weights: str, side: float, threshold: float,
    classes: list[str] | None, what: str, request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> Any:  # fmt: skip
    """`detect_if_any` when the tab is opened, unless something was found already."""
    if ticket is not None:
        return tuple(gr.skip() for _ in range(6))
    return detect_if_any(path, backend, weights, side, threshold, classes, what, request, progress)


def sift(
    ticket: str | None, threshold: float, classes: list[str] | None, what: str, request: gr.Request
) -> tuple[Any, ...]:  # fmt: skip
    """Another threshold, other classes or another drawing of what the network said already."""
    seen = shelf().get(ticket)
    if seen is None:
        if ticket is None:
            return gr.skip(), gr.skip(), gr.skip()
        raise UserError("This picture had to make room for others; press Find objects again.")
    return _shown(seen, threshold, classes, what, True, request)


def catch_up(
    ticket: str | None, threshold: float, classes: list[str] | None, what: str, request: gr.Request
) -> tuple[Any, ...]:  # fmt: skip
    """After a run: what was changed on the page while the network was at work counts too."""
    seen = shelf().get(ticket)
    if seen is None or (seen.request.threshold, seen.request.classes) == (threshold, _names(classes)):
        return gr.skip(), gr.skip(), gr.skip()
    return _shown(seen, threshold, classes, what, True, request)


def _shown(
    seen: Seen, threshold: float, classes: list[str] | None, what: str, again: bool, request: gr.Request
) -> tuple[Any, ...]:  # fmt: skip
    result, speak = seen.sifted(threshold, classes), partial(say, request)
    guess = None if len(result) else seen.guess(classes)
    listed = view.legend(result, speak) + view.objects(seen.request.image, result, guess, again, speak)
    return drawn(seen.request.image, result, what), listed, view.records(result)


def drawn(image: np.ndarray, result: DetectionResult, what: str) -> np.ndarray:
    """The picture with boxes, or with segments where the weights have them."""
    return view.segments(image, result) if what == "segments" else view.boxes(image, result)


def price(ticket: str | None, side: float, request: gr.Request) -> str:
    """What an input size costs, reckoned from the last run on this picture."""
    seen = shelf().get(ticket)
    if seen is None:
        return ""
    config = seen.config
    wanted, had = (size or config.input for size in (input_size(config, side), seen.request.input))
    speak, (rows, columns) = partial(say, request), seen.size
    height, width = sizes(rows, columns, wanted)
    share = cost(config, rows, columns, wanted)
    ms = round(1000 * seen.seconds["network"] * share / cost(config, rows, columns, had))
    if wanted == config.input:
        text = speak(
            "{width}×{height} pixels for the network, the size that it was made for: about {ms} ms here.",
            width=width, height=height, ms=ms,
        )  # fmt: skip
    else:
        text = speak(
            "{width}×{height} pixels for the network: {share} times the work of the size that it was made for, about "
            "{ms} ms here.", width=width, height=height, share=f"{share:.2g}", ms=ms,
        )  # fmt: skip
    return f'<p class="gh-note">{text}</p>'


def settings(weights: str) -> tuple[Any, Any, Any]:
    """Input size, threshold and classes that fit the chosen weights."""
    config, threshold = meant(weights)
    return gr.update(value=config.input.shortest), threshold, gr.update(choices=list(names(config.labels)), value=[])


def export(
    ticket: str | None, threshold: float, classes: list[str] | None, what: str
) -> list[str]:  # fmt: skip
    """The objects found last as a COCO document, with masks where the weights have them, and the picture as PNG."""
    seen = shelf().get(ticket)
    if seen is None:
        raise UserError(FIRST)
    result = seen.sifted(threshold, classes)
    data = json.dumps(document([Found(seen.name, seen.size, result)], seen.config.labels), indent=1)
    stream = io.BytesIO()
    Image.fromarray(drawn(seen.request.image, result, what)).save(stream, "PNG")
    stem = Path(seen.name).stem[:80] or "picture"
    return [
        blocks.offer(data.encode("utf-8"), f"{stem}-coco.json"),
        blocks.offer(stream.getvalue(), f"{stem}-objects.png"),
    ]


def export_noted(
    ticket: str | None, threshold: float, classes: list[str] | None, what: str
) -> tuple[list[str], list[Any]]:
    """The objects found last as a COCO document, with masks where the weights have them, and the picture as PNG."""
    return export(ticket, threshold, classes, what), [ticket, threshold, classes, what]


def unless_of(noted: list[Any] | None, *now: Any) -> Any:
    """Take exported files away, unless they are of these very settings: a slider reports its value more than once, and
    the last report may come after the export."""
    return gr.skip() if noted == list(now) else gr.update(value=None, visible=False)


def _names(classes: list[str] | None) -> tuple[str, ...]:
    return tuple(untranslated(name) for name in classes or ())


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    config, threshold = meant("auto")
    ticket = gr.State(None, delete_callback=lambda t: shelf().drop(t))
    noted = gr.State(None)  # the settings of the exported files
    with gr.Row():
        with gr.Column():
            picture = blocks.picture_input(
                "Picture", value=examples.PHOTOS[0], height=380, elem_id="detection-detect-picture"
            )
            button = gr.Button(label("Find objects"), variant="primary", elem_id="detection-detect-run")
            examples.photos(picture)
            least = gr.Slider(
                0, 1, threshold, step=0.01, label=label("Threshold"), elem_id="detection-detect-threshold"
            )
            classes = gr.Dropdown(
                list(names(config.labels)), multiselect=True, value=[], allow_custom_value=True,
                label=label("Only these classes"), elem_id="detection-detect-classes",
            )  # fmt: skip
            side = gr.Slider(
                SIDES[0], SIDES[1], config.input.shortest, step=SIDES[2],
                label=label("Input size: shortest side, pixels"), elem_id="detection-detect-side",
            )  # fmt: skip
            told = gr.HTML(elem_id="detection-detect-cost")
        with gr.Column():
            what = gr.Radio(
                [(label("Boxes"), "boxes"), (label("Segments"), "segments")], value="boxes", show_label=False,
                visible=False, elem_id="detection-detect-what",
            )  # fmt: skip
            shown = blocks.picture_output("Objects", height=420, elem_id="detection-detect-shown")
            table = gr.HTML(elem_id="detection-detect-table")
            with gr.Row():
                save = gr.Button(label("Export as COCO and PNG"), elem_id="detection-detect-export")
            files = gr.File(
                label=label("Exported"), file_count="multiple", interactive=False, visible=False,
                elem_id="detection-detect-files",
            )  # fmt: skip
            with gr.Accordion(label("The same as data"), open=False):
                data = gr.JSON(show_label=False)
    sieve = [least, classes, what]
    inputs = [picture, switches.implementation, switches.weights, side, *sieve]
    results = [shown, table, data]
    outputs = [ticket, what, told, *results]
    quick: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "always_last"}
    runs = [button.click(guarded(detect), inputs, outputs, api_name="detection_detect", **blocks.HEAVY)]
    # A picture that was dropped in or chosen is searched at once; so is the first example when the page opens.
    runs.append(gr.on(
        [picture.change, side.release, switches.implementation.change], guarded(detect_if_any), inputs, outputs,
        **quick, **blocks.HEAVY,
    ))  # fmt: skip
    # The first example is searched when the tab is opened, not with the page: other tabs' visitors pay nothing.
    first = tab.select(guarded(detect_first), [ticket, *inputs], outputs, api_visibility="private", **blocks.HEAVY)
    switches.refresh(first)  # now that a model has been loaded, the card can say where it runs
    chosen = switches.weights.change(
        guarded(settings), switches.weights, [side, least, classes], api_visibility="private", **blocks.LIGHT
    )
    runs += [first, chosen.then(guarded(detect_if_any), inputs, outputs, **quick, **blocks.HEAVY)]
    for run in runs:
        run.success(guarded(catch_up), [ticket, *sieve], results, show_progress="hidden", **quick, **blocks.LIGHT)
    gr.on(
        [least.change, classes.change, what.change], guarded(sift), [ticket, *sieve], results, show_progress="hidden",
        **quick, **blocks.LIGHT,
    )  # fmt: skip
    side.change(guarded(price), [ticket, side], told, show_progress="hidden", **quick, **blocks.LIGHT)
    # What was exported before belongs to another result.
    gr.on(
        [picture.change, button.click, side.change],
        lambda: gr.update(value=None, visible=False), None, files, show_progress="hidden", **quick, **blocks.LIGHT,
    )  # fmt: skip
    gr.on(
        [least.change, classes.change, what.change], unless_of, [noted, ticket, *sieve], files,
        show_progress="hidden", **quick, **blocks.LIGHT,
    )  # fmt: skip
    save.click(
        guarded(export_noted), [ticket, *sieve], [files, noted], api_name="detection_export", **blocks.LIGHT
    ).success(lambda: gr.update(visible=True), None, files, api_visibility="private", **blocks.LIGHT)  # fmt: skip
