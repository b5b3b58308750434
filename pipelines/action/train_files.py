"""The files of a training's folder: recordings, what is kept out of them, weights."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .config import BACKGROUND, CLASSES, Brain, BrainConfig, preset
from .features import WIDTH
from .skeletons import Body, Film, bodies, films, fold

PEOPLE = (3, 6)  # kept out
FOLDS = 4
KEPT = 2  # the part of the films that is kept out; the one that has some of every class
# None: what a draw varies keeps the networks from learning recordings by heart, and a step takes half the time.
DROPOUT = 0.0
# Nats: people at a desk stand up a fifth as often. Chosen on kept-out streams of somebody who sits and reads, where it
# leaves a third of the false actions and costs the composed streams nothing.
RISING = 1.5
TRAINING_ONLY = ("chunk_head.", "movement_head.", "now_head.")  # parameters of `train.Taught` that no network has
Recordings = tuple[list[Body], list[Film]]


def configured(brain: Brain) -> BrainConfig:
    """The bundled configuration of a brain, at the width of our features."""
    return replace(preset("bundled", brain), in_features=WIDTH, dropout=DROPOUT)


def stage(brain: Brain, seed: int, everything: bool) -> str:
    """The name of a training's files: `oadtr-0`, and `oadtr-0-everything` of the one that nothing is kept out of."""
    return f"{brain}-{seed}" + ("-everything" if everything else "")


def prepare(data: Path, folder: Path) -> None:
    """Writes recordings.npz into `folder`, and prints how much of each class there is and is kept out."""
    folder.mkdir(parents=True, exist_ok=True)
    people, clips = bodies(data), films(data)
    arrays: dict[str, Any] = {f"body{k:04d}": each.points for k, each in enumerate(people)}
    arrays["bodies"] = np.array([(b.label, b.action, b.subject, b.start, b.end) for b in people])
    arrays |= {f"film{k:04d}": each.joints for k, each in enumerate(clips)}
    arrays["labels"], arrays["names"] = np.array([c.label for c in clips]), np.array([c.name for c in clips])
    np.savez_compressed(folder / "recordings.npz", **arrays)
    for number, name in enumerate(CLASSES):
        own = [b for b in people if b.label == number]
        filmed = [c for c in clips if c.label == number]
        out = sum(b.subject in PEOPLE for b in own), sum(fold(c.name, FOLDS) == KEPT for c in filmed)
        print(f"{name}: {len(own)} sequences ({out[0]} kept out), {len(filmed)} films ({out[1]} kept out)")


def load(folder: Path) -> Recordings:
    """All that `prepare` wrote."""
    with np.load(folder / "recordings.npz") as file:
        people = [Body(file[f"body{k:04d}"], *map(int, row)) for k, row in enumerate(file["bodies"])]
        pairs = zip(file["labels"], file["names"], strict=True)
        clips = [Film(file[f"film{k:04d}"], int(label), str(name)) for k, (label, name) in enumerate(pairs)]
    return people, clips


def split(folder: Path) -> tuple[Recordings, Recordings]:
    """(what is trained on, what is kept out)."""
    people, clips = load(folder)
    inside = [b for b in people if b.subject not in PEOPLE], [c for c in clips if fold(c.name, FOLDS) != KEPT]
    outside = [b for b in people if b.subject in PEOPLE], [c for c in clips if fold(c.name, FOLDS) == KEPT]
    return inside, outside


def keep(path: Path, network: nn.Module, step: int) -> None:
    """Writes weights beside the file, then renames."""
    temporary = path.with_suffix(".tmp")
    torch.save(
        {"model": {name: value.detach().cpu() for name, value in network.state_dict().items()}, "step": step}, temporary
    )
    os.replace(temporary, path)


def restore(path: Path, network: nn.Module) -> int:
    """Averaged weights of a training's checkpoint, or those of `keep`, into the network -> the step they are of."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    weights = saved.get("ema", saved["model"])
    # A checkpoint of the training has the network beside the heads that only training has.
    own = {
        name.removeprefix("network."): value for name, value in weights.items() if not name.startswith(TRAINING_ONLY)
    }
    network.load_state_dict(own)
    return int(saved["step"])


@torch.no_grad()
def restore_shares(network: nn.Module, calm: float) -> None:
    """Undoes what training did to how often things come, by Bayes on the logits of the current chunk.

    Windows ending in background were taken `calm` times as often as they come. And whoever sits in a composed stream
    stands up within seconds, so that every stir of a seated person looks like the beginning of it: see RISING.
    """
    bias = network.get_parameter("head.bias")
    bias[BACKGROUND] -= math.log(calm)
    bias[CLASSES.index("stand up")] -= RISING
