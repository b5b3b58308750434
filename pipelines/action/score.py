"""How good a brain is: average precision, events found, false alarms and delay, on streams and on real clips.

Letters: B streams, T chunks, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from .camera import STUDIO, Camera
from .config import BACKGROUND, CHUNKS_PER_SECOND, CLASSES
from .features import chunked, extract
from .hysteresis import actions
from .metrics import average_precision
from .skeletons import Body, Film
from .streams import PLAIN, Script
from .train_data import PER_CHUNK, Recipe, Source
from .windows import run_sequence

REAL = ("wave", "clap", "sit down", "stand up")
FILMED_ARMS = tuple(CLASSES.index(name) for name in (*REAL, "throw"))
LEVELS = (0.4, 0.45, 0.48, 0.5, 0.6, 0.7)  # thresholds that `report` tries
SUMMARY = ("map", "recall", "false", "wave", "clap", "sit down", "stand up", "real")
LATE = 3  # chunks after an event's end in which it still counts as found
SHORTEST = 4  # chunks; a shorter piece of an event at a stream's edge is not asked for


def events(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """(T,) -> (start, end, class) of each run of a class that is not background."""
    edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    return [(a, b, int(labels[a])) for a, b in pairwise(edges) if labels[a] != BACKGROUND]


@dataclass(frozen=True)
class StreamScore:
    """On composed streams. precision: average precision by class name, over chunks; recall: share of events of whose
    chunks (or the next three) at least one is answered right; false: share of background chunks that are called an
    action; calm: the same of those at least half a second from any action; delay: median seconds from an event's start
    to its first right answer."""

    precision: dict[str, float]
    recall: float
    false: float
    calm: float
    delay: float

    @property
    def mean(self) -> float:
        return float(np.nanmean(list(self.precision.values())))


def score_streams(probabilities: np.ndarray, labels: np.ndarray, answers: np.ndarray | None = None) -> StreamScore:
    """probabilities (B, T, C), labels (B, T). answers (B, T): what was called out; None is the likeliest class."""
    if answers is None:
        answers = probabilities.argmax(axis=-1)
    precision = {
        name: average_precision(probabilities[..., k].ravel(), (labels == k).ravel())
        for k, name in enumerate(CLASSES)
        if k != BACKGROUND
    }
    hits, delays = [], []
    for called, wanted in zip(answers, labels, strict=True):
        for start, end, label in events(wanted):
            if end - start >= SHORTEST:
                right = np.flatnonzero(called[start : end + LATE] == label)
                hits.append(len(right) > 0)
                delays += [right[0] / CHUNKS_PER_SECOND] if len(right) else []
    background = labels == BACKGROUND
    near = np.zeros(labels.shape, bool)
    for shift in range(-5, 6):
        near |= np.roll(~background, shift, axis=1)
    wrong = answers != BACKGROUND
    return StreamScore(
        precision,
        recall=float(np.mean(hits)) if hits else float("nan"),
        false=float(wrong[background].mean()),
        calm=float(wrong[~near].mean()) if (~near).any() else float("nan"),
        delay=float(np.median(delays)) if delays else float("nan"),
    )


@dataclass(frozen=True)
class FilmScore:
    """On real clips: average precision by class name, where a clip counts by its surest chunk, by its mean, and where
    chunks count one by one."""

    surest: dict[str, float]
    mean: dict[str, float]
    chunks: dict[str, float]

    def real(self, kind: str = "surest") -> float:
        """The average of wave, clap, sit down and stand up."""
        return float(np.nanmean([getattr(self, kind)[name] for name in REAL]))


def score_films(probabilities: Sequence[np.ndarray], labels: Sequence[int], names: Sequence[str] = REAL) -> FilmScore:
    """probabilities: (T, C) of each clip; labels: its class."""
    truth = np.array(labels)
    lengths = [len(each) for each in probabilities]
    surest, mean, chunks = {}, {}, {}
    for name in names:
        k = CLASSES.index(name)
        surest[name] = average_precision(np.array([each[:, k].max() for each in probabilities]), truth == k)
        mean[name] = average_precision(np.array([each[:, k].mean() for each in probabilities]), truth == k)
        each_chunk = np.concatenate([each[:, k] for each in probabilities])
        chunks[name] = average_precision(each_chunk, np.repeat(truth == k, lengths))
    return FilmScore(surest, mean, chunks)


def false_actions(answers: np.ndarray) -> float:
    """Actions that begin in a minute of streams (B, T) in which there are none."""
    padded = np.pad(answers, ((0, 0), (1, 0)), constant_values=BACKGROUND)
    starts = (answers != BACKGROUND) & (answers != padded[:, :-1])
    return float(starts.sum() / (answers.size / CHUNKS_PER_SECOND / 60))


@torch.no_grad()
def probabilities(network: nn.Module, features: np.ndarray) -> np.ndarray:
    """(B, T, D) -> (B, T, C) float32, each chunk's from what had come by then."""
    device = next(network.parameters()).device
    streams = torch.from_numpy(features).to(device)
    return np.stack([run_sequence(network, each, batch=512)[0].softmax(dim=-1).cpu().numpy() for each in streams])


class Measured:
    """Streams and films that were kept out of training, ready to be asked about."""

    def __init__(self, bodies: Sequence[Body], films: Sequence[Film], streams: int, chunks: int, seed: int = 7) -> None:
        """streams, chunks: of each kind of composed stream, drawn when it is first asked for."""
        self._bodies, self._size, self._seed = bodies, (streams, chunks), seed
        long = [film for film in films if len(film.joints) >= PER_CHUNK]
        self.films = [extract(chunked(film.joints, PER_CHUNK)) for film in long]
        self.labels = [film.label for film in long]

    @cached_property
    def plain(self) -> tuple[np.ndarray, np.ndarray]:
        """Features and labels of clips as they were recorded, all joints seen from about the front."""
        return self._drawn(PLAIN, STUDIO)

    @cached_property
    def hard(self) -> tuple[np.ndarray, np.ndarray]:
        """The same of varied clips under all that training varies, not mirrored."""
        return self._drawn(Script(), replace(Camera(), mirrored=0.0))

    @cached_property
    def idle(self) -> np.ndarray:
        """Features of people who sit and read."""
        return self._drawn(replace(Script(), idle=True), Camera())[0]

    def _drawn(self, script: Script, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
        recipe = Recipe(script, camera, *self._size, films=0.0, noise=0.0, idle=0.0)
        draw = Source(self._bodies, [], recipe).draw(np.random.default_rng(self._seed))
        return draw.features, draw.labels

    def on_films(self, network: nn.Module) -> list[np.ndarray]:
        """(T, C) of each clip."""
        lengths = [len(each) for each in self.films]
        longest = max(lengths)
        batch = np.stack([np.pad(each, ((0, longest - len(each)), (0, 0))) for each in self.films])
        found = probabilities(network, batch)  # what comes after a clip's end can't change what was said before
        return [each[:length] for each, length in zip(found, lengths, strict=True)]

    def summary(self, network: nn.Module) -> dict[str, float]:
        """A few numbers, by the names of SUMMARY."""
        streams = score_streams(probabilities(network, self.plain[0]), self.plain[1])
        films = score_films(self.on_films(network), self.labels)
        return {
            "map": streams.mean, "recall": streams.recall, "false": streams.false, **films.surest, "real": films.real()
        }  # fmt: skip


def report(network: nn.Module, bodies: Sequence[Body], films: Sequence[Film]) -> None:
    """Prints all that is measured on people and clips that were kept out."""
    measured = Measured(bodies, films, streams=40, chunks=300)
    for title, (features, labels) in (("plain", measured.plain), ("hard", measured.hard)):
        found = probabilities(network, features)
        streams = score_streams(found, labels)
        asked = sum(len(events(row)) for row in labels)
        print(f"{title} streams: mAP {streams.mean:.3f}, recall of {asked} events {streams.recall:.3f}, false alarms "
              f"{streams.false:.3f} (far from any action {streams.calm:.3f}), delay {streams.delay:.2f} s")  # fmt: skip
        print("  " + ", ".join(f"{name} {value:.2f}" for name, value in streams.precision.items()))
        for level in LEVELS:
            called = score_streams(found, labels, actions(found, level, 0.6 * level))
            print(f"  threshold {level}: event recall {called.recall:.3f}, false alarms {called.false:.3f}, "
                  f"delay {called.delay:.2f} s")  # fmt: skip
    idle = probabilities(network, measured.idle)
    for level in LEVELS:
        print(f"sits and reads, threshold {level}: {false_actions(actions(idle, level, 0.6 * level)):.2f} a minute")
    clips, truth = measured.on_films(network), measured.labels
    _print_films("films", score_films(clips, truth, (*REAL, "throw", "jog in place")))
    ours = [row for row, label in enumerate(truth) if label in FILMED_ARMS]
    few = score_films([clips[row] for row in ours], [truth[row] for row in ours], (*REAL, "throw"))
    _print_films("films of wave, clap, sit, stand and throw alone", few)


def _print_films(title: str, real: FilmScore) -> None:
    for kind in ("surest", "mean", "chunks"):
        print(f"{title} by {kind}: {real.real(kind):.3f} = " +
              ", ".join(f"{name} {value:.2f}" for name, value in getattr(real, kind).items()))  # fmt: skip
