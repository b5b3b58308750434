"""VideoMAE of transformers behind the contract: `load` is what the pipeline calls for backend "reference".

Another model than ours, with other classes: it looks at the pictures themselves, sixteen of them spread over the last
two seconds (Tong et al., NeurIPS 2022), and was trained on Kinetics-400. It tells what is going on in that window and
foretells nothing. The library is imported when something of it is loaded.

Letters: C classes, S side of a picture in pixels.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from pipelines.common.catalogue import Entry
from pipelines.common.checkpoint import paths
from pipelines.common.errors import UserError
from pipelines.common.quiet import quiet

from .contract import Answer

if TYPE_CHECKING:
    import torch

RATE = 7.5  # pictures a second: every fourth of 30, as it was trained
STRIDE = 1.0  # seconds between two answers
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as the checkpoint was trained


def load(entry: Entry, device: str | torch.device = "cpu") -> ReferenceAction:
    """Backend over one checkpoint of the catalogue: a folder with config.json and model.safetensors.

    UserError: the library is not installed; a file is missing, damaged or another's.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError("transformers is not installed here; choose local.") from error
    found = paths(entry)
    network = _network(transformers, found["config"], found["model"])
    return ReferenceAction(network.to(device).eval(), device)


def _network(library: Any, config: Path, model: Path) -> Any:
    """The library's network in float32 with every tensor of the file in it. UserError: they do not fit."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        sizes = library.VideoMAEConfig.from_pretrained(config)
        with quiet(library.utils.logging):
            network, report = library.VideoMAEForVideoClassification.from_pretrained(
                None, config=sizes, state_dict=load_file(model), dtype=torch.float32, output_loading_info=True
            )
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise UserError(f"transformers cannot load {model.name}; fetch it again, or choose local.") from error
    wrong = sum(len(report[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    if wrong:  # it would go on with random numbers in their place
        raise UserError(f"{model.name} does not hold the network that is asked for: {wrong} keys do not fit.")
    return network


class ReferenceAction:
    """The library's network. Keeps nothing of a stream: see `open`. labels: C names; Kinetics has no background, so
    the first name, which nobody means, is put before them."""

    def __init__(self, network: Any, device: str | torch.device = "cpu") -> None:
        self.network, self.device = network, str(device)
        names = network.config.id2label
        self.labels = ("background", *(str(names[k]) for k in range(len(names))))

    def open(self) -> Window:
        """The pictures of a new stream."""
        return Window(self.network.config.num_frames, self.network.config.image_size)

    def answer(self, clip: np.ndarray) -> Answer:
        """(frames, S, S, 3) uint8 RGB, the newest last -> probabilities (1 + C,), no forecast."""
        import torch

        pixels = torch.from_numpy((clip.astype(np.float32) / 255 - MEAN) / DEVIATION).float()
        with torch.inference_mode():
            logits = self.network(pixel_values=pixels.permute(0, 3, 1, 2)[None].to(self.device)).logits[0]
        found = np.concatenate([[0.0], logits.softmax(-1).cpu().numpy()]).astype(np.float32)
        return Answer(found, np.zeros((0, len(found)), np.float32))


class Window:
    """The pictures of one stream that the network looks at; belongs to one visitor."""

    def __init__(self, frames: int, side: int) -> None:
        self._side, self._pictures = side, deque[np.ndarray](maxlen=frames)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._pictures.clear()
        self._due, self._answer_due, self._new = 0.0, 0.0, False

    def push(self, frame: np.ndarray, now: float) -> np.ndarray | None:
        """(H, W, 3) uint8 RGB at a time in seconds -> the clip to look at, when one is due."""
        if not self._pictures:
            self._due, self._answer_due = now, now + STRIDE
        if now >= self._due:
            self._pictures.append(square(frame, self._side))
            self._due, self._new = max(self._due + 1 / RATE, now), True
        if now < self._answer_due:
            return None
        self._answer_due = max(self._answer_due + STRIDE, now)
        return self._clip()

    def finish(self) -> np.ndarray | None:
        """The clip at the end, None if nothing was seen since the last one."""
        return self._clip() if self._new else None

    def _clip(self) -> np.ndarray:
        """At the beginning the first picture stands for those that are not there."""
        self._new = False
        missing = (self._pictures.maxlen or 0) - len(self._pictures)
        return np.stack([self._pictures[0]] * missing + list(self._pictures))


def square(frame: np.ndarray, side: int) -> np.ndarray:
    """The middle of a picture at the size that the network sees: (side, side, 3) uint8."""
    height, width = frame.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    part = frame[top : top + edge, left : left + edge]
    kind = cv2.INTER_AREA if edge > side else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(part), (side, side), interpolation=kind)
