"""Where in a picture a person is: a turned square, the crop that a network sees of it, and the way back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

# Both networks were trained on crops with this margin (scale_x, scale_y of RectTransformation, MediaPipe 0.10.14).
MARGIN = 1.25
PARTS = 32  # places between two pixels that OpenCV 4 told apart
# Places that a map of 16 bits holds; pictures have fewer pixels a side, so that what lies beyond is outside as well.
REACH = 2**15
LEAST, MOST = 1.0, 50.0  # sides of a region that can be one: pixels, and longest sides of the picture


@dataclass(frozen=True)
class Region:
    """x, y: centre, and side, in pixels; pixel k covers k to k + 1. angle: radians, clockwise on the screen."""

    x: float
    y: float
    side: float
    angle: float = 0.0

    def usable(self, height: int, width: int) -> bool:
        """Whether this can be a person in a picture of that size; a network may say anything."""
        numbers = all(map(math.isfinite, (self.x, self.y, self.side, self.angle)))
        return numbers and LEAST <= self.side <= MOST * max(height, width) and self._touches(height, width)

    def _touches(self, height: int, width: int) -> bool:
        """A crop with nothing of the picture in it would show its last row or column, drawn out."""
        reach = self.side * 0.5 * (abs(math.cos(self.angle)) + abs(math.sin(self.angle)))
        return -reach < self.x < width + reach and -reach < self.y < height + reach

    def matrix(self, pixels: int = 1) -> np.ndarray:
        """(2, 3) float64, from a crop of so many pixels a side to the picture."""
        scale = self.side / pixels
        cosine, sine = math.cos(self.angle) * scale, math.sin(self.angle) * scale
        half = pixels / 2
        return np.array(
            [
                [cosine, -sine, self.x - half * (cosine - sine)],
                [sine, cosine, self.y - half * (sine + cosine)],
            ]
        )

    def crop(self, picture: np.ndarray, pixels: int, outside: int) -> np.ndarray:
        """(pixels, pixels, 3) uint8. picture: (H, W, 3) uint8. outside: cv2's border mode.

        Only what lies in the region is read, so a 4K picture costs what a small one does. MediaPipe samples between
        four pixels, at the corner of each pixel of the crop, at places that OpenCV 4 rounds to 1/32 of a pixel.
        OpenCV 5's warpAffine no longer rounds, and the networks are that sensitive: the crop differs by 0.06 grey
        levels on average, the landmarks by one or two hundredths of the shoulder width. So the rounded places are
        computed here, and `remap` takes them as they are.
        """
        steps = np.arange(pixels, dtype=np.float64)
        (xx, xy, x0), (yx, yy, y0) = self.matrix(pixels) * PARTS
        low, high = -REACH * PARTS, REACH * PARTS - 1
        across = np.rint((xx * steps + x0) + (xy * steps)[:, None]).clip(low, high).astype(np.int32)
        down = np.rint((yx * steps + y0) + (yy * steps)[:, None]).clip(low, high).astype(np.int32)
        whole = np.empty((pixels, pixels, 2), np.int16)
        whole[..., 0], whole[..., 1] = across >> 5, down >> 5
        between = ((down & 31) << 5 | (across & 31)).astype(np.uint16)
        return cv2.remap(picture, whole, between, cv2.INTER_LINEAR, borderMode=outside)

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) in shares of the crop -> pixels of the picture."""
        matrix = self.matrix()
        return points @ matrix[:, :2].T + matrix[:, 2]


def whole(height: int, width: int) -> Region:
    """The smallest square around a picture's middle that holds it all."""
    return Region(width / 2, height / 2, float(max(height, width)))


def between(centre: np.ndarray, rim: np.ndarray, margin: float = MARGIN) -> Region:
    """The region of a person by BlazePose's two alignment points, (2,) each, in pixels.

    BlazePose (Bazarevsky et al. 2020, section 3.1): the hips' middle, and a point on the circle around the whole person
    that tells its radius and, being above the head, the person's incline. It becomes the upright of the crop.
    """
    across, down = float(rim[0] - centre[0]), float(rim[1] - centre[1])
    angle = math.atan2(across, -down)  # 0 where the second point is straight above
    return Region(float(centre[0]), float(centre[1]), 2.0 * math.hypot(across, down) * margin, angle)
