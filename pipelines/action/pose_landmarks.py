"""The 33 landmarks of one person: BlazePose's second network on a turned crop, and what its outputs mean.

Bazarevsky et al. 2020, sections 3.3 and 3.4. The network regresses each place, and draws heat maps beside; near the
place the heat map is the more exact, so that its centre of mass counts where it is sure. The numbers are those of the
graph pose_landmark_cpu that MediaPipe 0.10.14 ships. Numpy and OpenCV.

Letters: L = 39 points: 33 landmarks, the two of the next crop, and four that MediaPipe leaves unused.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .pose_network import Network
from .pose_region import Region

SIDE = 256
COUNT = 33
POINTS = 39
# Cells of the heat map around a place that count. The graph says 7, but the library does as with 9, the default of its
# RefineLandmarksFromHeatmap: with 9 our places are its own to 0.001 cells, with 7 off by up to half a cell.
KERNEL = 9
SURE = 0.5  # the heat map's peak from which it is believed
PLACES, PRESENCE, HEAT = 0, 1, 3  # the network's outputs; 2 is a mask and 4 are metres


@dataclass(frozen=True)
class Raw:
    """What one frame says, unsmoothed. points: (33, 3) float64 x, y, z in pixels of the picture. seen: (33,) float64
    visibilities in [0, 1]. anchors: (2, 2) the hips' middle and the rim point of the next crop, x, y in pixels.
    presence: probability that there is a person in the crop."""

    points: np.ndarray
    seen: np.ndarray
    anchors: np.ndarray
    presence: float


def refine(places: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """(L, 2) x, y in shares of the crop, and heat maps (H, W, L) before the sigmoid -> (L, 2).

    Within a window of 9 x 9 cells around the regressed place, the centre of mass of the heat map, if its peak there is
    at least 0.5; else the place is left as it is, as is one outside the crop.
    """
    height, width, _ = heat.shape
    column, row = (np.trunc(places[:, k] * n).astype(np.int64) for k, n in ((0, width), (1, height)))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    steps = np.arange(KERNEL) - KERNEL // 2
    # (L, 9): the window's cells; those over the edge count nothing.
    columns, rows = column[:, None] + steps, row[:, None] + steps
    known = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    window = heat[
        rows.clip(0, height - 1)[:, :, None], columns.clip(0, width - 1)[:, None, :],
        np.arange(len(places))[:, None, None],
    ]  # fmt: skip
    weights = np.where(known, 1.0 / (1.0 + np.exp(-window.astype(np.float64))), 0.0)  # (L, 9, 9)
    total = weights.sum(axis=(1, 2))
    believed = inside & (weights.max(axis=(1, 2)) >= SURE)
    refined = np.array(places, np.float64)
    across, down = (weights.sum(axis=1) * columns).sum(axis=1), (weights.sum(axis=2) * rows).sum(axis=1)
    # A cell's number is its left or upper edge: the network was trained so, and half a cell is a hundredth of a crop.
    refined[believed, 0] = (across[believed] / total[believed]) / width
    refined[believed, 1] = (down[believed] / total[believed]) / height
    return refined


def decode(places: np.ndarray, presence: np.ndarray, heat: np.ndarray, region: Region) -> Raw:
    """The network's outputs on the crop of a region.

    places: (L * 5,) x, y, z in crop pixels, visibility and presence before the sigmoid. presence: one number in [0, 1].
    heat: (64, 64, L).
    """
    table = np.asarray(places, np.float64).reshape(POINTS, 5)
    points = region.to_picture(refine(table[:, :2] / SIDE, heat))
    depth = table[:COUNT, 2:3] * (region.side / SIDE)
    return Raw(
        points=np.concatenate([points[:COUNT], depth], axis=1),
        seen=1.0 / (1.0 + np.exp(-np.clip(table[:COUNT, 3], -100, 100))),
        anchors=points[COUNT : COUNT + 2],
        presence=float(np.asarray(presence).reshape(-1)[0]),
    )


def find(network: Network, picture: np.ndarray, region: Region) -> Raw:
    """The landmarks of the person in a region of a (H, W, 3) uint8 RGB picture."""
    pixels = region.crop(picture, SIDE, cv2.BORDER_REPLICATE)
    places, presence, heat = network(pixels * np.float32(1 / 255), (PLACES, PRESENCE, HEAT))
    return decode(places, presence, heat, region)
