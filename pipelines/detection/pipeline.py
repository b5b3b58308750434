"""Validates a request, picks the backend, runs it. What the tab, the bench, the tests and other programs call."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np

from pipelines.common import backends, catalogue
from pipelines.common.device import Device
from pipelines.common.errors import UserError
from pipelines.common.images import check_array
from pipelines.common.limits import limits
from pipelines.common.video import Frame, Video

from . import forms, labels
from .config import PRESETS, DetrConfig, InputSize, NetworkConfig
from .contract import Ablation, Backend, DetectionRequest, DetectionResult, Prediction, Segment, Trace
from .panoptic_merge import merge
from .postprocess import Objects, masks, objects, suppress
from .preprocess import sizes

SHORTEST, LONGEST = 32, 1600  # of the sides that a picture may be scaled to, pixels
PANORAMA = 5.0  # times as long as wide: what is left after scaling is worth a warning


@dataclass(frozen=True)
class _Job:
    """A request that has been checked. classes: indices of the classes that are wanted."""

    request: DetectionRequest
    image: np.ndarray
    entry: catalogue.Entry
    config: NetworkConfig
    input: InputSize
    classes: frozenset[int]
    device: Device


def run(request: DetectionRequest) -> DetectionResult:
    """Find the objects of a picture.

    UserError: a value of the request is out of range, or the weights are not on this machine.
    """
    job = _check(request)
    seconds: dict[str, float] = {}
    return _finish(job, _predict(job, seconds), seconds)


def predict(request: DetectionRequest, seconds: dict[str, float] | None = None) -> Prediction:
    """What the network says of a picture before any threshold: every query's logits and box. UserError: as `run`.

    seconds: gets the times of "load" and "network".
    """
    return _predict(_check(request), {} if seconds is None else seconds)


def finish(
    request: DetectionRequest, prediction: Prediction, seconds: Mapping[str, float] | None = None
) -> DetectionResult:  # fmt: skip
    """What `run` makes of a prediction of the same picture, weights and input size: another threshold, other classes or
    another suppression cost no pass through the network. UserError: as `run`.

    seconds: times of the prediction, for the result.
    """
    return _finish(_check(request), prediction, dict(seconds or {}))


def trace(
    image: np.ndarray, weights: str = "auto", input: InputSize | None = None, ablation: Ablation | None = None
) -> Trace:  # fmt: skip
    """The local network with every decoder layer and every attention map kept. UserError: as `run`."""
    job = _check(DetectionRequest(image, weights=weights, input=input, ablation=ablation or Ablation()))
    network = load(job.entry, "local")
    with backends.step(job.device.device):
        return network.trace(job.image, job.input, job.request.ablation)


def detect_video(
    video: Video, request: DetectionRequest, rate: float = 4.0
) -> Generator[tuple[Frame, DetectionResult], None, None]:  # fmt: skip
    """Each frame and its objects as soon as it is done; closing the generator stops it.

    request: its picture is not looked at. rate: frames a second. What was left out of the video is in `video.notes`
    when the generator ends. UserError: as `run`, or no frame can be read.
    """
    entry = catalogue.resolve("detection", request.weights, "detector")
    for frame in video.frames(rate):
        yield frame, run(replace(request, image=frame.pixels, weights=entry.id))


def usual_threshold(entry: catalogue.Entry) -> float:
    """The least score that suits these weights."""
    return float(entry.facts.get("threshold", 0.5))


def load(entry: catalogue.Entry, backend: Backend) -> Any:
    """The shared backend object over one checkpoint, loaded on first use."""
    assert __package__ is not None
    return backends.implementation(__package__, entry, backend)


# --- checks ----------------------------------------------------------------------------------------------------------


def _check(request: DetectionRequest) -> _Job:
    image = check_array(request.image)
    check_options(request)
    entry = catalogue.resolve("detection", str(request.weights), "detector")
    config = PRESETS[entry.preset]
    check_ablation(request.ablation, config)
    if request.backend == "reference" and not request.ablation.nothing:
        raise UserError("Parts can be taken out of our own networks only; choose local.")
    device = forms.device(request.precision, config)
    classes = wanted(config.labels, request.classes)
    return _Job(request, image, entry, config, request.input or config.input, classes, device)


def check_options(request: DetectionRequest) -> None:
    """UserError unless every value of the request, its picture and weights aside, is one that it can be run with."""
    backends.check(request.backend)
    if not _share(request.threshold):
        raise UserError("The threshold must lie between 0 and 1.")
    if request.nms is not None and not _share(request.nms):
        raise UserError("The overlap of non-maximum suppression must lie between 0 and 1.")
    if request.precision not in ("float32", "reduced"):
        raise UserError("The precision must be float32 or reduced.")
    if request.input is not None:
        check_input(request.input)


def check_input(size: InputSize) -> None:
    """UserError unless a picture may be scaled to this size."""
    sides = (size.shortest, size.longest) if isinstance(size, InputSize) else ()
    if not sides or not all(isinstance(s, int) and SHORTEST <= s <= LONGEST for s in sides) or sides[0] > sides[1]:
        raise UserError(
            f"The sides of the input must be whole numbers between {SHORTEST} and {LONGEST}, the shortest first."
        )


def check_ablation(ablation: Ablation, config: NetworkConfig) -> None:
    """UserError: a query, layer or head that this network does not have."""
    if not isinstance(ablation, Ablation):
        raise UserError("What is taken out of the network must be an Ablation.")
    if any(not isinstance(q, Integral) or not 0 <= int(q) < config.queries for q in ablation.queries):
        raise UserError(f"These weights have the queries 0 to {config.queries - 1}.")
    known = {(layer, head) for layer in range(config.decoder_layers) for head in range(config.heads)}
    if not set(ablation.heads) <= known:
        raise UserError(
            f"These weights have the decoder layers 0 to {config.decoder_layers - 1}, "
            f"each with the heads 0 to {config.heads - 1}."
        )


def wanted(key: str, names: tuple[str, ...]) -> frozenset[int]:
    """Indices of the classes of these names, of all classes if there are none. UserError: an unknown name."""
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        raise UserError("The classes must be a list of names.")
    if not names:
        return frozenset(labels.categories(key))
    try:
        return labels.indices(key, tuple(names))
    except KeyError as error:
        some = ", ".join(labels.names(key)[:8])
        name = str(error.args[0])[:60]
        raise UserError(f"These weights know no class called “{name}”; they know {some} and others.") from error


def _share(value: Any) -> bool:
    """A number in [0, 1]; nan is none."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) <= 1


# --- steps -----------------------------------------------------------------------------------------------------------


def _predict(job: _Job, seconds: dict[str, float]) -> Prediction:
    start = time.perf_counter()
    network = load(job.entry, job.request.backend)
    seconds["load"] = time.perf_counter() - start
    # Waiting for other visitors is no time of the network.
    with backends.step(job.device.device):
        start = time.perf_counter()
        found = network.predict(
            [job.image], job.input, masks=job.request.masks, precision=job.request.precision,
            ablation=job.request.ablation,
        )  # fmt: skip
        seconds["network"] = time.perf_counter() - start
    return found[0]


def _finish(job: _Job, prediction: Prediction, seconds: dict[str, float]) -> DetectionResult:
    start = time.perf_counter()
    found, notes = _objects(job, prediction)
    shapes, map_, segments, more = _regions(job, prediction, found)
    seconds["finish"] = time.perf_counter() - start
    categories = [labels.categories(job.config.labels)[int(k)] for k in found.classes]
    return DetectionResult(
        found.boxes, found.scores, tuple(c.name for c in categories), np.array([c.id for c in categories], np.int64),
        found.queries, job.entry.id, job.request.backend, f"{job.device.device}: {job.device.reason}", _seen(job),
        shapes, map_, segments, seconds, (*_warnings(job), *notes, *more),
    )  # fmt: skip


def _objects(job: _Job, prediction: Prediction) -> tuple[Objects, list[str]]:
    most, request = limits().objects, job.request
    total = prediction.logits.size
    found = objects(prediction, job.image.shape[:2], float(request.threshold), job.classes, top=total)
    if request.ablation.queries:  # at threshold 0 a score of 0 would pass
        found = found.take(~np.isin(found.queries, list(request.ablation.queries)))
    notes = []
    if len(found) > most:
        notes.append(f"{len(found)} objects pass the threshold; the {most} surest are kept.")
        found = found.take(np.arange(most))
    if request.nms is not None:
        found = found.take(suppress(found.boxes, found.scores, found.classes, float(request.nms)))
    return found, notes


def _regions(
    job: _Job, prediction: Prediction, found: Objects
) -> tuple[np.ndarray | None, np.ndarray | None, tuple[Segment, ...], list[str]]:
    """Masks of the objects, the panoptic map, its segments, and notes."""
    if prediction.masks is None:
        return None, None, (), []
    size: tuple[int, int] = job.image.shape[:2]
    shapes, notes = None, []
    if len(found) * size[0] * size[1] <= limits().mask_pixels:
        shapes = masks(prediction, found.queries, size)
    else:
        notes.append(
            f"The masks of {len(found)} objects on a picture this large are left out; "
            "raise the threshold or make the picture smaller."
        )
    categories = labels.categories(job.config.labels)
    map_, segments = merge(prediction, size, categories, float(job.request.threshold))
    kept = {categories[k].id for k in job.classes}
    shown = tuple(segment for segment in segments if segment.category in kept)
    if len(shown) < len(segments):
        map_ = np.where(np.isin(map_, [segment.id for segment in shown]), map_, 0).astype(np.int32)
    return shapes, map_, shown, notes


def _seen(job: _Job) -> tuple[int, int]:
    height, width = job.image.shape[:2]
    return sizes(height, width, job.input)


def _warnings(job: _Job) -> list[str]:
    notes, (height, width) = [], job.image.shape[:2]
    ratio = max(height, width) / min(height, width)
    if ratio >= PANORAMA:
        seen = _seen(job)
        notes.append(
            f"The picture is {ratio:.0f} times as long as it is wide: the network sees it at {seen[1]}×{seen[0]} "
            "pixels; cut it into parts to find small objects."
        )
    if job.request.precision == "reduced" and job.device.dtype == "float32":
        small = not isinstance(job.config, DetrConfig)
        why = "with weights this small" if small else "on this machine"
        notes.append(f"Smaller numbers are no faster {why}; float32 was used.")
    return notes


def cost(config: NetworkConfig, height: int, width: int, size: InputSize) -> float:
    """Pixels that the network sees of a picture at an input size, relative to its own: its time grows about so."""
    h, w = sizes(height, width, size)
    own = sizes(height, width, config.input)
    return h * w / (own[0] * own[1])
