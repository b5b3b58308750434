"""Validates a request, picks the backend, runs it. What the tab, the bench, the tests and other programs call."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from pipelines.common import backends, catalogue
from pipelines.common.device import pick
from pipelines.common.errors import UserError
from pipelines.common.images import check_array
from pipelines.common.limits import limits

from .config import PRESETS, CascadeOptions
from .contract import Backend, Comparison, Detections, Face, FaceRequest, FaceResult

DETECTOR = "mtcnn"


def run(request: FaceRequest) -> FaceResult:
    """Find the faces of a picture and describe each.

    UserError: a value of the request is out of range, or the weights are not on this machine.
    """
    image = check_array(request.image)
    entry = catalogue.resolve("face", request.weights, "embedder") if request.embed else None
    _check_normalisations(request.normalise)
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    load(catalogue.resolve("face", DETECTOR, "detector"), request.backend)
    if entry is not None:
        load(entry, request.backend)
    seconds["load"] = time.perf_counter() - start
    start = time.perf_counter()
    found = detect(image, request.cascade, request.backend)
    seconds["detect"] = time.perf_counter() - start
    found, notes = _bounded(found)
    faces = [_describe(image, found, i) for i in range(len(found))]
    if entry is not None:
        faces = _embed(image, found, faces, entry, request, seconds)
    weights, device = entry.id if entry else "", f"{pick().device}: {pick().reason}"
    return FaceResult(tuple(faces), weights, DETECTOR, request.backend, device, seconds, notes)


def detect(image: np.ndarray, options: CascadeOptions, backend: Backend = "local") -> Detections:
    """Faces of a (H, W, 3) uint8 RGB picture, boxes and landmarks only. UserError: an option is out of range."""
    check_options(options)
    network = load(catalogue.resolve("face", DETECTOR, "detector"), backend)
    with backends.step(pick().device):
        return network.detect(image, options)


def embed(
    chips: np.ndarray, weights: str = "auto", backend: Backend = "local", flip_average: bool = False
) -> np.ndarray:
    """(n, S, S, 3) uint8 RGB aligned chips -> (n, d) float32 embeddings of unit length."""
    network = load(catalogue.resolve("face", weights, "embedder"), backend)
    with backends.step(pick().device):
        return network.embed(chips, flip_average)


def load(entry: catalogue.Entry, backend: Backend) -> Any:
    """The shared backend object over one checkpoint, loaded on first use."""
    assert __package__ is not None
    return backends.implementation(__package__, entry, backend)


def threshold_of(entry: catalogue.Entry, flip_average: bool = False) -> float:
    """The cosine at or above which two embeddings of these weights count as one person."""
    return float(entry.facts["threshold_flip" if flip_average else "threshold"])


def compare(a: np.ndarray, b: np.ndarray, weights: str = "auto", flip_average: bool = False) -> Comparison:
    """Are two embeddings of one person? (d,) float32 of unit length each, both from the same weights.

    The threshold is the one calibrated for these weights, plain or flip-averaged: weights/manifest.toml says on what.
    UserError: the embeddings do not belong together.
    """
    entry = catalogue.resolve("face", weights, "embedder")
    dimension = (PRESETS[entry.preset].embedding,)  # type: ignore[union-attr]
    if a is None or b is None or np.shape(a) != dimension or np.shape(b) != dimension:
        raise UserError("The two embeddings do not come from the same weights; describe both faces again.")
    similarity = float(np.dot(a, b))
    threshold = threshold_of(entry, flip_average)
    return Comparison(similarity, threshold, similarity >= threshold)


def check_options(options: CascadeOptions) -> None:
    """UserError unless every option is one that the cascade can be run with."""
    if len(options.thresholds) != 3 or not all(isinstance(t, int | float) and 0 <= t <= 1 for t in options.thresholds):
        raise UserError("The three thresholds must lie between 0 and 1.")
    if not 12 <= options.min_face <= 10_000:
        raise UserError("The smallest face must be between 12 and 10000 pixels: P-Net sees no less than 12.")
    if not 0.3 <= options.factor <= 0.9:
        raise UserError("The pyramid factor must lie between 0.3 and 0.9.")


def _check_normalisations(names: tuple[str, ...]) -> None:
    from .processing import NORMALISATIONS

    for name in names:
        if name not in NORMALISATIONS:
            raise UserError(f"There is no normalisation “{str(name)[:60]}”; choose from {', '.join(NORMALISATIONS)}.")


def _bounded(found: Detections) -> tuple[Detections, tuple[str, ...]]:
    most = limits().faces
    if len(found) <= most:
        return found, ()
    note = f"{len(found)} faces were found; the {most} largest are shown."
    return Detections(found.boxes[:most], found.scores[:most], found.landmarks[:most]), (note,)


def _describe(image: np.ndarray, found: Detections, i: int) -> Face:
    from . import quality

    box, landmarks = found.boxes[i], found.landmarks[i]
    light, balance = quality.light(image, box, landmarks)
    return Face(
        box, float(found.scores[i]), landmarks, quality.pose(landmarks), quality.sharpness(image, box), light, balance
    )  # fmt: skip


def _embed(
    image: np.ndarray, found: Detections, faces: list[Face], entry: catalogue.Entry, request: FaceRequest,
    seconds: dict[str, float],
) -> list[Face]:  # fmt: skip
    from .align import chips as align
    from .processing import normalise

    start = time.perf_counter()
    chips = align(entry.architecture, image, found.boxes, found.landmarks)
    if request.normalise:
        pairs = zip(chips, faces, strict=True)
        chips = np.stack([normalise(c, request.normalise, f.pose.yaw) for c, f in pairs]) if len(chips) else chips
    seconds["align"] = time.perf_counter() - start
    start = time.perf_counter()
    vectors = embed(chips, entry.id, request.backend, request.flip_average)
    seconds["embed"] = time.perf_counter() - start
    return [replace(f, chip=c, embedding=v) for f, c, v in zip(faces, chips, vectors, strict=True)]


def unaligned_chip(image: np.ndarray, face: Face, side: int) -> np.ndarray:
    """(side, side, 3) uint8 RGB: an upright square around the face's box, as a program that skips alignment would cut.

    The square is 1.2 times the box, which shows as much of the head as the aligned chips do.
    """
    from .align import crop

    x1, y1, x2, y2 = face.box.astype(np.float64)
    half, x, y = 0.6 * max(x2 - x1, y2 - y1), (x1 + x2) / 2, (y1 + y2) / 2
    return crop(image, np.array([x - half, y - half, x + half, y + half]), side)


def trace(image: np.ndarray, options: CascadeOptions) -> Any:
    """The local cascade with everything kept: a `trace.CascadeTrace`. UserError: an option is out of range."""
    image = check_array(image)
    check_options(options)
    network = load(catalogue.resolve("face", DETECTOR, "detector"), "local")
    with backends.step(pick().device):
        return network.trace(image, options)


def what_if(base: Any, thresholds: tuple[float, float, float]) -> Any:
    """The run of a trace with other thresholds, looking again only where it must: an `insight.WhatIf`."""
    from . import insight

    check_options(replace(base.options, thresholds=thresholds))
    network = load(catalogue.resolve("face", DETECTOR, "detector"), "local")
    with backends.step(pick().device):
        return insight.what_if(network.networks, base, thresholds)
