"""From a face in a picture to the chip that an embedder was trained on.

Two habits: dlib's network wants a face turned and scaled so that its five points lie on a template; facenet's wants
the detector's box, stretched to a square.

Shapes: n faces, S side of a chip. Points are xy in pixels, in the order of `contract.Face.landmarks`.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from .config import DlibResnetConfig, InceptionResnetConfig

# Where MTCNN's five points lie on the chips that dlib cuts for its own network (150 px): calibrated for this pair.
DLIB_TEMPLATE = np.array(
    [[47.28, 45.29], [101.65, 45.10], [73.78, 78.10], [50.01, 102.09], [99.93, 100.70]], dtype=np.float64
)
DLIB_SIDE = DlibResnetConfig().input_side
FACENET = InceptionResnetConfig()

SIDES = {"dlib_resnet": DLIB_SIDE, "inception_resnet_v1": FACENET.input_side}
MAX_ZOOM = 64.0  # chip pixels per picture pixel: beyond it the points coincide but for noise


def umeyama(src: np.ndarray, dst: np.ndarray) -> np.ndarray:
    """The similarity transform (rotation, one scale, shift; no mirroring) that takes `src` to `dst` best.

    Least squares after Umeyama 1991, "Least-squares estimation of transformation parameters between two point
    patterns", equations 40 to 42. src, dst: (n, 2), n >= 1. Returns the (2, 3) float64 matrix [scale R | shift].

    Where the points say nothing about rotation or scale (all of `src` at one place; nothing in common between the two
    patterns) the transform keeps both and only shifts the centre of `src` to that of `dst`.
    """
    src, dst = np.asarray(src, np.float64), np.asarray(dst, np.float64)
    mean_src, mean_dst = src.mean(axis=0), dst.mean(axis=0)
    centred_src, centred_dst = src - mean_src, dst - mean_dst
    variance = (centred_src**2).sum() / len(src)
    linear = np.eye(2)
    if variance > 1e-12:
        u, d, vt = np.linalg.svd(centred_dst.T @ centred_src / len(src))
        sign = np.array([1.0, -1.0 if np.linalg.det(u) * np.linalg.det(vt) < 0 else 1.0])
        scale = float((d * sign).sum() / variance)
        if scale > 1e-9:
            linear = scale * (u * sign) @ vt
    return np.column_stack([linear, mean_dst - linear @ mean_src])


def warp(image: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    """Cut a (side, side, 3) uint8 chip out of a (height, width, 3) uint8 picture.

    matrix: (2, 3), picture pixels -> chip pixels, a similarity. What lies outside the picture is black, as on the
    chips that dlib was trained with. A face of more than twice the chip's size is averaged down by a whole number
    first: bilinear sampling alone would skip pixels and alias.
    """
    outside = np.zeros((side, side, 3), np.uint8)
    scale = math.hypot(matrix[0, 0], matrix[1, 0])
    if not np.isfinite(matrix).all() or not 0 < scale <= MAX_ZOOM:
        return outside
    inverse = cv2.invertAffineTransform(matrix)
    corners = np.array([[-1, -1, 1], [side, -1, 1], [-1, side, 1], [side, side, 1]], np.float64) @ inverse.T
    height, width = image.shape[:2]
    x0, y0 = np.clip(np.floor(corners.min(axis=0)) - 1, 0, (width, height)).astype(int)
    x1, y1 = np.clip(np.ceil(corners.max(axis=0)) + 2, 0, (width, height)).astype(int)
    if x0 >= x1 or y0 >= y1:
        return outside
    part = image[y0:y1, x0:x1]
    factor = max(1, min(int(1 / scale), x1 - x0, y1 - y0))
    if factor > 1:
        # Whole blocks only, so that pixel i of the small picture is the mean of pixels factor * i + (0 .. factor - 1);
        # the edge is repeated to fill the last block, which adds no black that isn't there.
        bottom, right = -(y1 - y0) % factor, -(x1 - x0) % factor
        part = cv2.copyMakeBorder(part, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
        size = (part.shape[1] // factor, part.shape[0] // factor)
        part = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
    centre = (factor - 1) / 2
    to_picture = np.array([[factor, 0, centre + x0], [0, factor, centre + y0], [0, 0, 1]], np.float64)
    return cv2.warpAffine(
        part, matrix @ to_picture, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0
    )


def crop(image: np.ndarray, box: np.ndarray, side: int, margin: int = 0) -> np.ndarray:
    """Cut a box out of a picture and stretch it to (side, side, 3): facenet-pytorch's `extract_face`, to the pixel.

    box: (4,) xyxy. margin: pixels of the chip that lie outside the box, both edges together; the crop ends at the
    picture's border. A box with no pixel of the picture gives a black chip.
    """
    box = np.asarray(box)
    if not np.isfinite(box).all():
        return np.zeros((side, side, 3), np.uint8)
    height, width = image.shape[:2]
    extra = [margin * (box[2] - box[0]) / (side - margin), margin * (box[3] - box[1]) / (side - margin)]
    x0, y0 = (int(max(box[i] - extra[i] / 2, 0)) for i in (0, 1))
    x1, y1 = int(min(box[2] + extra[0] / 2, width)), int(min(box[3] + extra[1] / 2, height))
    if x0 >= x1 or y0 >= y1:
        return np.zeros((side, side, 3), np.uint8)
    return cv2.resize(image[y0:y1, x0:x1], (side, side), interpolation=cv2.INTER_AREA)


def chips(architecture: str, image: np.ndarray, boxes: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Aligned chips of the faces of one picture.

    architecture: a catalogue entry's, "dlib_resnet" or "inception_resnet_v1". image: (height, width, 3) uint8 RGB.
    boxes: (n, 4) xyxy. landmarks: (n, 5, 2). Returns (n, S, S, 3) uint8 RGB, S = SIDES[architecture].
    ValueError: the architecture has no alignment here.
    """
    if architecture not in SIDES:
        raise ValueError(f"no alignment for {architecture!r}; there is one for {', '.join(SIDES)}")
    side = SIDES[architecture]
    image = np.ascontiguousarray(image)
    if architecture == "dlib_resnet":
        cut = [warp(image, umeyama(points, DLIB_TEMPLATE), side) for points in landmarks]
    else:
        cut = [crop(image, box, side, FACENET.margin) for box in boxes]
    return np.stack(cut) if cut else np.zeros((0, side, side, 3), np.uint8)
