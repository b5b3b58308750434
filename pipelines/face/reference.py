"""The published libraries behind the contract: `load` is what the pipeline calls for backend "reference".

Each library is imported when something of it is loaded, so that the demo runs without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.common.catalogue import Entry
from pipelines.common.checkpoint import paths, read
from pipelines.common.errors import UserError

from .config import CascadeOptions
from .contract import Detections

if TYPE_CHECKING:
    import torch

    from .embedders import ReferenceEmbedder


def load(entry: Entry, device: str | torch.device = "cpu") -> ReferenceDetector | ReferenceEmbedder:
    """Backend over one checkpoint of the catalogue.

    UserError: the library is not installed, or a file is missing or damaged. ValueError: an unknown architecture.
    """
    if entry.architecture == "mtcnn":
        return ReferenceDetector.load(entry, device)
    if entry.architecture in ("dlib_resnet", "inception_resnet_v1"):
        from .embedders import ReferenceEmbedder

        return ReferenceEmbedder.load(entry, device)
    raise ValueError(f"no reference library for {entry.architecture!r}")


class ReferenceDetector:
    """facenet-pytorch's MTCNN."""

    def __init__(self, library: Any, device: str | torch.device) -> None:
        self._library = library  # the module facenet_pytorch
        self._device = device
        self._networks: dict[str, Any] = {}

    @staticmethod
    def load(entry: Entry, device: str | torch.device = "cpu") -> ReferenceDetector:
        """The library's three networks with the entry's weights, the same files that ours read."""
        try:
            import facenet_pytorch
        except ImportError as error:
            raise UserError("facenet-pytorch is not installed here; choose local.") from error
        files = paths(entry)
        detector = ReferenceDetector(facenet_pytorch, device)
        for name, kind in (("pnet", "PNet"), ("rnet", "RNet"), ("onet", "ONet")):
            network = getattr(facenet_pytorch.models.mtcnn, kind)(pretrained=False)
            network.load_state_dict(read(files[name]), strict=True)
            detector._networks[name] = network.to(device).eval()
        return detector

    def detect(self, image: np.ndarray, options: CascadeOptions | None = None) -> Detections:
        """Faces of a (H, W, 3) uint8 RGB picture, largest first.

        UserError: the library has no way to do it, or fails on this picture (ours answers for both).
        """
        options = options or CascadeOptions()
        plain = CascadeOptions()
        if (options.nms_level, options.nms) != (plain.nms_level, plain.nms):
            raise UserError("facenet-pytorch's overlap limits are fixed; choose local to change them.")
        cascade = self._cascade(options)
        try:
            boxes, scores, landmarks = cascade.detect(image, landmarks=True)
        except (RuntimeError, IndexError, ValueError) as error:
            # It concatenates an empty list where a picture is smaller than the smallest face, and counts boxes wrongly
            # once one lies outside the picture.
            raise UserError("facenet-pytorch fails on this picture; choose local, which answers for it.") from error
        if boxes is None:
            return Detections.none()
        return Detections(*(np.asarray(array.tolist(), np.float32) for array in (boxes, scores, landmarks)))

    def _cascade(self, options: CascadeOptions) -> Any:
        """The library's object with these options, over the shared networks: its constructor would read them again."""
        from torch import nn

        cascade = self._library.MTCNN.__new__(self._library.MTCNN)
        nn.Module.__init__(cascade)
        cascade.min_face_size, cascade.factor = options.min_face, options.factor
        cascade.thresholds, cascade.select_largest = list(options.thresholds), True
        cascade.device = self._device
        for name, network in self._networks.items():
            setattr(cascade, name, network)
        return cascade.eval()
