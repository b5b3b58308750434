"""The recipe of the Recurrence page's curves: networks of equal size, larger than the live ones, on longer and longer
tasks; what each has learnt after the same examples, and how far back its gradient reaches.

A run needs no data: the tasks are drawn. RUN/recurrence-TASK-LENGTH-KIND.json is one trained network; what is there
already is not trained again.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .recurrence_curves import KINDS, LENGTHS
from .recurrence_training import BATCH, RATE, Reader, equal_width, gradients, judge, parameters, update
from .tasks import draw

MODELS = tuple(LENGTHS)
SIZE = 100_000  # parameters at most, four times as many as on the page
STEPS = {"copy": 500, "recall": 3_000, "sort": 500}  # to look something up is learnt late, and then at once
JUDGED, SEED = 1_000, 0
WARMUP = 50


def train(name: str, data: Path | None, out: Path, minutes: float) -> None:
    """Train what is missing of a task, the shortest first, until the minutes are over."""
    torch.set_num_threads(1)
    start = time.monotonic()
    for length in LENGTHS[name]:
        for kind in KINDS:
            path = out / f"recurrence-{name}-{length}-{kind}.json"
            if path.exists():
                continue
            if time.monotonic() - start > 60 * minutes:
                return
            found = course(kind, name, length, STEPS[name])
            path.write_text(json.dumps(found) + "\n")
            print(f"{name} {length} {kind}: {found['accuracy']:.3f} in {found['seconds']:.0f} s", flush=True)


def course(kind: str, task: str, length: int, steps: int, size: int = SIZE) -> dict[str, Any]:
    """Train one network, the rate rising for WARMUP steps and then falling evenly to nothing, and judge it on JUDGED
    examples drawn apart: of the shortest tasks there are so few that it has met most of them. distance: see
    `recurrence_training.gradients`."""
    torch.manual_seed(SEED)
    network, rng = Reader(kind, equal_width(kind, size)), np.random.default_rng(SEED)
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    begun = time.process_time()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / WARMUP) * (1 - step / steps)
        update(network, optimizer, draw(task, length, BATCH, rng))
    seconds = time.process_time() - begun
    fresh = draw(task, length, JUDGED, np.random.default_rng(SEED + 1))
    loss, accuracy = judge(network, fresh)
    return {
        "size": parameters(network), "seconds": round(seconds, 1), "loss": round(loss, 4),
        "accuracy": round(accuracy, 4), "distance": [float(f"{each:.4g}") for each in gradients(network, fresh)],
    }  # fmt: skip


def export(name: str, data: Path | None, out: Path, weights: Path) -> dict[str, float]:
    """Put a task's curves into WEIGHTS/curves.json beside those of other tasks; returns accuracies by kind and
    length."""
    path = weights / "curves.json"
    whole = json.loads(path.read_text()) if path.exists() else {"curves": {}}
    whole |= {"steps": STEPS, "batch": BATCH, "judged": JUDGED, "seed": SEED}
    found = {
        kind: {str(length): json.loads(each.read_text()) for length in LENGTHS[name]
               if (each := out / f"recurrence-{name}-{length}-{kind}.json").exists()}
        for kind in KINDS
    }  # fmt: skip
    whole["curves"][name] = found
    weights.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole) + "\n")
    return {f"{kind} {length}": one["accuracy"] for kind, each in found.items() for length, one in each.items()}
