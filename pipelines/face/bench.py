"""python -m pipelines.face.bench: ours against the published libraries, same weights and input, in turn."""

from __future__ import annotations

import argparse
from functools import partial

import cv2
import numpy as np
from PIL import Image

from pipelines.common import bench, catalogue

from . import local, reference
from .contract import Detections

PORTRAITS = ("astronaut", "hopper", "obama2", "biden", "obama")  # one face each (a second, doubtful one in the last)
# Width, height and number of portraits of each picture.
PICTURES = (
    (640, 480, 1), (640, 480, 3), (640, 480, 6), (960, 720, 1), (960, 720, 4), (1280, 720, 1), (1280, 720, 3),
    (1280, 720, 6), (1600, 1200, 2), (1920, 1080, 1), (1920, 1080, 3), (1920, 1080, 6),
)  # fmt: skip


def portraits() -> list[np.ndarray]:
    """The example photos with one face, (H, W, 3) uint8 RGB."""
    folder = catalogue.ROOT / "assets" / "examples" / "face"
    return [np.asarray(Image.open(folder / f"{name}.jpg").convert("RGB")) for name in PORTRAITS]


def collage(pictures: list[np.ndarray], width: int, height: int, count: int) -> np.ndarray:
    """`count` of the pictures side by side in at most two rows, each as large as its place allows, edges drawn out."""
    rows = 1 if count <= 3 else 2
    columns = -(-count // rows)
    out = np.zeros((height, width, 3), np.uint8)
    for k in range(rows * columns):
        row, column = divmod(k, columns)
        top, bottom = row * height // rows, (row + 1) * height // rows
        left, right = column * width // columns, (column + 1) * width // columns
        if k < count:
            out[top:bottom, left:right] = _fitted(pictures[k % len(pictures)], right - left, bottom - top)
    return out


def _fitted(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    scale = min(width / picture.shape[1], height / picture.shape[0])
    size = (min(width, round(picture.shape[1] * scale)), min(height, round(picture.shape[0] * scale)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    x, y = (width - size[0]) // 2, (height - size[1]) // 2
    return cv2.copyMakeBorder(small, y, height - size[1] - y, x, width - size[0] - x, cv2.BORDER_REPLICATE)


def detection_rows(rounds: int = 15, pictures: tuple[tuple[int, int, int], ...] = PICTURES) -> list[bench.Row]:
    """MTCNN against facenet-pytorch's on composed photos, with the largest differences as checks."""
    entry = catalogue.resolve("face", "mtcnn", "detector")
    ours, theirs = local.LocalDetector.load(entry), reference.ReferenceDetector.load(entry)
    examples = portraits()
    rows = []
    for width, height, count in pictures:
        image = collage(examples, width, height, count)
        checks = _differences(ours.detect(image), theirs.detect(image))
        times = bench.interleave(partial(ours.detect, image), partial(theirs.detect, image), rounds)
        name, setup = f"detect {width}x{height}, {count} portraits", bench.setup("facenet-pytorch")
        rows.append(bench.Row(name, *times, checks, bench.peak_mb(), setup))
    return rows


def _differences(a: Detections, b: Detections) -> dict[str, float]:
    """Number of faces and the largest differences. AssertionError: not the same faces, so that times mean nothing."""
    if len(a) != len(b):
        raise AssertionError(f"{len(a)} faces against {len(b)}")
    pairs = {"box": (a.boxes, b.boxes), "landmark": (a.landmarks, b.landmarks), "score": (a.scores, b.scores)}
    return {"found": len(a), **{name: float(np.abs(x - y).max(initial=0)) for name, (x, y) in pairs.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["detection", "embedding"])
    arguments = parser.parse_args()
    rows = []
    with bench.torch_threads(arguments.threads):
        if arguments.only != "embedding":
            rows += detection_rows(arguments.rounds)
        if arguments.only != "detection":
            from .bench_embedders import embedding_rows

            rows += embedding_rows(arguments.rounds)
    print(bench.table(rows))
    for row in rows:
        print(row.json())


if __name__ == "__main__":
    main()
