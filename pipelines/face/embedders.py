"""Aligned chips -> embeddings of unit length: our networks, and the libraries that they are compared with.

Both classes have the same face: `load(entry, device)`, `entry`, `side`, `dimension`, `embed(chips, flip_average)`.

Shapes: n chips, S side of a chip, d numbers in an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from pipelines.common import checkpoint
from pipelines.common.catalogue import Entry
from pipelines.common.errors import UserError

from . import dlib_resnet, inception_resnet, weights
from .config import PRESETS, DlibResnetConfig, InceptionResnetConfig

BATCH = 32  # chips at once: 32 keep the activations of either network under 500 MB

Describe = Callable[[np.ndarray], np.ndarray]  # (n, S, S, 3) uint8 RGB, 1 <= n <= BATCH -> (n, d) float32, any length


class _Embedder:
    """What is the same for every implementation: checks, batches, mirror images, unit length."""

    backend: ClassVar[str]

    def __init__(self, entry: Entry, device: str | torch.device, describe: Describe) -> None:
        config = PRESETS[entry.preset]
        if not isinstance(config, (DlibResnetConfig, InceptionResnetConfig)):
            raise ValueError(f"{entry.id} is no embedder")
        self.entry, self.device = entry, device
        self.side, self.dimension = config.input_side, config.embedding
        self._describe = describe

    def embed(self, chips: np.ndarray | Sequence[np.ndarray], flip_average: bool = False) -> np.ndarray:
        """(n, S, S, 3) uint8 RGB aligned chips -> (n, d) float32 of unit length; n may be 0.

        flip_average: the direction of the sum of each chip's embedding and its mirror image's.
        ValueError: chips of another shape or type.
        """
        chips = np.asarray(chips)
        if len(chips) == 0:
            return np.zeros((0, self.dimension), np.float32)
        if chips.shape[1:] != (self.side, self.side, 3) or chips.dtype != np.uint8:
            raise ValueError(f"chips are (n, {self.side}, {self.side}, 3) uint8, not {chips.shape} {chips.dtype}")
        vectors = self._in_batches(chips)
        if flip_average:
            vectors = vectors + self._in_batches(chips[:, :, ::-1])
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.maximum(length, 1e-12)

    def _in_batches(self, chips: np.ndarray) -> np.ndarray:
        parts = [self._describe(np.ascontiguousarray(chips[i : i + BATCH])) for i in range(0, len(chips), BATCH)]
        return np.concatenate(parts).astype(np.float32, copy=False)


class LocalEmbedder(_Embedder):
    """The networks of this repository, in their folded form."""

    backend = "local"

    @classmethod
    def load(cls, entry: Entry, device: str | torch.device = "cpu") -> Self:
        """UserError: the weights are not here, damaged, or of another network."""
        network = weights.load(entry.preset, checkpoint.paths(entry)["model"]).to(device)
        if isinstance(network, dlib_resnet.DlibResnet):
            return cls(entry, device, _described_by(dlib_resnet.FoldedDlibResnet(network), dlib_resnet.prepare, device))
        folded = inception_resnet.FoldedInceptionResnetV1(network)
        return cls(entry, device, _described_by(folded, inception_resnet.prepare, device))


class ReferenceEmbedder(_Embedder):
    """facenet-pytorch's InceptionResnetV1, or dlib itself, over the same file as ours."""

    backend = "reference"

    @classmethod
    def load(cls, entry: Entry, device: str | torch.device = "cpu") -> Self:
        """UserError: the weights are not here or damaged, or the library is not installed."""
        path = checkpoint.paths(entry)["model"]
        if isinstance(PRESETS[entry.preset], DlibResnetConfig):
            return cls(entry, "cpu", _dlib(path))  # dlib's wheel is built without CUDA
        return cls(entry, device, _facenet(path, device))


def _described_by(
    network: Callable[[Tensor], Tensor], prepare: Callable[[Tensor], Tensor], device: str | torch.device
) -> Describe:
    def describe(chips: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            pixels = torch.from_numpy(chips).to(device).permute(0, 3, 1, 2)  # (n, 3, S, S), channels_last in memory
            return network(prepare(pixels)).cpu().numpy()

    return describe


def _facenet(path: Path, device: str | torch.device) -> Describe:
    try:
        from facenet_pytorch import InceptionResnetV1, fixed_image_standardization
    except ImportError as error:
        raise UserError(
            "The reference implementation is facenet-pytorch: pip install facenet-pytorch==2.5.3."
        ) from error
    state = checkpoint.read(path)
    # With a head, the class computes logits unless `classify` is off again after the head was made.
    network = InceptionResnetV1(classify=True, num_classes=len(state["logits.bias"]))
    network.classify = False
    network.load_state_dict(state)

    def standardise(pixels: Tensor) -> Tensor:
        return fixed_image_standardization(pixels.float()).contiguous()

    return _described_by(network.eval().to(device), standardise, device)


def _dlib(path: Path) -> Describe:
    try:
        import dlib
    except ImportError as error:
        raise UserError(
            "The reference implementation of these weights is dlib, which is not installed: pip install dlib-bin."
        ) from error
    network: Any = dlib.face_recognition_model_v1(str(path))

    def describe(chips: np.ndarray) -> np.ndarray:
        return np.array([network.compute_face_descriptor(chip) for chip in chips], np.float32)

    return describe
