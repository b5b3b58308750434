"""Drawings of 28 by 28 black and white pixels: examples made of strokes, what is kept of one, and its control."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from pipelines.common.errors import UserError

from .pixels import SIDE

HALVES = ("top", "left", "right", "bottom", "scattered")
BRUSH = 1.25  # radius in pixels

# Digits as lines through points (x, y) in pixels, at the size and place of MNIST's: a box of 20 in the middle.
_STROKES: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "2": (((9, 9), (11, 6), (15, 5), (18, 7), (18, 11), (14, 16), (9, 21), (13, 21), (19, 21)),),
    "3": (((9, 7), (13, 5), (17, 7), (16, 11), (13, 13), (17, 15), (18, 18), (15, 22), (9, 21)),),
    "5": (((18, 6), (11, 6), (10, 12), (15, 12), (18, 15), (17, 20), (13, 22), (9, 20)),),
    "7": (((8, 7), (19, 7), (15, 14), (12, 22)),),
    "8": (((14, 13), (10, 10), (12, 6), (16, 6), (18, 9), (14, 13), (10, 17), (11, 21), (16, 21), (17, 17), (14, 13)),),
    "0": (((14, 5), (10, 9), (9, 15), (11, 21), (15, 22), (19, 17), (19, 10), (16, 6), (14, 5)),),
}
EXAMPLES = tuple(_STROKES)


def example(name: str) -> np.ndarray:
    """(28, 28) bool of a digit. UserError: there is no such example."""
    if name not in _STROKES:
        raise UserError(f"The examples are the digits {', '.join(EXAMPLES)}.")
    picture = np.zeros((SIDE, SIDE), bool)
    y, x = np.indices(picture.shape) + 0.5
    for stroke in _STROKES[name]:
        for (x1, y1), (x2, y2) in pairwise(stroke):
            for share in np.linspace(0, 1, 24):
                picture |= np.hypot(x - x1 - share * (x2 - x1), y - y1 - share * (y2 - y1)) < BRUSH
    return picture


def as_text(picture: np.ndarray) -> str:
    """784 characters 0 and 1, in reading order."""
    return "".join("01"[int(value)] for value in picture.ravel())


def from_text(text: object) -> np.ndarray:
    """(28, 28) bool. UserError: not 784 characters 0 and 1."""
    if not isinstance(text, str) or len(text) != SIDE * SIDE or set(text) - {"0", "1"}:
        raise UserError("A drawing is a text of 784 characters, 0 for black and 1 for white.")
    return np.frombuffer(text.encode(), np.uint8).reshape(SIDE, SIDE) == ord("1")


def kept(half: str, share: float) -> np.ndarray:
    """(28, 28) bool: the part of a drawing that stays. share: of its lines (or pixels), 0 to 1.

    UserError: no such half, or no such share."""
    if half not in HALVES:
        raise UserError(f"What is kept must be one of {', '.join(HALVES)}.")
    if not 0 <= share <= 1:
        raise UserError("The share that is kept must lie between 0 and 100 %.")
    lines = np.arange(SIDE) < round(share * SIDE)
    whole = np.ones((SIDE, SIDE), bool)
    return {
        "top": whole & lines[:, None], "bottom": whole & lines[::-1, None], "left": whole & lines,
        "right": whole & lines[::-1],
        "scattered": np.random.default_rng(0).permutation(SIDE * SIDE).reshape(SIDE, SIDE) < round(share * SIDE**2),
    }[half]  # fmt: skip


def scattered(picture: np.ndarray, seed: int = 0) -> np.ndarray:
    """The control: as many white pixels, anywhere."""
    return np.random.default_rng(seed).permutation(picture.ravel()).reshape(picture.shape)
