"""A given picture and its mask on the canvas that is drawn on. numpy and Pillow only.

Letters: H and W the given sides, h and w the canvas' sides in pixels, f the autoencoder's factor.
"""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image


def cover(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (h, w, 3): scaled so that it fills the canvas; what hangs over is cut off evenly."""
    return np.array(_covered(Image.fromarray(image), width, height, Image.Resampling.LANCZOS))


def cover_mask(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    """(H, W) bool -> (h, w) bool, as `cover`: true where a pixel of the mask falls, however small it has become."""
    shares = Image.fromarray(mask.astype(np.float32))  # in bytes a small share would be none
    return np.asarray(_covered(shares, width, height, Image.Resampling.BOX)) > 1e-6


def cells(mask: np.ndarray, factor: int) -> np.ndarray:
    """(h, w) bool of pixels -> (h / f, w / f) bool of latent cells: a cell is drawn anew if one of its pixels is."""
    height, width = mask.shape
    blocks = mask.reshape(height // factor, factor, width // factor, factor)
    return np.asarray(blocks.any(axis=(1, 3)))


def apart(first: np.ndarray, second: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean absolute difference of two pictures (H, W, 3) uint8 in levels of 255, and (H, W) float32 for each pixel."""
    where = np.abs(first.astype(np.float32) - second.astype(np.float32)).mean(axis=-1)
    return float(where.mean()), where


def fingerprint(array: np.ndarray) -> str:
    """SHA-256 of an array's shape, type and numbers, in hex digits."""
    head = f"{array.dtype.str} {array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def _covered(picture: Image.Image, width: int, height: int, how: Image.Resampling) -> Image.Image:
    if picture.size == (width, height):
        return picture
    scale = min(picture.width / width, picture.height / height)
    cut = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (picture.width - cut[0]) // 2, (picture.height - cut[1]) // 2
    # Cut off before it is scaled, or the edges would get some of what is outside.
    return picture.crop((left, top, left + cut[0], top + cut[1])).resize((width, height), how)
