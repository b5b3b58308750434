"""Area resampling from one table: every pyramid level and every crop is the mean of whole pixels over rectangles, and a
summed-area table (Crow 1984) gives the sum over any rectangle from its four corners, whatever its size. The sums are
integers, so nothing is lost: the numbers are those of `F.interpolate(mode="area")`.

Letters: H x W the picture, h x w a resized picture, N crops, S side of a crop. Boxes of whole pixels are x0 y0 x1 y1,
the last row and column excluded.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


def bins(length: np.ndarray | int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut `length` pixels into `count` bins that may share a pixel: start and end (excluded) of each.

    A bin is every pixel that it touches, in whole, as in torch's adaptive average pooling. length: int or (N, 1) ints.
    """
    i = np.arange(count, dtype=np.int64)
    return i * length // count, -(-(i + 1) * length // count)


@dataclass(frozen=True)
class Integral:
    """Summed-area table of a picture.

    table: (H + 1, W + 1, 3) int32, the sums of R, G and B over all pixels above and to the left. Sums may wrap around
    2^32; their differences are right as long as no rectangle has more than 8.4 million pixels, which with levels of at
    least 12 x 12 takes a picture of a billion.
    """

    table: np.ndarray
    height: int
    width: int

    @staticmethod
    def of(image: np.ndarray) -> Integral:
        """image: (H, W, 3) uint8 RGB, any strides. ValueError for anything else."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(f"expected (H, W, 3) uint8, got {image.shape} {image.dtype}")
        return Integral(cv2.integral(np.ascontiguousarray(image), sdepth=cv2.CV_32S), *image.shape[:2])

    def resized(self, height: int, width: int, first: int, last: int) -> np.ndarray:
        """Rows first..last (excluded) of the picture resized to height x width: (last - first, width, 3) float32."""
        top, bottom = (edge[first:last] for edge in bins(self.height, height))
        left, right = bins(self.width, width)
        flat = self.table.reshape(self.height + 1, -1)  # take() is quickest along rows of single numbers
        strip = flat.take(bottom, 0)
        strip -= flat.take(top, 0)  # sums over each bin's rows, from the left border
        channel = np.arange(3)
        sums = strip.take((right[:, None] * 3 + channel).reshape(-1), 1)
        sums -= strip.take((left[:, None] * 3 + channel).reshape(-1), 1)
        means = sums.astype(np.float32)
        means *= (1 / (bottom - top)).astype(np.float32)[:, None] * np.repeat(1 / (right - left), 3).astype(np.float32)
        return means.reshape(last - first, width, 3)

    def crops(self, windows: np.ndarray, side: int) -> np.ndarray:
        """windows: (N, 4) integers x0 y0 x1 y1, none empty, all inside -> (N, side, side, 3) float32."""
        x0, y0, x1, y1 = (windows[:, k : k + 1].astype(np.int64) for k in range(4))
        left, right = bins(x1 - x0, side)
        top, bottom = bins(y1 - y0, side)
        weight = (1 / (bottom - top)).astype(np.float32)[:, :, None] * (1 / (right - left)).astype(np.float32)[:, None]
        top, bottom = ((y0 + edge)[:, :, None] * (self.width + 1) for edge in (top, bottom))
        left, right = ((x0 + edge)[:, None, :] for edge in (left, right))
        corners = self.table.reshape(-1, 3)
        sums = corners.take(bottom + right, 0)
        sums -= corners.take(top + right, 0)
        sums -= corners.take(bottom + left, 0)
        sums += corners.take(top + left, 0)
        return sums.astype(np.float32) * weight[..., None]
