"""Steady landmarks: the One Euro filter for places, an exponential mean for visibilities. Numpy only.

Casiez, Roussel, Vogel, "1€ Filter", CHI 2012: a low-pass filter whose cutoff rises with speed, so that what rests does
not tremble and what moves fast does not lag. MediaPipe measures speed in sizes of the person a second, so that the same
numbers do for near and far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

RATE = 30.0  # frames a second, until two frames tell


@dataclass
class OneEuro:
    """Filters arrays of one shape, each number by itself. Belongs to one stream.

    least: cutoff in Hz of what rests. rise: Hz by which it grows for each size a second. speed: cutoff in Hz of the
    speed's own low-pass filter.
    """

    least: float
    rise: float
    speed: float = 1.0
    _time: float | None = None
    _raw: np.ndarray = field(default_factory=lambda: np.zeros(0))
    _smooth: np.ndarray = field(default_factory=lambda: np.zeros(0))
    _velocity: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __call__(self, values: np.ndarray, size: float, time: float) -> np.ndarray:
        """values: any shape, in the unit of `size`, which must be above 0. time: seconds, later than the last."""
        values = np.asarray(values, np.float64)
        if self._time is None:
            self._raw, self._smooth, self._velocity = values, values, np.zeros_like(values)
            self._time = time
            return values
        seconds = time - self._time
        velocity = (values - self._raw) / (size * seconds)
        self._velocity = self._velocity + _share(self.speed, seconds) * (velocity - self._velocity)
        cutoff = self.least + self.rise * np.abs(self._velocity)
        self._smooth = self._smooth + _share(cutoff, seconds) * (values - self._smooth)
        self._raw, self._time = values, time
        return self._smooth


def _share(cutoff: np.ndarray | float, seconds: float) -> np.ndarray | float:
    """How much of the new value counts: paper, equation 5 (1 / (1 + tau / Te), tau = 1 / (2 pi cutoff))."""
    return 1.0 / (1.0 + 1.0 / (2.0 * math.pi * cutoff * seconds))


@dataclass
class Mean:
    """Exponential mean in which a new array counts `share`, however late it comes. Belongs to one stream."""

    share: float
    _mean: np.ndarray | None = None

    def __call__(self, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values, np.float64)
        self._mean = values if self._mean is None else self._mean + self.share * (values - self._mean)
        return self._mean


@dataclass
class Steady:
    """The filters of one followed person; a person found anew gets a new one.

    The numbers are those of the graph pose_landmark_cpu that MediaPipe 0.10.14 ships (LandmarksSmoothing and
    VisibilitySmoothing of its pose_landmark_filtering). The two points that place the next crop are filtered harder, so
    that the crop stands still around a person who does.
    """

    points: OneEuro = field(default_factory=lambda: OneEuro(least=0.05, rise=80.0))
    anchors: OneEuro = field(default_factory=lambda: OneEuro(least=0.01, rise=10.0))
    seen: Mean = field(default_factory=lambda: Mean(share=0.1))
