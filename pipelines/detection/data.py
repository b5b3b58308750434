"""A folder in COCO format as training views: augmented pictures whose first layers are computed once and kept.

The lower half of the backbone stays frozen, so its output for some random views of each photo (crops, mirror images,
sizes, colours) can be computed once; training then starts from there, at a third of the work.

Shapes: V views, C channels and S cells of the kept features, n objects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

CANVAS = (288, 384)  # short and long side of every view, pixels; upright pictures stand
LEAST_OVERLAP = 0.35  # a cut object stays if this share of it is still in view


@dataclass(frozen=True)
class Photo:
    """One photo of a data set: its file, its boxes (n, 4) float32 xyxy in [0, 1], and its class indices (n,) int64.

    Objects marked difficult are among them: to call them background would teach the opposite of their neighbours.
    """

    path: Path
    boxes: np.ndarray
    classes: np.ndarray


def read_coco(folder: Path, split: str) -> tuple[list[Photo], dict[int, int]]:
    """Photos of `folder`/`split`.json with pictures in `folder`/images, and category id -> class index."""
    document = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
    index = {category["id"]: k for k, category in enumerate(sorted(document["categories"], key=lambda c: c["id"]))}
    of_image: dict[int, list[dict]] = {image["id"]: [] for image in document["images"]}
    for annotation in document["annotations"]:
        if not annotation.get("iscrowd", 0):
            of_image[annotation["image_id"]].append(annotation)
    photos = []
    for image in document["images"]:
        found = of_image[image["id"]]
        size = np.array([image["width"], image["height"]] * 2, np.float32)
        boxes = np.array([a["bbox"] for a in found], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        photos.append(
            Photo(
                folder / "images" / image["file_name"],
                np.clip(boxes / size, 0, 1),
                np.array([index[a["category_id"]] for a in found], np.int64),
            )
        )
    return photos, index


def views(photo: Photo, count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """`count` views of a photo: as it is, mirrored, then random ones.

    Each: (h, w, 3) uint8 RGB of CANVAS's sides, (n, 4) float32 boxes cxcywh in [0, 1], (n,) int64 classes.
    """
    image = np.asarray(Image.open(photo.path).convert("RGB"))
    random = np.random.default_rng(seed)
    for k in range(count):
        window = np.array([0, 0, 1, 1], np.float64)
        if k >= 2:
            window = _zoom_out(random) if random.random() < 0.3 else _crop(random, photo.boxes)
        mirrored = k == 1 or (k > 1 and random.random() < 0.5)
        picture, boxes, kept = _look(image, photo.boxes, window)
        if k >= 2:
            picture = _recolour(picture, random)
        if mirrored:
            picture = np.ascontiguousarray(picture[:, ::-1])
            boxes = np.concatenate([1 - boxes[:, 2:3], boxes[:, 1:2], 1 - boxes[:, 0:1], boxes[:, 3:4]], 1)
        centred = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
        yield picture, centred.astype(np.float32), photo.classes[kept]


def _look(image: np.ndarray, boxes: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The window (xyxy in [0, 1], may reach outside) of a picture, stretched to the canvas that suits its shape."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = window * [width, height, width, height]
    tall = (y2 - y1) > (x2 - x1)
    high, wide = CANVAS[::-1] if tall else CANVAS
    matrix = np.array([[wide / (x2 - x1), 0, -x1 * wide / (x2 - x1)], [0, high / (y2 - y1), -y1 * high / (y2 - y1)]])
    grey = (124, 116, 104)  # ImageNet's mean: nothing after normalisation
    picture = cv2.warpAffine(image, matrix, (wide, high), flags=cv2.INTER_LINEAR, borderValue=grey)
    moved = (boxes - np.tile(window[:2], 2)) / np.tile(window[2:] - window[:2], 2)
    cut = np.clip(moved, 0, 1)
    area = np.maximum((moved[:, 2:] - moved[:, :2]).prod(1), 1e-9)
    kept = (cut[:, 2:] - cut[:, :2]).prod(1) / area >= LEAST_OVERLAP
    return picture, cut[kept], kept


def _zoom_out(random: np.random.Generator) -> np.ndarray:
    side = random.uniform(1.1, 2.0)
    corner = random.uniform(0, side - 1, 2)
    return np.concatenate([-corner, side - corner])


def _crop(random: np.random.Generator, boxes: np.ndarray) -> np.ndarray:
    """A random window of 30 % to 100 % of the area that shows some object well; the whole picture if none is found."""
    for _ in range(20):
        area, shape = random.uniform(0.25, 1.0), np.exp(random.uniform(-0.35, 0.35))
        size = np.minimum(np.sqrt([area * shape, area / shape]), 1.0)
        corner = random.uniform(0, 1, 2) * (1 - size)
        window = np.concatenate([corner, corner + size])
        inside = np.minimum(boxes[:, 2:], window[2:]) - np.maximum(boxes[:, :2], window[:2])
        share = np.maximum(inside, 0).prod(1) / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1e-9)
        if not len(boxes) or share.max() >= random.choice([0.5, 0.7, 0.9]):
            return window
    return np.array([0.0, 0.0, 1.0, 1.0])


def _recolour(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and saturation changed at random; sometimes grey."""
    values = picture.astype(np.float32)
    grey = values.mean(2, keepdims=True)
    saturation = 0.0 if random.random() < 0.05 else random.uniform(0.6, 1.4)
    values = grey + (values - grey) * saturation
    values = (values - 128) * random.uniform(0.7, 1.3) + 128 + random.uniform(-25, 25)
    values += random.uniform(-8, 8, 3).astype(np.float32)  # a tint
    return np.clip(values, 0, 255).astype(np.uint8)
