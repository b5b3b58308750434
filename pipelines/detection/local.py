"""Our networks behind the contract: `load` is what the pipeline calls for backend "local"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.common.catalogue import Entry
from pipelines.common.checkpoint import paths

from . import forms
from .config import PRESETS, DetrConfig, InputSize, NetworkConfig, scoring
from .contract import Ablation, Precision, Prediction, Trace

if TYPE_CHECKING:
    import torch

    from .output import Output, Record

NOTHING = Ablation()


def load(entry: Entry, device: str | torch.device = "cpu") -> LocalDetector:
    """Backend over one checkpoint of the catalogue.

    UserError: a file is missing, damaged, unsafe to read or of another network.
    """
    from . import weights

    return LocalDetector(weights.load(entry.preset, paths(entry)["model"]), PRESETS[entry.preset], device)


class LocalDetector:
    """One network in its fast form, in each precision that was asked for so far. Keeps nothing of a picture."""

    def __init__(self, network: Any, config: NetworkConfig, device: str | torch.device = "cpu") -> None:
        from .fused import fuse

        self.config, self.device = config, device
        self._networks: dict[str, Any] = {"float32": fuse(network.to(device))}

    def network(self, precision: Precision = "float32") -> Any:
        """The network in a precision: see `forms.device`."""
        dtype = forms.device(precision, self.config).dtype
        if dtype not in self._networks:
            self._networks[dtype] = forms.reduced(self._networks["float32"], dtype)
        return self._networks[dtype]

    def predict(
        self, images: Sequence[np.ndarray], size: InputSize, masks: bool = True, precision: Precision = "float32",
        ablation: Ablation = NOTHING,
    ) -> list[Prediction]:  # fmt: skip
        """What the network says of each (H, W, 3) uint8 RGB picture.

        One picture at a time: on one canvas the padding's biases would reach into the smaller ones, so that an answer
        would depend on its neighbours; masks cover just the picture; and a processor gains nothing from a batch.
        """
        network, found = self.network(precision), []
        for image in images:
            output, _ = self._forward(network, image, size, masks, ablation)
            shapes = None if output.masks is None else _array(output.masks[0])
            logits, boxes = _array(output.logits[-1, 0]), _array(output.boxes[-1, 0])
            found.append(Prediction(logits, boxes, scoring(self.config), shapes))
        return found

    def trace(self, image: np.ndarray, size: InputSize, ablation: Ablation = NOTHING) -> Trace:
        """Every decoder layer's answers and attention maps on one picture, in float32.

        A kind of attention that the ablation skips leaves an empty array.
        """
        import torch

        from .output import Record

        record = Record()
        output, seen = self._forward(self.network(), image, size, False, ablation, record)
        self_attention, cross_attention = (
            _array(torch.stack([layer[0] for layer in maps])) if maps else np.zeros((0,), np.float32)
            for maps in (record.self_attention, record.cross_attention)
        )
        logits, boxes = _array(output.logits[:, 0]), _array(output.boxes[:, 0])
        return Trace(logits, boxes, self_attention, cross_attention, scoring(self.config), seen)

    def _forward(
        self, network: Any, image: np.ndarray, size: InputSize, masks: bool, ablation: Ablation,
        record: Record | None = None,
    ) -> tuple[Output, tuple[int, int]]:  # fmt: skip
        """The network's output on a batch of one, and the (height, width) that it saw."""
        import torch

        from .preprocess import prepare

        batch = prepare([image], size)
        options = {"masks": masks} if isinstance(self.config, DetrConfig) else {}
        with torch.inference_mode():
            pixels = batch.pixels.to(self.device, next(network.parameters()).dtype)
            output = network(pixels, None, ablation=ablation, record=record, **options)
        return output, batch.sizes[0]


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
