"""Stand-ins for loaded models, so that the page and the pipelines are tested without weights."""

from types import SimpleNamespace

import numpy as np

from pipelines.face.contract import Detections


class StubDetector:
    """Finds as many faces as it is told, in a row, each with plausible points."""

    def __init__(self, count=1):
        self.count = count

    def detect(self, image, options):
        if self.count == 0:
            return Detections.none()
        corners = np.arange(self.count, dtype=np.float32)[:, None] * 50
        boxes = np.concatenate([corners, corners * 0, corners + 40, corners * 0 + 48], axis=1).astype(np.float32)
        points = np.array([[12, 18], [28, 18], [20, 27], [13, 36], [27, 36]], np.float32)
        landmarks = points[None] + corners[:, :, None] * np.array([1, 0], np.float32)
        return Detections(boxes, np.full(self.count, 0.99, np.float32), landmarks)


class StubEmbedder:
    """The mean colour of a chip, as a direction: equal pictures are equal, others differ."""

    side, dimension = 150, 128

    def embed(self, chips, flip_average=False):
        vectors = np.zeros((len(chips), self.dimension), np.float32)
        pixels = np.asarray(chips, np.float32).reshape(len(chips), self.side * self.side, 3)
        vectors[:, :3] = pixels.mean(axis=1) + 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-6)


def stub_load(count=1):
    """A replacement for pipelines.face.local.load."""

    def load(entry, device="cpu"):
        return StubDetector(count) if entry.role == "detector" else StubEmbedder()

    return load


def visitor(language="en"):
    """What a handler sees of a gr.Request."""
    return SimpleNamespace(headers={"accept-language": language}, session_hash="test")


def no_progress(*_, **__):
    """What a handler sees of a gr.Progress."""
