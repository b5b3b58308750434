"""What goes in and what comes out. numpy and Python types only, the same for every implementation.

Letters: n faces, d numbers in an embedding, S side of an aligned chip.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pipelines.common.backends import Backend

from .config import CascadeOptions


@dataclass(frozen=True)
class FaceRequest:
    """One picture in which faces are to be found and described.

    image: (height, width, 3) uint8 RGB.
    weights: id of an embedder in the catalogue, or "auto": the best one that is on this machine.
    backend: "local" runs the networks of this repository, "reference" the published library's.
    cascade: thresholds and smallest face of the detector.
    embed: whether to compute chips and embeddings; False finds faces only.
    flip_average: average the embeddings of each chip and its mirror image (twice the work, a little more accurate).
    normalise: names from `processing.NORMALISATIONS`, applied to each chip in this order before it is embedded.
    """

    image: np.ndarray
    weights: str = "auto"
    backend: Backend = "local"
    cascade: CascadeOptions = field(default_factory=CascadeOptions)
    embed: bool = True
    flip_average: bool = False
    normalise: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pose:
    """Head rotation in degrees, estimated from five points: rough beyond 45.

    Pitch may be off by 20 for one person and another: five points can't tell a raised chin from a long nose.

    yaw > 0: the face looks to the picture's right; pitch > 0: up; roll > 0: the head leans clockwise in the picture.
    """

    yaw: float
    pitch: float
    roll: float


@dataclass(frozen=True)
class Face:
    """One face of a picture.

    box: (4,) float32 xyxy in pixels of the given picture; may reach past its border.
    score: face probability of the last stage, in [0, 1].
    landmarks: (5, 2) float32 xy in pixels: left and right eye as seen in the
        picture, nose, left and right mouth corner.
    pose: see `Pose`.
    sharpness: variance of the Laplacian of the grey face at 112 px; under about 50 is blurred.
    light: mean luma of the face in [0, 1].
    light_balance: difference of mean luma between the picture's left and right half of the face, in [-1, 1].
    chip: (S, S, 3) uint8 RGB, the aligned crop that the embedder saw; None if the request asked for no embedding.
    embedding: (d,) float32 of unit length; None likewise.
    """

    box: np.ndarray
    score: float
    landmarks: np.ndarray
    pose: Pose
    sharpness: float
    light: float
    light_balance: float
    chip: np.ndarray | None = None
    embedding: np.ndarray | None = None


@dataclass(frozen=True)
class FaceResult:
    """Every face of one picture.

    faces: largest first. weights, detector: catalogue ids of the embedder ("" if none was asked for) and the detector.
    device: with the reason in words. seconds: wall time by stage: load (nothing once loaded), detect, align, embed.
    notes: sentences about what was left out, empty as a rule.
    """

    faces: tuple[Face, ...]
    weights: str
    detector: str
    backend: Backend
    device: str
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Detections:
    """What a detector backend returns, largest face first.

    boxes (n, 4) float32 xyxy pixels, scores (n,) float32, landmarks (n, 5, 2) float32 xy pixels.
    """

    boxes: np.ndarray
    scores: np.ndarray
    landmarks: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    @staticmethod
    def none() -> Detections:
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32))


@dataclass(frozen=True)
class Comparison:
    """similarity: cosine in [-1, 1]. threshold: at or above it two faces count as one person. same: the verdict."""

    similarity: float
    threshold: float
    same: bool
