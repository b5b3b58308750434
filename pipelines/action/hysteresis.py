"""From probabilities to one action at a time: it begins above one level and goes on until it falls below a lower one.

Letters: ... any leading axes, T chunks, C classes.
"""

from __future__ import annotations

import numpy as np

from .config import BACKGROUND


class Hysteresis:
    """The action of one stream, a chunk at a time."""

    def __init__(self, threshold: float, release: float | None = None) -> None:
        """threshold: probability at which an action begins. release: below which it ends; None is 0.6 of it."""
        self.threshold = threshold
        self.release = 0.6 * threshold if release is None else release
        self.current = BACKGROUND

    def step(self, probabilities: np.ndarray) -> int:
        """(C,) -> the class that is going on, or background."""
        best = int(probabilities[1:].argmax()) + 1
        stays = self.current != BACKGROUND and probabilities[self.current] >= self.release
        begins = probabilities[best] >= self.threshold
        # Another action that is above the level takes over only where it is the likelier one.
        if begins and (not stays or probabilities[best] > probabilities[self.current]):
            self.current = best
        elif not stays:
            self.current = BACKGROUND
        return self.current


def actions(probabilities: np.ndarray, threshold: float, release: float | None = None) -> np.ndarray:
    """Whole streams (..., T, C) -> (..., T) the class of every chunk."""
    flat = probabilities.reshape(-1, *probabilities.shape[-2:])
    called = np.zeros(flat.shape[:2], int)
    for row, stream in enumerate(flat):
        state = Hysteresis(threshold, release)
        called[row] = [state.step(chunk) for chunk in stream]
    return called.reshape(probabilities.shape[:-1])
