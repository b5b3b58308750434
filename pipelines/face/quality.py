"""What a face picture is worth before any network sees it: head pose from five points, sharpness, light."""

from __future__ import annotations

import cv2
import numpy as np

from .contract import Pose

# A mean face, millimetres: x to the picture's right, y down, z away from the viewer; the order of `Face.landmarks`.
# x and y are the mean of MTCNN's points on upright faces (the template of align.py) at 63 mm between the pupils, the
# adult mean (Dodgson 2004, "Variation and extrema of human interpupillary distance"); z are rounded anthropometric
# depths: the tip of the nose stands some 33 mm before the pupils, the corners of the mouth some 8 mm.
MEAN_FACE = np.array(
    [[-31.5, 0.0, 0.0], [31.5, 0.0, 0.0], [0.0, 38.1, -33.0], [-28.9, 65.1, -8.0], [28.9, 65.1, -8.0]], np.float64
)
STEPS = 12  # of the fit; it settles within six
FACE_SIDE = 112  # pixels at which sharpness and light are measured, so that they do not depend on the size of the face


def pose(landmarks: np.ndarray) -> Pose:
    """Head rotation in degrees from (5, 2) points in pixels; signs as in `contract.Pose`.

    The mean face is rotated, scaled and shifted until its orthographic projection lies as near the points as it can
    (weak perspective; DeMenthon and Davis 1995, "Model-based object pose in 25 lines of code", gives the start).
    Points that show no face (all on one spot or one line, or not finite) give finite numbers without a meaning.
    """
    points = np.asarray(landmarks, np.float64)
    if points.shape != (5, 2) or not np.isfinite(points).all():
        return Pose(0.0, 0.0, 0.0)
    points = points - points.mean(axis=0)
    spread = np.sqrt((points**2).sum())
    if spread < 1e-6:
        return Pose(0.0, 0.0, 0.0)
    model = MEAN_FACE - MEAN_FACE.mean(axis=0)
    model = model / np.sqrt((model**2).sum())
    rotation = _fit(model, points / spread)
    # rotation = Rz(roll) Rx(-pitch) Ry(-yaw): the head turns about its own neck, nods, and leans in the picture.
    yaw = np.arctan2(rotation[2, 0], rotation[2, 2])
    pitch = -np.arcsin(np.clip(rotation[2, 1], -1, 1))
    roll = np.arctan2(-rotation[0, 1], rotation[1, 1])
    return Pose(*(float(angle) for angle in np.degrees([yaw, pitch, roll])))


def sharpness(image: np.ndarray, box: np.ndarray) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al. 2000) of the grey face at 112 px; 0 where there is no picture.

    image: (H, W, 3) uint8 RGB. box: (4,) xyxy pixels, may reach past the picture: only what is inside counts.
    """
    grey, _ = _grey_face(image, box)
    if min(grey.shape) < 3:
        return 0.0
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def light(image: np.ndarray, box: np.ndarray, landmarks: np.ndarray) -> tuple[float, float]:
    """Mean luma of the face in [0, 1], and that of its left half less that of its right half in [-1, 1].

    The face is the ellipse in the box; its halves (as seen in the picture) lie beside the line from between the eyes
    to between the corners of the mouth. A half outside the picture gives balance 0; a face outside gives (0, 0).
    """
    grey, to_picture = _grey_face(image, box)
    if grey.size == 0:
        return 0.0, 0.0
    x1, y1, x2, y2 = np.asarray(box, np.float64)
    rows, columns = np.mgrid[: grey.shape[0], : grey.shape[1]]
    scale, left, top = to_picture
    x, y = (columns + 0.5) / scale + left, (rows + 0.5) / scale + top
    face = ((x - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((y - (y1 + y2) / 2) / (y2 - y1)) ** 2 <= 0.25
    luma = grey / 255.0
    if not face.any():
        return 0.0, 0.0
    side = _side(x, y, np.asarray(landmarks, np.float64), (x1 + x2) / 2)
    halves = face & (side < 0), face & (side > 0)
    balance = luma[halves[0]].mean() - luma[halves[1]].mean() if halves[0].any() and halves[1].any() else 0.0
    return float(luma[face].mean()), float(balance)


def _fit(model: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(5, 3) and (5, 2), both centred and of unit norm -> the rotation (3, 3), by damped Gauss-Newton."""
    linear = (np.linalg.pinv(model) @ points).T  # (2, 3): the affine camera, rotation and scale mixed
    u, scales, v = np.linalg.svd(linear, full_matrices=False)
    top = u @ v  # the nearest two orthonormal rows
    rotation = np.vstack([top, np.cross(top[0], top[1])])
    scale = float(scales.mean())
    for _ in range(STEPS):
        x, y, z = rotation @ model.T
        zero = np.zeros(5)
        # Columns: a small turn about each axis, and a change of scale; rows: five x, five y.
        jacobian = np.stack(
            [np.r_[zero, -scale * z], np.r_[scale * z, zero], np.r_[-scale * y, scale * x], np.r_[x, y]], axis=1
        )
        residual = np.r_[points[:, 0] - scale * x, points[:, 1] - scale * y]
        # The damping keeps points on one line, whose turn about that line is free, from running away.
        step = np.linalg.solve(jacobian.T @ jacobian + 1e-6 * np.eye(4), jacobian.T @ residual)
        rotation = cv2.Rodrigues(np.clip(step[:3], -0.5, 0.5))[0] @ rotation
        scale += step[3]
    return rotation


def _grey_face(image: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float]]:
    """The part of the box inside the picture as (h, w) uint8, the box's longer side being 112 px.

    Also (scale, left, top): a column c of it lies at c / scale + left in the picture. Empty if nothing is inside.
    """
    nothing = np.zeros((0, 0), np.uint8), (1.0, 0.0, 0.0)
    box = np.asarray(box, np.float64)
    if not np.isfinite(box).all():
        return nothing
    height, width = image.shape[:2]
    x1, y1 = np.floor(np.maximum(box[:2], 0)).astype(int)
    x2, y2 = np.ceil(np.minimum(box[2:], [width, height])).astype(int)
    if x2 <= x1 or y2 <= y1 or box[2] <= box[0] or box[3] <= box[1]:
        return nothing
    scale = FACE_SIDE / max(box[2] - box[0], box[3] - box[1])
    size = max(1, round((x2 - x1) * scale)), max(1, round((y2 - y1) * scale))
    grey = cv2.cvtColor(np.ascontiguousarray(image[y1:y2, x1:x2]), cv2.COLOR_RGB2GRAY)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(grey, size, interpolation=how), (scale, float(x1), float(y1))


def _side(x: np.ndarray, y: np.ndarray, landmarks: np.ndarray, middle: float) -> np.ndarray:
    """Negative left of the face's middle line, positive right of it; the box's middle if the points show no line."""
    if landmarks.shape == (5, 2) and np.isfinite(landmarks).all():
        eyes, mouth = landmarks[:2].mean(axis=0), landmarks[3:].mean(axis=0)
        down = mouth - eyes
        if np.hypot(*down) > 1e-6:
            return (x - eyes[0]) * down[1] - (y - eyes[1]) * down[0]
    return x - middle
