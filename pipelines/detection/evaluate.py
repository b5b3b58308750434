"""How well weights find the objects of a folder in COCO format: python -m pipelines.detection.evaluate --data DIR

DIR holds <split>.json and images/. The top 100 objects of every picture are scored at threshold 0 with faster-coco-eval
(the rules of COCO), in pixels of the files. Categories are matched by name, VOC's and COCO's names for one thing being
one. An object marked "difficult" counts neither as missed nor, if found, as wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.common import catalogue
from pipelines.common.backends import BACKENDS

from .config import PRESETS
from .contract import Prediction
from .labels import categories, same
from .postprocess import TOP, Objects, objects


@dataclass(frozen=True)
class Scores:
    """Average precisions in [0, 1]; nan where there is nothing to find.

    ap: mean over classes and overlaps 0.50, 0.55 to 0.95, COCO's main number. ap50: mean over classes at 0.50.
    classes: ap50 of every class that has an object to find. found50: mean share of objects found at overlap 0.50 among
    the 100 best. images, objects, ignored: counts; ignored are difficult or crowds.
    """

    ap: float
    ap50: float
    found50: float
    classes: Mapping[str, float]
    images: int
    objects: int
    ignored: int


def score(ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> Scores:
    """Score detections {image_id, category_id, bbox: xywh in pixels, score} against a COCO document.

    Every picture of the document counts, found in or not. Neither argument is changed. ValueError: a score or a box
    that is not finite, or a detection on a picture or of a category that the document does not have.
    """
    from faster_coco_eval import COCO

    truth, found = COCO(_truth(ground_truth)), _checked(ground_truth, detections)
    evaluation = _evaluator()(truth, truth.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    # precision: (overlaps, recalls, classes, areas, limits), recall: without recalls; -1 where nothing is to be found.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    recall = evaluation.eval["recall"][0, :, 0, -1]
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    classes = {
        names[id]: float(precision[0, :, k].mean())
        for k, id in enumerate(evaluation.params.catIds)
        if precision[0, 0, k] > -1
    }
    ignored = sum(annotation["iscrowd"] for annotation in truth.dataset["annotations"])
    return Scores(
        _mean(precision), _mean(precision[0]), _mean(recall), classes,
        len(truth.imgs), len(truth.anns) - ignored, ignored,
    )  # fmt: skip


def _evaluator() -> Any:
    from faster_coco_eval import COCOeval_faster, mask

    class Evaluator(COCOeval_faster):
        """The library ignores what `iscrowd` says, and takes any box inside a crowd as a hit on it. That is right for
        crowds but too kind for one difficult object, which here must be overlapped like any other (the VOC rule)."""

        def computeIoU(self, imgId: int, catId: int) -> Any:
            truth = [a for a in self.cocoGt.imgToAnns[imgId] if a["category_id"] == catId]
            found = [a for a in self.cocoDt.imgToAnns[imgId] if a["category_id"] == catId]
            if not truth or not found:
                return []
            found = sorted(found, key=lambda a: -a["score"])[: self.params.maxDets[-1]]  # stable, as the library's
            return mask.iou([a["bbox"] for a in found], [a["bbox"] for a in truth], [a["crowd"] for a in truth])

    return Evaluator


def _truth(document: Mapping[str, Any]) -> dict[str, Any]:
    """A copy whose difficult objects are marked as the library wants ignored ones, with ids from 1."""
    annotations = []
    for number, annotation in enumerate(document["annotations"], start=1):
        crowd = int(bool(annotation.get("iscrowd", 0)))
        ignored = crowd or int(bool(annotation.get("difficult", 0)))
        width, height = annotation["bbox"][2:]
        area = annotation.get("area", width * height)
        annotations.append({**annotation, "id": number, "area": area, "crowd": crowd, "iscrowd": ignored})
    return {
        "images": [dict(image) for image in document["images"]],
        "categories": [dict(category) for category in document["categories"]],
        "annotations": annotations,
    }


def _checked(document: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copies: the library writes into what it is given."""
    images = {image["id"] for image in document["images"]}
    categories = {category["id"] for category in document["categories"]}
    copies = []
    for detection in detections:
        numbers = [float(detection["score"]), *(float(v) for v in detection["bbox"])]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"a detection on image {detection['image_id']} is not finite: {numbers}")
        if detection["image_id"] not in images or detection["category_id"] not in categories:
            raise ValueError(f"no image {detection['image_id']} or category {detection['category_id']} in the data")
        names = ("image_id", "category_id")
        copies.append({**{n: int(detection[n]) for n in names}, "score": numbers[0], "bbox": numbers[1:]})
    return copies


def _mean(values: np.ndarray) -> float:
    """The mean of what there is."""
    there = values[values > -1]
    return float(there.mean()) if there.size else math.nan


def as_detections(found: Objects, image_id: int, ids: Mapping[int, int]) -> list[dict[str, Any]]:
    """Objects as detections that `score` takes. ids: class index -> category id; other classes are left out."""
    sizes = found.boxes[:, 2:] - found.boxes[:, :2]
    rows = zip(found.boxes[:, :2], sizes, found.scores, found.classes, strict=True)
    return [
        {"image_id": image_id, "category_id": ids[int(k)], "bbox": [*map(float, corner), *map(float, size)],
         "score": float(value)}
        for corner, size, value, k in rows
        if int(k) in ids
    ]  # fmt: skip


# --- a folder --------------------------------------------------------------------------------------------------------


def subset(data: Path, split: str, limit: int | None = None) -> dict[str, Any]:
    """The COCO document of `data`/`split`.json, cut to its first `limit` pictures."""
    document: dict[str, Any] = json.loads((data / f"{split}.json").read_text(encoding="utf-8"))
    if limit is not None:
        document["images"] = document["images"][:limit]
        kept = {image["id"] for image in document["images"]}
        document["annotations"] = [a for a in document["annotations"] if a["image_id"] in kept]
    return document


def matching(labels: str, document: Mapping[str, Any]) -> dict[int, int]:
    """Class index -> id of the data's category of the same name. ValueError: they have no name in common."""
    ids = {same(category["name"]): category["id"] for category in document["categories"]}
    found = {index: ids[same(c.name)] for index, c in categories(labels).items() if same(c.name) in ids}
    if not found:
        raise ValueError(f"the data has none of the classes of {labels!r}")
    return found


def detect(
    document: Mapping[str, Any], folder: Path, predict: Callable[[np.ndarray], Prediction], ids: Mapping[int, int]
) -> Iterator[list[dict[str, Any]]]:
    """The detections of every picture of a document, in turn: the 100 best at threshold 0."""
    for row in document["images"]:
        image = np.asarray(Image.open(folder / row["file_name"]).convert("RGB"))
        found = objects(predict(image), image.shape[:2], 0.0, ids.keys(), top=TOP)
        yield as_detections(found, row["id"], ids)


def _entry(arguments: argparse.Namespace) -> catalogue.Entry:
    if arguments.model is None:
        return catalogue.resolve("detection", arguments.weights, "detector")
    path = arguments.model / "model.safetensors" if arguments.model.is_dir() else arguments.model
    # An absolute path stays as it is when it is put below weights/.
    file = catalogue.File("model", str(path.resolve()))
    return catalogue.Entry(
        "model", "detection", "detector", path.name, "detr", arguments.preset, "bundled", "own", "", (file,)
    )  # fmt: skip


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipelines.detection.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with <split>.json and images/")
    parser.add_argument("--split", default="val")
    parser.add_argument("--weights", default="auto", help="an id of the catalogue")
    parser.add_argument("--model", type=Path, help="weights outside of the catalogue: a file, or its folder")
    parser.add_argument("--preset", default="voc", choices=sorted(PRESETS), help="the network of --model")
    parser.add_argument("--backend", default="local", choices=BACKENDS)
    parser.add_argument("--limit", type=int, help="only the first pictures")
    parser.add_argument("--json", type=Path, help="write the scores here")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> Scores:
    """Run the command and print the scores."""
    from . import pipeline

    arguments = _arguments(given)
    entry = _entry(arguments)
    config = PRESETS[entry.preset]
    document = subset(arguments.data, arguments.split, arguments.limit)
    ids = matching(config.labels, document)
    backend = pipeline.load(entry, arguments.backend)
    found: list[dict[str, Any]] = []
    start = time.perf_counter()

    def predict(image: np.ndarray) -> Prediction:
        return backend.predict([image], config.input, masks=False)[0]

    for number, detections in enumerate(detect(document, arguments.data / "images", predict, ids), start=1):
        found += detections
        if number % 50 == 0:
            print(f"{number} of {len(document['images'])} pictures", flush=True)
    seconds = (time.perf_counter() - start) / max(1, len(document["images"]))
    scores = score(document, found)
    facts = {"weights": entry.id, "backend": arguments.backend, "split": arguments.split, "seconds": round(seconds, 4)}
    _print(scores, facts)
    if arguments.json is not None:
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(scores).items()}
        rounded["classes"] = {name: round(value, 4) for name, value in scores.classes.items()}
        arguments.json.write_text(json.dumps(facts | rounded, indent=2) + "\n", encoding="utf-8")
    return scores


def _print(scores: Scores, facts: Mapping[str, Any]) -> None:
    for name, value in sorted(scores.classes.items(), key=lambda item: -item[1]):
        print(f"{value:7.3f}  {name}")
    print(
        f"{scores.images} pictures, {scores.objects} objects, {scores.ignored} ignored; {facts['seconds']} s a picture"
    )
    print(f"mAP@0.5 {scores.ap50:.4f}, mAP@[.5:.95] {scores.ap:.4f}, found at 0.5 {scores.found50:.4f}")


if __name__ == "__main__":
    main()
