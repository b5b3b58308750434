"""transformers' DETR behind the contract: `load` is what the pipeline calls for backend "reference".

The library prepares the picture with its own processor and runs its own network over the same file as ours. It is
imported when something of it is loaded, so that the demo runs without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.common.catalogue import Entry
from pipelines.common.checkpoint import paths, read
from pipelines.common.errors import UserError
from pipelines.common.quiet import quiet

from .config import PRESETS, DeformableDetrConfig, DetrConfig, InputSize, NetworkConfig, ResNetConfig, scoring
from .contract import Ablation, Precision, Prediction, Trace
from .weights import layout_of

if TYPE_CHECKING:
    import torch

NOTHING = Ablation()
TIMM = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101"}  # by blocks in a stage


def load(entry: Entry, device: str | torch.device = "cpu") -> ReferenceDetector:
    """Backend over one checkpoint of the catalogue.

    UserError: the library is not installed or cannot read this layout; a file is missing, damaged or another's.
    """
    library = _library()
    config, path = PRESETS[entry.preset], paths(entry)["model"]
    state = read(path)
    if layout_of(state) != "transformers":
        raise UserError(f"transformers cannot read the layout of {path.name}; choose local.")
    if isinstance(config, DeformableDetrConfig):
        kind, processor = library.DeformableDetrForObjectDetection, library.DeformableDetrImageProcessor
    else:
        kind = library.DetrForSegmentation if config.panoptic else library.DetrForObjectDetection
        processor = library.DetrImageProcessor
    network = _network(kind, library_config(config, path, state), state, path)
    return ReferenceDetector(network.to(device).eval(), processor(), config, device)


def _library() -> Any:
    """The module transformers, whose types are not looked into. UserError: it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise UserError("transformers is not installed here; choose local.") from error
    return transformers


def _network(kind: Any, sizes: Any, state: Mapping[str, Any], path: Path) -> Any:
    """The library's network in float32 with every tensor of the file in it. UserError: they do not fit."""
    import torch

    state = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    try:
        with quiet(_library().utils.logging):
            network, report = kind.from_pretrained(
                None, config=sizes, state_dict=state, dtype=torch.float32, output_loading_info=True
            )
    except (RuntimeError, ValueError, ImportError) as error:
        raise UserError(f"transformers cannot load {path.name}; choose local.") from error
    wrong = sum(len(report[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    if wrong:  # it would go on with random numbers in their place
        raise UserError(f"{path.name} does not hold the network that is asked for: {wrong} keys do not fit.")
    return network


def library_config(config: NetworkConfig, path: Path, state: Mapping[str, Any]) -> Any:
    """The library's configuration: of the bundled network its config.json, of DETR's made from ours.

    state: the file's tensors by name, which tell for which of the library's two backbones they are. A published DETR is
    so read from its weights alone, the one file that we fetch. UserError: the library has no such network.
    """
    if isinstance(config, DeformableDetrConfig):
        beside = path.with_name("config.json")
        if not beside.is_file():
            raise UserError(f"There is no config.json beside {path.name}, which transformers needs; choose local.")
        return _library().DeformableDetrConfig.from_pretrained(beside)
    native = any(".embedder.embedder." in key for key in state)
    return _library().DetrConfig(
        backbone_config=_native(config.backbone) if native else _timm(config.backbone), d_model=config.width,
        encoder_layers=config.encoder_layers, decoder_layers=config.decoder_layers,
        encoder_attention_heads=config.heads, decoder_attention_heads=config.heads,
        encoder_ffn_dim=config.feedforward, decoder_ffn_dim=config.feedforward,
        num_queries=config.queries, num_labels=config.classes,
    )  # fmt: skip


def _native(backbone: ResNetConfig) -> Any:
    if backbone.dilation:
        raise UserError("transformers dilates only backbones of timm; choose local.")
    return _library().ResNetConfig(
        embedding_size=backbone.stem, hidden_sizes=list(backbone.widths), depths=list(backbone.depths),
        layer_type="bottleneck" if backbone.bottleneck else "basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


def _timm(backbone: ResNetConfig) -> dict[str, Any]:
    if backbone.depths not in TIMM:
        raise UserError("timm has no backbone of these sizes; choose local.")
    sizes = {
        "model_type": "timm_backbone", "backbone": TIMM[backbone.depths], "num_channels": 3, "features_only": True,
        "use_pretrained_backbone": False, "out_indices": [1, 2, 3, 4],
    }  # fmt: skip
    return sizes | {"output_stride": 16} if backbone.dilation else sizes


class ReferenceDetector:
    """The library's network and processor. Keeps nothing of a picture."""

    def __init__(self, network: Any, processor: Any, config: NetworkConfig, device: str | torch.device = "cpu") -> None:
        self.config, self.device = config, device
        self._network, self._processor = network, processor

    def predict(
        self, images: Sequence[np.ndarray], size: InputSize, masks: bool = True, precision: Precision = "float32",
        ablation: Ablation = NOTHING,
    ) -> list[Prediction]:  # fmt: skip
        """What the library's network says of each (H, W, 3) uint8 RGB picture, one at a time as ours does.

        UserError: an ablation or reduced precision is asked for, or the library fails on a picture.
        """
        if not ablation.nothing:
            raise UserError("Parts can be taken out of our own networks only; choose local.")
        if precision != "float32":
            raise UserError("The reference runs in float32; choose local for reduced precision.")
        return [self._one(image, size, masks) for image in images]

    def _one(self, image: np.ndarray, size: InputSize, masks: bool) -> Prediction:
        import torch

        network = self._network
        if isinstance(self.config, DetrConfig) and self.config.panoptic and not masks:
            network = network.detr  # the same network without the mask head
        try:
            batch = self._processor(
                images=image, size={"shortest_edge": size.shortest, "longest_edge": size.longest},
                input_data_format="channels_last", return_tensors="pt",
            ).to(self.device)  # fmt: skip
            with torch.inference_mode():
                output = network(pixel_values=batch["pixel_values"], pixel_mask=batch["pixel_mask"])
        except (RuntimeError, ValueError) as error:
            raise UserError("transformers fails on this picture; choose local, which answers for it.") from error
        shapes = output.pred_masks[0].cpu().numpy() if "pred_masks" in output else None
        logits, boxes = output.logits[0].cpu().numpy(), output.pred_boxes[0].cpu().numpy()
        return Prediction(logits, boxes, scoring(self.config), shapes)

    def trace(self, image: np.ndarray, size: InputSize, ablation: Ablation = NOTHING) -> Trace:
        """UserError: only our own networks are open to look inside."""
        raise UserError("Only our own networks can be looked into; choose local.")
