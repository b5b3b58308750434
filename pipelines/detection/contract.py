"""What goes in and what comes out. numpy and Python types only, the same for every implementation.

Letters: n objects, Q queries, K classes, L decoder layers, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pipelines.common.backends import Backend

from .config import InputSize, Scoring

Precision = Literal["float32", "reduced"]


@dataclass(frozen=True)
class Ablation:
    """What is taken out of the network for one run. The default takes out nothing.

    queries: indices whose predictions and whose part in self-attention are removed. heads: (decoder layer, head) pairs
    whose cross-attention output is zeroed. self_attention: False skips the decoder's self-attention, so that queries
    cannot agree on who takes which object. positions: False sets the picture's position encodings to zero. encoder:
    False hands the projected features to the decoder as they are.
    """

    queries: frozenset[int] = frozenset()
    heads: frozenset[tuple[int, int]] = frozenset()
    self_attention: bool = True
    positions: bool = True
    encoder: bool = True

    @property
    def nothing(self) -> bool:
        return self == Ablation()


@dataclass(frozen=True)
class DetectionRequest:
    """One picture in which objects are to be found.

    image: (height, width, 3) uint8 RGB.
    threshold: least score of an object that is returned, in [0, 1].
    weights: an id in the catalogue, or "auto": the best that is on this machine.
    backend: "local" runs the networks of this repository, "reference" transformers'.
    input: sizes to scale to; None takes the weights' own.
    classes: names of the classes to return; none means all.
    masks: whether to compute masks where the weights have them.
    precision: "reduced" takes the smaller numbers that this machine is faster with, if any (`forms.device`).
    nms: overlap (IoU) above which the weaker of two boxes of a class goes; None, as DETR is meant, removes none.
    """

    image: np.ndarray
    threshold: float = 0.5
    weights: str = "auto"
    backend: Backend = "local"
    input: InputSize | None = None
    classes: tuple[str, ...] = ()
    masks: bool = True
    precision: Precision = "float32"
    nms: float | None = None
    ablation: Ablation = field(default_factory=Ablation)


@dataclass(frozen=True)
class Prediction:
    """What a network says of one picture, before any threshold.

    logits: (Q, K) float32, or (Q, K + 1) with "no object" last where scoring is "softmax". boxes: (Q, 4) float32
    cxcywh, each in [0, 1] of the picture (padding excluded). masks: (Q, h, w) float32 logits over the picture, or None.
    """

    logits: np.ndarray
    boxes: np.ndarray
    scoring: Scoring
    masks: np.ndarray | None = None


@dataclass(frozen=True)
class Segment:
    """One region of a panoptic map. id: its value in the map. thing: countable (a cat) or stuff (sky)."""

    id: int
    label: str
    category: int
    thing: bool
    score: float
    area: int


@dataclass(frozen=True)
class DetectionResult:
    """The objects of one picture, best first.

    boxes: (n, 4) float32 xyxy in pixels of the given picture, within it. scores: (n,) float32. labels: n names.
    categories: (n,) int64 ids as the training data numbers them. queries: (n,) int64, which slot found each.
    masks: (n, height, width) bool, or None where the weights have no mask head. panoptic: (height, width) int32, the
    segment of every pixel, 0 for none; None likewise. size: (height, width) that the network saw.
    device: with the reason in words. seconds: wall time by stage: load, network (preparation included), finish.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: tuple[str, ...]
    categories: np.ndarray
    queries: np.ndarray
    weights: str
    backend: Backend
    device: str
    size: tuple[int, int]
    masks: np.ndarray | None = None
    panoptic: np.ndarray | None = None
    segments: tuple[Segment, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class Trace:
    """What happened inside on one picture. Arrays are float32; layer l of L is the decoder's, first to last.

    logits: (L, Q, K or K + 1). boxes: (L, Q, 4) cxcywh in [0, 1] of the picture. self_attention: (L, H, Q, Q), rows
    sum to 1; empty where it was skipped. cross_attention: (L, H, Q, h, w) over the picture's grid, each map sums to 1
    (of deformable attention: the sampled points' weights, spread on the finest grid, less what fell outside). size:
    (height, width) that the network saw.
    """

    logits: np.ndarray
    boxes: np.ndarray
    self_attention: np.ndarray
    cross_attention: np.ndarray
    scoring: Scoring
    size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.logits, self.boxes, self.self_attention, self.cross_attention))
