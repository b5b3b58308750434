"""What goes in and what comes out. numpy and Python types only, the same for every implementation.

Letters: T past chunks, F future chunks, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pipelines.common.backends import Backend

from .config import Brain

# Where the time of an update goes, in this order. "captured": from the camera's picture to its coding; "sent": on the
# way; "waited": behind older work; "pose", "model": ours; "drawn": until the answer is a picture. A stage that nobody
# measured is not in the mapping.
Stage = Literal["captured", "sent", "waited", "pose", "model", "drawn"]
LANDMARKS = 33


@dataclass(frozen=True)
class StreamOptions:
    """How a stream is watched.

    weights: an id in the catalogue, or "auto": the best that is on this machine. backend: "local" runs the networks of
    this repository, "reference" another model from transformers. brain: which network answers (local only).
    threshold: probability at which an action begins, in (0, 1]; None is what suits the weights. release: probability
    below which it ends, at most the threshold; None is what suits it. memory: chunks that the brain may look back, the
    newest included; None is all it was built for. shuffled: the past chunks come in random order, the newest stays,
    which is the control for what the order is worth. seed: of that order. attention: whether updates tell what the
    task token looked at.
    """

    weights: str = "auto"
    backend: Backend = "local"
    brain: Brain = "oadtr"
    threshold: float | None = None
    release: float | None = None
    memory: int | None = None
    shuffled: bool = False
    seed: int = 0
    attention: bool = False


@dataclass(frozen=True)
class Answer:
    """What a brain says behind one chunk.

    probabilities: (C,) float32, sum 1, of the newest chunk. anticipated: (F, C) float32, each row sums to 1, of the
    next F chunks. attention: (T,) float32, how much the task token looked at each past chunk, oldest first, over all
    layers and heads; its sum with what fell on the task token itself is 1, and chunks that are not there have 0. None
    where it was not asked for, or the brain has no such thing.
    """

    probabilities: np.ndarray
    anticipated: np.ndarray
    attention: np.ndarray | None = None


@dataclass(frozen=True)
class Update:
    """The answer behind one chunk of a stream.

    labels: names of the classes, background first, in the order of `probabilities`. probabilities (C,), anticipated
    (F, C), attention (T,) or None: as in `Answer`. timestamp: seconds of the stream's clock at the chunk's end. chunk:
    its number, from 0, of the stream's clock: numbers are left out where no frame came. action: what is going on, after
    threshold and release; None is nothing. landmarks: (33, 4) float32 x, y (of the picture, in [0, 1]), z, visibility;
    None where nobody was found. seconds: of each stage that was measured, of the frame that completed the chunk.
    dropped: frames of this stream so far that were passed over for a newer one. late: updates so far that came more
    than one chunk after their chunk's end. taught: probability of each action that was taught to the stream, by name.
    brain, weights (the entry's id), backend: who says so. aspect: width over height of the picture of `landmarks`.
    """

    labels: tuple[str, ...]
    probabilities: np.ndarray
    anticipated: np.ndarray
    timestamp: float
    chunk: int
    action: str | None = None
    landmarks: np.ndarray | None = None
    attention: np.ndarray | None = None
    seconds: Mapping[Stage, float] = field(default_factory=dict)
    dropped: int = 0
    late: int = 0
    taught: Mapping[str, float] = field(default_factory=dict)
    brain: Brain = "oadtr"
    weights: str = ""
    backend: Backend = "local"
    aspect: float = 4 / 3

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.labels[int(self.probabilities.argmax())]
