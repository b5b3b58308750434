"""Our networks behind the contract: `load` is what the pipeline calls for backend "local"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipelines.common.catalogue import Entry
from pipelines.common.checkpoint import paths, read

from .cascade import detect
from .config import CascadeOptions
from .contract import Detections
from .mtcnn import MTCNN
from .trace import CascadeTrace, trace

if TYPE_CHECKING:
    from .embedders import LocalEmbedder


def load(entry: Entry, device: str | torch.device = "cpu") -> LocalDetector | LocalEmbedder:
    """Backend over one checkpoint of the catalogue.

    UserError: a file is missing, damaged or holds more than tensors. ValueError: no network of this architecture here.
    """
    if entry.architecture == "mtcnn":
        return LocalDetector.load(entry, device)
    if entry.architecture in ("dlib_resnet", "inception_resnet_v1"):
        from .embedders import LocalEmbedder

        return LocalEmbedder.load(entry, device)
    raise ValueError(f"no face network called {entry.architecture!r}")


class LocalDetector:
    """MTCNN, ready to run. Keeps nothing of a picture, so visitors may share one."""

    def __init__(self, networks: MTCNN) -> None:
        self.networks = networks

    @staticmethod
    def load(entry: Entry, device: str | torch.device = "cpu") -> LocalDetector:
        """Read the three state dicts of an "mtcnn" entry; every key must fit."""
        files = paths(entry)
        with torch.device("meta"):
            networks = MTCNN()
        for name in ("pnet", "rnet", "onet"):
            state: dict[str, Any] = read(files[name])
            getattr(networks, name).load_state_dict(state, strict=True, assign=True)
        # Channels last: oneDNN's kernels for a few channels are several times faster in this order on CPUs.
        networks.to(device).to(memory_format=torch.channels_last)
        return LocalDetector(networks.eval().requires_grad_(False))

    def detect(self, image: np.ndarray, options: CascadeOptions | None = None) -> Detections:
        """Faces of a (H, W, 3) uint8 RGB picture, largest first."""
        return detect(self.networks, image, options)

    def trace(self, image: np.ndarray, options: CascadeOptions | None = None) -> CascadeTrace:
        """The same faces with everything that led to them."""
        return trace(self.networks, image, options)
