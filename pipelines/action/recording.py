"""A stream that is over, or a video, as the pages look back at it: what each chunk had, and what was said of it.

Letters: N chunks, T that a brain looks back, F future chunks, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.video import Video

from .config import Brain
from .contract import Update
from .pipeline import Moment, open_stream, watch

LONGEST = 600  # chunks of a video that are looked at: a minute


@dataclass
class Recording:
    """labels: C names. moments: one a chunk. weights, brain: who said what is in them."""

    labels: tuple[str, ...]
    moments: list[Moment] = field(default_factory=list)
    weights: str = ""
    brain: Brain = "oadtr"

    def __len__(self) -> int:
        return len(self.moments)

    @cached_property
    def features(self) -> np.ndarray:
        """(N, in_features) float32. UserError: of a reference, which has none."""
        if not self.moments or any(moment.features is None for moment in self.moments):
            raise UserError("The reference looks at pictures, so there are no movements to look back at; choose local.")
        return np.stack([moment.features for moment in self.moments if moment.features is not None])

    @cached_property
    def probabilities(self) -> np.ndarray:
        """(N, C) float32."""
        return np.stack([moment.update.probabilities for moment in self.moments])

    def update(self, index: int) -> Update:
        """What was said behind a chunk."""
        return self.moments[index].update

    def later(self, index: int, steps: int) -> int | None:
        """The moment so many chunks after another; None where the stream had no frame then, or ended."""
        wanted = self.update(index).chunk + steps
        for k in range(index + 1, min(index + steps + 1, len(self))):
            if self.update(k).chunk == wanted:
                return k
        return None


@dataclass(frozen=True)
class Foretold:
    """How forecasts came out, each row (F,), of 1 to F chunks ahead; NaN where nothing came.

    hits: share whose likeliest class was the likeliest one when the chunk came. stayed: the same of the guess that
    nothing changes. changed: share of right forecasts where something did change, and that guess is always wrong.
    """

    hits: np.ndarray
    stayed: np.ndarray
    changed: np.ndarray


def of_video(path: str, weights: str = "auto", brain: Brain = "oadtr") -> Iterator[tuple[float, Recording | None]]:
    """Looks at a video with our own brains: (share done, None) a chunk, at last (1.0, the recording).

    UserError: the video cannot be read, or as of `open_stream`.
    """
    with Video(path) as video, open_stream(weights, brain=brain, attention=True, keep=LONGEST) as stream:
        expected = min(video.seconds or LONGEST / 10, LONGEST / 10)
        for frame, update in watch(video, stream):
            if update is not None:
                yield min(1.0, frame.seconds / max(expected, 0.1)), None
            if len(stream.past) >= LONGEST:
                break
        yield 1.0, Recording(stream.labels, list(stream.past), stream.entry.id, brain)


def foretold(recording: Recording) -> Foretold:
    """Each forecast beside what the brain said when the time had come."""
    came = recording.probabilities.argmax(axis=1)
    ahead = np.stack([moment.update.anticipated.argmax(axis=1) for moment in recording.moments])  # (N, F)
    hits, stayed, changed = np.full((3, ahead.shape[1]), np.nan)
    for k in range(1, ahead.shape[1] + 1):
        pairs = [(i, j) for i in range(len(came)) if (j := recording.later(i, k)) is not None]
        if not pairs:
            continue
        at, then = np.array(pairs).T
        later, said, before = came[then], ahead[at, k - 1], came[at]
        hits[k - 1], stayed[k - 1] = (said == later).mean(), (before == later).mean()
        if (later != before).any():
            changed[k - 1] = (said == later)[later != before].mean()
    return Foretold(hits, stayed, changed)
