"""Objects as a COCO document, and a COCO document as ground truth. The format: cocodataset.org, "Data format"."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.limits import limits

from .contract import DetectionResult
from .labels import categories

# --- writing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """The objects of one picture. name: its file name. size: (height, width) of the picture."""

    name: str
    size: tuple[int, int]
    result: DetectionResult


def document(pictures: Sequence[Found], labels: str) -> dict[str, Any]:
    """A COCO document of the objects of some pictures, all found by weights of one label file.

    Ids of pictures and of annotations count from 1. Every annotation has its score; where there is a mask, its run
    lengths, compressed as COCO does, and its area; otherwise the area is the box's.
    """
    known = categories(labels).values()
    found = [
        annotation
        for image, picture in enumerate(pictures, start=1)
        for annotation in _annotations(picture, image)
    ]  # fmt: skip
    return {
        "info": {"description": "Objects found by Glasshouse", "version": "1.0"},
        "licenses": [],
        "images": [
            {"id": image, "file_name": PurePath(picture.name).name, "height": picture.size[0], "width": picture.size[1]}
            for image, picture in enumerate(pictures, start=1)
        ],
        "categories": [
            {"id": c.id, "name": c.name, "supercategory": "thing" if c.thing else "stuff"}
            for c in sorted(known, key=lambda c: c.id)
        ],
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(found, start=1)],
    }


def _annotations(picture: Found, image: int) -> list[dict[str, Any]]:
    result = picture.result
    rows = []
    for i in range(len(result)):
        x1, y1, x2, y2 = (round(float(v), 2) for v in result.boxes[i])
        box = [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
        row: dict[str, Any] = {
            "image_id": image, "category_id": int(result.categories[i]), "bbox": box, "area": round(box[2] * box[3], 2),
            "iscrowd": 0, "score": round(float(result.scores[i]), 5),
        }  # fmt: skip
        if result.masks is not None and result.masks[i].any():
            row |= {"segmentation": run_lengths(result.masks[i]), "area": int(np.count_nonzero(result.masks[i]))}
        rows.append(row)
    return rows


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """(height, width) bool -> COCO's compressed run lengths: {"size": [height, width], "counts": text}.

    The mask is read column by column; runs alternate from "outside". From the third on, a run is written as the
    difference to the one two before, five bits a character, lowest first: bit 6 says that more follow, the sign is
    that of the last five.
    """
    flat = np.asarray(mask, bool).ravel(order="F")
    edges = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    runs = np.diff(edges).tolist()
    if flat.size and flat[0]:
        runs.insert(0, 0)
    text = []
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != (-1 if bits & 0x10 else 0)
            text.append(chr((bits | 0x20 if more else bits) + 48))
    return {"size": [int(n) for n in mask.shape], "counts": "".join(text)}


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TruthImage:
    """One picture of a document. size: (height, width) as the document says, or None. boxes: (n, 4) float64 xywh in
    pixels of that size, as they stand there. labels: n names. ignored: (n,) bool, difficult or crowds."""

    name: str
    size: tuple[int, int] | None
    boxes: np.ndarray
    labels: tuple[str, ...]
    ignored: np.ndarray


@dataclass(frozen=True)
class Truth:
    """The objects of one picture. boxes: (n, 4) float32 xyxy in its pixels, within it and of some area. labels: n
    names. ignored: (n,) bool. notes: what was changed or left out."""

    boxes: np.ndarray
    labels: tuple[str, ...]
    ignored: np.ndarray
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.boxes)


def read(source: bytes | str) -> tuple[tuple[TruthImage, ...], tuple[str, ...]]:
    """Pictures of a COCO document given as its text, and notes on annotations that were left out.

    UserError: too large, no JSON, or not a COCO document.
    """
    if len(source) > limits().upload_bytes:
        raise UserError(f"The file is larger than {limits().upload_bytes // 1_000_000} MB; choose a smaller one.")
    try:
        data = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise UserError("This is not a JSON file; ground truth is read from a file in COCO format.") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in lists):
        raise UserError("This is not a COCO file: it needs the lists images, annotations and categories.")
    rows = [row for key in lists for row in data[key]]
    if not all(isinstance(row, dict) for row in rows):
        raise UserError("This is not a COCO file: every picture, annotation and category must be an object.")
    keyed = [*data["images"], *data["categories"]]
    if not all(isinstance(row.get("id"), int | str) for row in keyed):
        raise UserError("This is not a COCO file: a picture or a category has no id.")
    if len({row["id"] for row in data["images"]}) != len(data["images"]):
        raise UserError("In this COCO file two pictures have the same id.")
    return _images(data)


def _images(data: dict[str, Any]) -> tuple[tuple[TruthImage, ...], tuple[str, ...]]:
    names = {row["id"]: str(row.get("name", row["id"])) for row in data["categories"]}
    kept: dict[Any, list[tuple[list[float], str, bool]]] = {row["id"]: [] for row in data["images"]}
    stray = invalid = 0
    for row in data["annotations"]:
        image, category, box = (row.get(key) for key in ("image_id", "category_id", "bbox"))
        plain = isinstance(image, int | str) and isinstance(category, int | str)  # what else could not be looked up
        if not plain or image not in kept or category not in names:
            stray += 1
        elif (numbers := _numbers(box)) is None:
            invalid += 1
        else:
            kept[image].append((numbers, names[category], bool(row.get("iscrowd")) or bool(row.get("difficult"))))
    images = []
    for row in data["images"]:
        found = kept[row["id"]]
        boxes = np.array([numbers for numbers, _, _ in found], np.float64).reshape(-1, 4)
        labels, ignored = tuple(label for _, label, _ in found), np.array([crowd for _, _, crowd in found], bool)
        name = PurePath(str(row.get("file_name", row["id"]))).name
        images.append(TruthImage(name, _size(row), boxes, labels, ignored))
    notes = (
        _note(stray, "of a picture or a category that the file does not list"),
        _note(invalid, "without a box of four numbers"),
    )
    return tuple(images), tuple(note for note in notes if note)


def fit(image: TruthImage, size: tuple[int, int]) -> Truth:
    """The boxes of a document's picture on the picture at hand, (height, width): scaled if the document knows it in
    another size, cut off at its edge, and left out if nothing remains."""
    height, width = size
    corners = np.concatenate([image.boxes[:, :2], image.boxes[:, :2] + image.boxes[:, 2:]], axis=1)
    if image.size is not None:
        corners *= np.array([width / image.size[1], height / image.size[0]] * 2)
    inside = np.clip(corners, 0, [width, height] * 2).astype(np.float32)
    # A hundredth of a pixel over the edge is how files round.
    outside = np.abs(inside - corners).max(axis=1, initial=0) > 0.01
    solid = (inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1])
    cut, gone = int(np.count_nonzero(outside & solid)), int(np.count_nonzero(~solid))
    notes = []
    if cut:
        notes.append(f"{cut} {_boxes(cut)} beyond the picture and {'was' if cut == 1 else 'were'} cut off at its edge.")
    if gone:
        notes.append(f"{gone} {'box' if gone == 1 else 'boxes'} of no area in the picture left out.")
    labels = tuple(label for label, stays in zip(image.labels, solid, strict=True) if stays)
    return Truth(inside[solid], labels, image.ignored[solid], tuple(notes))


def choose(images: Sequence[TruthImage], name: str = "") -> TruthImage:
    """The picture of a document that is meant: the one of this file name, or the only one.

    UserError: there is none, or several and none of that name.
    """
    same = [image for image in images if image.name == PurePath(name).name]
    if len(same) == 1:
        return same[0]
    if len(images) == 1:
        return images[0]
    if not images:
        raise UserError("The COCO file lists no pictures.")
    shown = ", ".join(image.name[:40] for image in images[:5])
    raise UserError(f"The COCO file lists {len(images)} pictures; choose one of them by its name: {shown} …")


def _numbers(box: Any) -> list[float] | None:
    """Four finite numbers of a sensible size, or None."""
    if not isinstance(box, list) or len(box) != 4:
        return None
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e9 for v in box):
        return None  # nan is not below anything
    return [float(v) for v in box]


def _size(row: dict[str, Any]) -> tuple[int, int] | None:
    height, width = row.get("height"), row.get("width")
    if not isinstance(height, int) or not isinstance(width, int):
        return None
    return (height, width) if 0 < height < 1_000_000 and 0 < width < 1_000_000 else None


def _note(count: int, what: str) -> str:
    return f"{count} {'annotation' if count == 1 else 'annotations'} {what} left out." if count else ""


def _boxes(count: int) -> str:
    return "box reaches" if count == 1 else "boxes reach"
