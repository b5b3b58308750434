"""Second stage of training: the upper half of the backbone and the transformer, from the kept features.

Set prediction as in the paper, with three helps that leave nothing behind in the network that is used: several groups
of queries (Chen et al. 2023, "Group DETR"), a dense head on the encoder (Zong et al. 2023, "Co-DETR"), and scores that
learn their box's overlap (Zhang et al. 2021, "VarifocalNet").

Shapes: B batch, S cells and C channels of the kept features, V views.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.common.training import Machine, Trainer, TrainOptions, pick_machine

from . import data
from .config import DeformableDetrConfig, loss_weights
from .contract import Prediction
from .criterion import Target, set_loss
from .deformable import DeformableDetr
from .dense_head import DenseHead, dense_loss
from .evaluate import as_detections, score
from .output import Output
from .postprocess import objects
from .train_features import FROZEN, STRIDE, fold, imagenet_backbone, lower, normalised

GROUPS = 3
BACKBONE_FROM = 2000  # steps before which the upper backbone rests: what reads it is still random
OPTIONS = TrainOptions(
    learning_rate=1e-3, batch=16, weight_decay=0.02, warmup=500, ema_decay=0.9995, ema_every=4, clip=1.0,
    check_every=1000, log_every=50,
)  # fmt: skip


class Learner(nn.Module):
    """The network with what only training needs."""

    def __init__(self, config: DeformableDetrConfig, groups: int = GROUPS):
        super().__init__()
        self.groups, self.resting, self.weights = groups, False, loss_weights(config)
        self.detr = DeformableDetr(config, groups)
        self.detr.backbone = fold(imagenet_backbone(config.backbone))
        for part in (self.detr.backbone.stem, *self.detr.backbone.stages[:FROZEN]):
            part.requires_grad_(False)
        self.dense = DenseHead(config.width, config.classes)

    def losses(self, kept: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """kept (B, C, h, w): the frozen stages' output."""
        with torch.set_grad_enabled(not self.resting):
            features = self.detr.backbone.resume(kept, FROZEN)
        memory = self.detr.encode(features)
        output = self.detr.decode(memory, self.groups)
        parts: dict[str, Tensor] = {}
        for logits, boxes in zip(output.logits.chunk(self.groups, 2), output.boxes.chunk(self.groups, 2), strict=True):
            for name, value in set_loss(Output(logits, boxes), targets, self.weights, "sigmoid").items():
                parts[name] = parts.get(name, 0.0) + value / self.groups
        cells, boxes, centres = self.dense(memory)
        parts["dense"] = dense_loss(cells, boxes, centres, targets)
        return {**parts, "loss": torch.stack(list(parts.values())).sum()}

    @torch.no_grad()
    def predict(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (B, Q, K) and boxes (B, Q, 4) of the last layer."""
        output = self.detr.decode(self.detr.encode(self.detr.backbone.resume(kept, FROZEN)))
        return output.logits[-1], output.boxes[-1]


class Views:
    """The kept features and targets of a run's folder."""

    def __init__(self, folder: Path):
        self.features = np.load(folder / "features.npy", mmap_mode="r")
        with np.load(folder / "targets.npz") as stored:
            self.tall, self.count = stored["tall"], int(stored["count"])
            order = np.argsort(stored["view"], kind="stable")
            self.boxes, self.classes = stored["boxes"][order], stored["classes"][order]
            self.starts = np.searchsorted(stored["view"][order], np.arange(len(self.tall) + 1))
        done = int((folder / "features.done").read_text())
        self.tall = self.tall[:done]
        self.by_shape = {tall: np.flatnonzero(self.tall == tall) for tall in (False, True)}

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tensor, list[Target]]:
        """`count` random views of one shape."""
        tall = bool(self.tall[rng.integers(len(self.tall))])
        rows = rng.choice(self.by_shape[tall], count, replace=False)
        return self.get(rows, tall)

    def get(self, rows: np.ndarray, tall: bool) -> tuple[Tensor, list[Target]]:
        """Features (B, C, h, w) float32, channels last in memory, and the targets."""
        high, wide = (side // STRIDE for side in (data.CANVAS[::-1] if tall else data.CANVAS))
        kept = torch.from_numpy(self.features[np.sort(rows)]).float().view(len(rows), high, wide, -1)
        targets = []
        for row in np.sort(rows):
            part = slice(self.starts[row], self.starts[row + 1])
            targets.append(Target(torch.from_numpy(self.classes[part]), torch.from_numpy(self.boxes[part])))
        return kept.permute(0, 3, 1, 2), targets


class Validation:
    """The held-out photos, their features kept in memory, and their truth in COCO format."""

    def __init__(self, folder: Path, learner: Learner, limit: int | None = None):
        self.truth = json.loads((folder / "val.json").read_text(encoding="utf-8"))
        photos, index = data.read_coco(folder, "val")
        self.category = {k: category for category, k in index.items()}
        self.batches: list[tuple[list[int], Tensor]] = []
        for tall in (False, True):
            shown = [(k, next(data.views(photo, 1, 0))[0]) for k, photo in enumerate(photos[:limit])]
            same = [(k, picture) for k, picture in shown if (picture.shape[0] > picture.shape[1]) == tall]
            for start in range(0, len(same), 16):
                rows, pictures = zip(*same[start : start + 16], strict=True)
                pixels = normalised(np.stack(pictures))
                self.batches.append((list(rows), lower(learner.detr.backbone, pixels).half()))

    def detections(self, learner: Learner) -> list[dict]:
        """The best detections of every photo as COCO results."""
        found: list[dict] = []
        for rows, kept in self.batches:
            logits, boxes = (x.numpy() for x in learner.predict(kept.float()))
            for b, row in enumerate(rows):
                image = self.truth["images"][row]
                best = objects(Prediction(logits[b], boxes[b], "sigmoid"), (image["height"], image["width"]), 0.0)
                found += as_detections(best, image["id"], self.category)
        return found


def run(source: Path, folder: Path, config: DeformableDetrConfig, options: TrainOptions) -> None:
    """Trains, or goes on training, the network in `folder`, whose features come from the photos in `source`."""
    torch.manual_seed(0)
    machine: Machine = pick_machine()
    learner = Learner(config).to(memory_format=torch.channels_last)
    views, validation = Views(folder), Validation(source, learner)
    columns = ("loss", "classification", "l1", "giou", "dense", "ap50", "ap")
    trainer = Trainer(folder, "network", learner, options, machine, columns, scale=_scale, adam=_adam)

    def loss(rng: np.random.Generator, count: int) -> dict[str, Tensor]:
        learner.resting = trainer.step < BACKBONE_FROM
        return learner.losses(*views.draw(rng, count))

    def check(step: int) -> dict[str, float]:
        scores = score(validation.truth, validation.detections(learner))
        return {"ap50": scores.ap50, "ap": scores.ap}

    trainer.run(loss, check)


def _scale(name: str) -> float:
    """Trained layers move slowly; so do the places that attention looks at, as in Deformable DETR."""
    return 0.1 if ".backbone." in name or ".offsets." in name or ".reference." in name else 1.0


def _adam(name: str) -> bool:
    """Muon is for hidden matrices that start at random."""
    last = (".backbone.", "queries", "level_positions", "reference", "class_head", "box_head.layers.2", ".offsets.",
            ".weights.", "dense.classes", "dense.distances")  # fmt: skip
    return any(part in name for part in last)
