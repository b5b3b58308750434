"""The shipped curves of the Recurrence page, trained by `train_recurrence`: read here without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pipelines.common import catalogue, checkpoint

from .tasks import steps_in_a_row

ROLE = "recurrence"
KINDS = ("rnn", "lstm", "gru", "transformer", "encdec")
LENGTHS = {"copy": (4, 8, 16, 32), "recall": (2, 4, 8), "sort": (4, 8, 16, 32)}


@dataclass(frozen=True)
class Point:
    """One trained network. size: parameters; seconds: of one core, for all its training; accuracy: share of right
    symbols in examples drawn apart from those of the training; distance: norm of the gradient 0, 1, 2 ... steps back;
    waits: steps that must run one after another to read one sequence."""

    kind: str
    length: int
    size: int
    seconds: float
    accuracy: float
    distance: tuple[float, ...]
    waits: int


@dataclass(frozen=True)
class Curves:
    """All networks of one task, each trained for `steps` steps of `batch` examples."""

    steps: int
    batch: int
    points: tuple[Point, ...]


def shipped(task: str) -> Curves | None:
    """None: they are not on this machine, or not of this task."""
    for entry in catalogue.entries("foundations", ROLE):
        if checkpoint.locate(entry) is None:
            continue
        whole = json.loads(checkpoint.paths(entry)["curves"].read_text(encoding="utf-8"))
        found = whole["curves"].get(task)
        if found:
            points = tuple(
                _point(task, kind, int(length), one) for kind in KINDS for length, one in found.get(kind, {}).items()
            )
            return Curves(whole["steps"][task], whole["batch"], points)
    return None


def _point(task: str, kind: str, length: int, one: dict) -> Point:
    waits = steps_in_a_row(kind, read(task, length))
    return Point(kind, length, one["size"], one["seconds"], one["accuracy"], tuple(one["distance"]), waits)


def read(task: str, length: int) -> int:
    """Symbols that a network reads of one example: all but the answer's last."""
    return 2 * length + 2 if task == "recall" else 2 * length
