"""Ablate live: take a part out of the network, and count what that did: doubles, misses, false alarms."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
import numpy as np

from pipelines.common.errors import UserError
from pipelines.ui import blocks
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say

from . import ablate_view as view
from . import examples_page as examples
from . import traces_page as traces
from .config import NetworkConfig
from .contract import Ablation, DetectionRequest, Prediction
from .desk import Truth, read_rows, to_rows
from .insight import Named, reckon
from .pipeline import predict
from .postprocess import Objects, objects

# Value -> title, as in inside_view.
PARTS = {"self_attention": "the decoder's self-attention", "positions": "the positions", "encoder": "the encoder"}
AGAINST = {
    "run": "The run with nothing taken out",
    "truth": "The truth: drawn at the Hungarian desk, or the example's own",
}


@dataclass(frozen=True)
class Pair:
    """The same picture through the whole network and through one without some parts. parts: what, in words. example:
    the truth that came with the picture, if any."""

    image: np.ndarray
    weights: str
    config: NetworkConfig
    whole: Prediction
    cut: Prediction
    parts: str
    example: Truth | None

    @property
    def nbytes(self) -> int:
        return self.image.nbytes + 2 * (self.whole.logits.nbytes + self.whole.boxes.nbytes)


def head_choices(config: NetworkConfig, speak: Any) -> list[tuple[str, str]]:
    """Heads of cross-attention by layer, and all of a layer at once. Values: "layer:head" or "layer:all"."""
    found = []
    for layer in range(config.decoder_layers):
        found.append((speak("layer {layer}, every head", layer=layer + 1), f"{layer}:all"))
        found += [
            (speak("layer {layer}, head {head}", layer=layer + 1, head=head + 1), f"{layer}:{head}")
            for head in range(config.heads)
        ]
    return found


def read_heads(chosen: Collection[str], config: NetworkConfig) -> frozenset[tuple[int, int]]:
    """The list's values as pairs. UserError: not one of them."""
    pairs: set[tuple[int, int]] = set()
    for value in chosen:
        layer, _, head = str(value).partition(":")
        if not layer.isdigit() or not (head == "all" or head.isdigit()):
            raise UserError("Choose the heads in the list.")
        pairs |= {(int(layer), h) for h in (range(config.heads) if head == "all" else [int(head)])}
    return frozenset(pairs)


def measure(
    path: str | None, weights: str, parts: list[str], queries: list[int], heads: list[str], threshold: float,
    overlap: float, nms: bool, against: str, drawn: traces.Drawn | None, request: gr.Request,
    progress: gr.Progress = gr.Progress(),
) -> tuple[Any, ...]:  # fmt: skip
    """Run the network whole and without the chosen parts, and count what changed."""
    image = blocks.read_picture(path)
    blocks.announce(progress)
    speak = partial(say, request)
    name, config, _ = traces.network(weights)
    ablation = Ablation(
        frozenset(int(q) for q in queries or []), read_heads(heads or [], config),
        **{part: part not in (parts or []) for part in PARTS},
    )  # fmt: skip
    whole = predict(DetectionRequest(image, weights=name, masks=False))
    cut = whole
    if not ablation.nothing:
        progress(0.5, desc=speak("Without {parts} …", parts=in_words(ablation, speak)))
        cut = predict(DetectionRequest(image, weights=name, masks=False, ablation=ablation))
    example = traces.shipped(path, image.shape[:2], config)
    pair = Pair(image, name, config, whole, cut, in_words(ablation, speak), example)
    ticket = traces.shelf().put(pair, pair.nbytes)
    lists = choices(pair, threshold, queries or []), gr.update(choices=head_choices(config, speak), value=heads or [])
    return ticket, *lists, *count(ticket, threshold, overlap, nms, against, drawn, request)


def in_words(ablation: Ablation, speak: Any) -> str:
    """What is taken out."""
    found = [speak(title) for part, title in PARTS.items() if not getattr(ablation, part)]
    if ablation.heads:
        found.append(speak("{n} head(s)", n=len(ablation.heads)))
    if ablation.queries:
        found.append(speak("query {queries}", queries=", ".join(f"#{q}" for q in sorted(ablation.queries)[:8])))
    return ", ".join(found)


def choices(pair: Pair, threshold: float, queries: list[int]) -> Any:
    """The list of queries that answered; what is chosen stays chosen."""
    found = _objects(pair.whole, pair, threshold, None)
    names = traces.class_names(pair.config)
    best: dict[int, str] = {}
    for query, k, score in zip(found.queries.tolist(), found.classes, found.scores, strict=True):
        best.setdefault(query, f"#{query} · {names[int(k)]} {score:.2f}")  # its surest class comes first
    kept = [int(q) for q in queries]
    listed = [(text, q) for q, text in best.items()] + [(f"#{q}", q) for q in kept if q not in best]
    return gr.update(choices=listed, value=kept)


def _objects(prediction: Prediction, pair: Pair, threshold: float, nms: float | None) -> Objects:
    return objects(
        prediction, pair.image.shape[:2], float(threshold), classes=list(traces.class_names(pair.config)), nms=nms
    )


def count(
    ticket: str | None, threshold: float, overlap: float, nms: bool, against: str, drawn: traces.Drawn | None,
    request: gr.Request,
) -> tuple[Any, ...]:  # fmt: skip
    """Count again with another threshold, other suppression or another reference. No network is run."""
    pair = traces.shelf().get(ticket)
    if pair is None:
        return tuple(gr.skip() for _ in range(4))
    speak, names = partial(say, request), traces.class_names(pair.config)

    def named(prediction: Prediction, nms: float | None) -> Named:
        found = _objects(prediction, pair, threshold, nms)
        return Named(found.boxes, tuple(names[int(k)] for k in found.classes), found.scores)

    whole, cut = named(pair.whole, None), named(pair.cut, float(overlap) if nms else None)
    truth, said = wanted(pair, whole, against, drawn, speak)
    both = [(found, reckon(found, truth)) for found in (whole, cut)]
    return (
        view.picture(pair.image, both[0][0], truth, both[0][1]),
        view.picture(pair.image, both[1][0], truth, both[1][1]),
        view.verdict(both[0], both[1], pair.parts, speak),
        view.table(both[0], both[1], said, speak),
    )


def change_threshold(
    ticket: str | None, queries: list[int], threshold: float, overlap: float, nms: bool, against: str,
    drawn: traces.Drawn | None, request: gr.Request,
) -> tuple[Any, ...]:  # fmt: skip
    """`count`, and the list of the queries that now answer."""
    pair = traces.shelf().get(ticket)
    listed = gr.skip() if pair is None else choices(pair, threshold, queries or [])
    return listed, *count(ticket, threshold, overlap, nms, against, drawn, request)


def wanted(
    pair: Pair, whole: Named, against: str, drawn: traces.Drawn | None, speak: Any
) -> tuple[Named, str]:  # fmt: skip
    """What ought to be found, and what that is in words. UserError: no truth was drawn for this picture."""
    if against != "truth":
        return whole, speak("the run with nothing taken out")
    if drawn is not None and drawn.picture == traces.digest(pair.image):
        # In the names of these weights: the truth may have been drawn with others.
        truth = read_rows(to_rows(drawn.boxes, drawn.labels), pair.image.shape[:2], pair.config.labels)
        said = speak("the truth drawn at the desk")
    elif pair.example is not None:
        truth, said = pair.example, speak("the truth that comes with this example")
    else:
        raise UserError("No truth is drawn for this picture yet: lay it out at the Hungarian desk.")
    return Named(truth.boxes, truth.labels, np.ones(len(truth), np.float32)), said


def measure_new(
    last: tuple[Any, ...] | None, path: str | None, weights: str, parts: list[str], queries: list[int],
    heads: list[str], threshold: float, overlap: float, nms: bool, against: str, drawn: traces.Drawn | None,
    request: gr.Request, progress: gr.Progress = gr.Progress(),
) -> tuple[Any, ...]:  # fmt: skip
    """`measure` with no button pressed: when the page is opened, for another picture and for other parts."""
    now = (path, weights, *parts, *sorted(queries or []), *sorted(heads or []))
    if not path or last == now:
        return tuple(gr.skip() for _ in range(8))
    if last is not None and last[0] != path:
        queries, now = [], (path, weights, *parts, *sorted(heads or []))  # other queries answer for another picture
    found = measure(path, weights, parts, queries, heads, threshold, overlap, nms, against, drawn, request, progress)
    return now, *found


def build(page: gr.Blocks, tab: gr.Tab, switches: blocks.Switches) -> None:
    gr.Markdown(
        label(
            "Take a part out of the network and see what it was good for: the whole network beside the same picture "
            "without the part. Without self-attention the queries no longer hear each other and cannot agree who takes "
            "which object: count what comes of it, doubles or silence. Non-maximum suppression, which DETR does "
            "without, takes doubles away."
        )
    )
    ticket, last = gr.State(None, delete_callback=lambda t: traces.shelf().drop(t)), gr.State(None)
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            picture = blocks.picture_input(
                "Picture", value=examples.PHOTOS[0], height=240, elem_id="detection-ablate-picture"
            )
            examples.photos(picture)
            parts = gr.CheckboxGroup(
                [(label(title), part) for part, title in PARTS.items()], value=["self_attention"],
                label=label("Take out"), elem_id="detection-ablate-parts",
            )  # fmt: skip
            queries = gr.Dropdown(
                [], value=[], multiselect=True, label=label("Queries to take out"), elem_id="detection-ablate-queries"
            )
            heads = gr.Dropdown(
                [], value=[], multiselect=True, label=label("Heads of cross-attention to take out"),
                elem_id="detection-ablate-heads",
            )  # fmt: skip
            button = gr.Button(label("Run with and without"), variant="primary", elem_id="detection-ablate-run")
        with gr.Column(scale=2, min_width=420):
            verdict = gr.HTML(elem_id="detection-ablate-verdict")
            with gr.Row():
                whole = blocks.picture_output("Whole network", elem_id="detection-ablate-whole")
                cut = blocks.picture_output("With parts taken out", elem_id="detection-ablate-cut")
            with gr.Row():
                threshold = traces.threshold_slider(switches, "Threshold", "detection-ablate-threshold")
                with gr.Column(min_width=200):
                    nms = gr.Checkbox(
                        False, label=label("Suppress doubles on the right (NMS)"), elem_id="detection-ablate-nms"
                    )
                    overlap = gr.Slider(
                        0.1, 0.9, 0.5, step=0.05, label=label("NMS from an overlap of"),
                        elem_id="detection-ablate-overlap",
                    )  # fmt: skip
            against = gr.Radio(
                [(label(title), name) for name, title in AGAINST.items()], value="run", label=label("Count against"),
                elem_id="detection-ablate-against",
            )  # fmt: skip
            table = gr.HTML(elem_id="detection-ablate-table")
    drawn = traces.drawn_truth(page)
    settings = [threshold, overlap, nms, against, drawn]
    inputs, seen = [picture, switches.weights, parts, queries, heads, *settings], [whole, cut, verdict, table]
    outputs = [ticket, queries, heads, *seen]
    quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "trigger_mode": "always_last"}
    button.click(guarded(measure), inputs, outputs, api_name="detection_ablate", **blocks.HEAVY)
    news = [tab.select, picture.change, parts.input, queries.input, heads.input]
    gr.on(news, guarded(measure_new), [last, *inputs], [last, *outputs], **quick, **blocks.HEAVY)
    threshold.input(guarded(change_threshold), [ticket, queries, *settings], [queries, *seen], **quick, **blocks.LIGHT)
    gr.on([overlap.input, nms.input, against.input], guarded(count), [ticket, *settings], seen, **quick, **blocks.LIGHT)
