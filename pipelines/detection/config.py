"""Sizes and constants of the detection networks. No torch here: the page reads this before any model library is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ResNetConfig:
    """He et al. 2015, with frozen batch norm as a detector uses it.

    depths: blocks a stage. widths: channels that leave each stage. bottleneck: 1-3-1 blocks (50 layers and more) or two
    3x3 (18, 34). dilation: the last stage keeps stride 16 and spreads its 3x3 kernels instead ("DC5").
    """

    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    widths: tuple[int, int, int, int] = (256, 512, 1024, 2048)
    stem: int = 64
    bottleneck: bool = True
    dilation: bool = False


@dataclass(frozen=True)
class MobileNetV2Config:
    """Sandler et al. 2018, width 1.0.

    stages: (expansion, channels, repeats, stride) of the inverted residuals, in order. levels: indices of `stages`
    whose outputs the detector reads.
    """

    stem: int = 32
    stages: tuple[tuple[int, int, int, int], ...] = (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    )  # fmt: skip
    levels: tuple[int, ...] = (4, 6)  # strides 16 and 32


@dataclass(frozen=True)
class InputSize:
    """Shortest side and longest side in pixels: a picture is scaled to the first unless that would break the second."""

    shortest: int = 800
    longest: int = 1333


@dataclass(frozen=True)
class DetrConfig:
    """Carion et al. 2020, "End-to-End Object Detection with Transformers".

    classes: outputs of the class head without "no object", which comes last. COCO's ids have gaps, hence 91.
    panoptic: with the mask head.
    """

    backbone: ResNetConfig = field(default_factory=ResNetConfig)
    width: int = 256
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    feedforward: int = 2048
    queries: int = 100
    classes: int = 91
    panoptic: bool = False
    labels: str = "coco"  # assets/labels/<labels>.json
    input: InputSize = field(default_factory=InputSize)


@dataclass(frozen=True)
class DeformableDetrConfig:
    """Zhu et al. 2021, "Deformable DETR", one stage, with iterative box refinement.

    Each head looks at `points` places of every level instead of at the whole picture, which needs far less data to
    learn. The classes are scored one by one (sigmoid): there is no "no object". levels: feature maps, the backbone's,
    then ones made by convolutions of stride 2.
    """

    backbone: MobileNetV2Config = field(default_factory=MobileNetV2Config)
    width: int = 128
    heads: int = 4
    points: int = 4
    levels: int = 3
    encoder_layers: int = 1
    decoder_layers: int = 3
    feedforward: int = 512
    queries: int = 60
    classes: int = 20
    labels: str = "voc"
    input: InputSize = field(default_factory=lambda: InputSize(288, 384))


NetworkConfig = DetrConfig | DeformableDetrConfig
Scoring = Literal["softmax", "sigmoid"]


def scoring(config: NetworkConfig) -> Scoring:
    """How class logits become scores: over classes and "no object", or each class by itself."""
    return "softmax" if isinstance(config, DetrConfig) else "sigmoid"


_R50 = DetrConfig()
_TINY = DetrConfig(
    ResNetConfig(depths=(1, 1, 1, 1), widths=(16, 24, 32, 48), stem=8), 32, 4, 2, 3, 48, 7, 5, input=InputSize(96, 160)
)

PRESETS: dict[str, NetworkConfig] = {
    "voc": DeformableDetrConfig(),
    "detr-resnet-50": _R50,
    "detr-resnet-101": replace(_R50, backbone=ResNetConfig(depths=(3, 4, 23, 3))),
    "detr-resnet-50-dc5": replace(_R50, backbone=ResNetConfig(dilation=True)),
    "detr-resnet-50-panoptic": replace(_R50, classes=250, panoptic=True, labels="coco_panoptic"),
    "tiny": _TINY,
    "tiny-panoptic": replace(_TINY, panoptic=True),
    "tiny-deformable": DeformableDetrConfig(
        MobileNetV2Config(8, ((1, 8, 1, 2), (2, 8, 2, 2), (2, 16, 2, 2), (2, 24, 1, 2)), (2, 3)),
        width=32, heads=4, points=2, levels=3, encoder_layers=1, decoder_layers=2, feedforward=48, queries=7, classes=5,
        input=InputSize(96, 160),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts of the matching cost and of the loss, as the DETR paper sets them (section A.4)."""

    classification: float = 1.0
    l1: float = 5.0
    giou: float = 2.0
    no_object: float = 0.1  # weight of the "no object" class in the cross-entropy (softmax only)


def loss_weights(config: NetworkConfig) -> LossWeights:
    """The weights that these networks are matched and trained with."""
    return LossWeights() if isinstance(config, DetrConfig) else LossWeights(classification=2.0)
