"""Sizes and constants of the face networks. No torch here: the page reads this before any model library is loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MTCNNConfig:
    """Zhang et al. 2016, "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks".

    Pixels. The three networks have one published size each, which mtcnn.py holds; these are what the cascade needs.
    """

    cell: int = 12  # side of P-Net's receptive field, pixels: one output cell looks at one such square
    stride: int = 2  # step between two cells, pixels
    rnet_input: int = 24
    onet_input: int = 48


@dataclass(frozen=True)
class InceptionResnetConfig:
    """Inception-ResNet v1 (Szegedy et al. 2016) as facenet trains it: 160 px in, 512 numbers out."""

    input_side: int = 160
    margin: int = 0  # pixels of the chip that lie outside the detector's box
    embedding: int = 512
    classes: int | None = None  # width of the training head in the published files: 8631 (VGGFace2), 10575 (CASIA)
    blocks: tuple[int, int, int] = (5, 10, 5)  # repeats of block35, block17, block8


@dataclass(frozen=True)
class DlibResnetConfig:
    """dlib's face descriptor: a ResNet-34 with fewer layers and half the filters, 150 px in, 128 numbers out."""

    input_side: int = 150
    embedding: int = 128
    mean: tuple[float, float, float] = (122.782, 117.001, 104.298)  # RGB, of dlib's training pictures
    scale: float = 256.0


PRESETS: dict[str, MTCNNConfig | InceptionResnetConfig | DlibResnetConfig] = {
    "mtcnn": MTCNNConfig(),
    "dlib": DlibResnetConfig(),
    "vggface2": InceptionResnetConfig(classes=8631),
    "casia-webface": InceptionResnetConfig(classes=10575),
    "tiny": InceptionResnetConfig(classes=7, blocks=(1, 1, 1)),
}


@dataclass(frozen=True)
class CascadeOptions:
    """How MTCNN's three stages are run. Defaults are the paper's, as facenet-pytorch has them.

    thresholds: least face probability that survives P-Net, R-Net and O-Net, each in [0, 1].
    min_face: side in pixels of the smallest face that is searched for.
    factor: ratio between two levels of the picture pyramid.
    nms_level, nms: overlap above which the weaker of two candidates goes, within a pyramid level and across them.
    """

    thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)
    min_face: int = 20
    factor: float = 0.709
    nms_level: float = 0.5
    nms: tuple[float, float, float] = (0.7, 0.7, 0.7)
