"""An action that a visitor teaches: a head of one class, fitted to what the frozen encoder makes of a few repetitions.

The encoder was never shown the action, but what it says of a body's movements tells movements apart. The head is a
logistic regression with a strong pull to zero, as there are more numbers than examples; it is fitted by Newton's method
in some milliseconds. Of movements that are neither the action nor idling it knows nothing, so what is called the action
must also lie near one of the repetitions (prototypes): not farther than they lie from each other.

Letters: n chunks, E numbers that the encoder says of one.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.common.errors import UserError

from .config import CLASSES, JOINTS, Brain
from .insight import encoded, window_of

if TYPE_CHECKING:
    from .local import LocalAction

FORMAT = 1  # of an exported lesson
REPETITIONS = 5
LEAST = 3  # repetitions
MOST_LESSONS = 12
LONGEST_NAME = 40
PULL = 3.0  # of the weights to zero, in examples
STEPS = 30
BEGINS, ENDS = 0.5, 0.3  # probabilities at which a taught action begins and ends
SMOOTHED = 0.3  # share of the newest chunk in the probability, which goes on from the last one
LIVELY = 0.3  # share of the largest speed from which on somebody moves
PROTOTYPES = 60  # chunks that are kept of all repetitions together
# Radius around a prototype: so much of the distance within which this share of the chunks have one of another
# repetition. It was chosen on 16 made-up sessions of people of UTD-MHAD doing actions without a class, on the first
# weights: with it 3 instead of 12 other movements a minute were taken for the action, and 66 instead of 67 of 67
# repetitions were found.
NEAR, SHARE = 0.95, 0.9
SOFT = 0.15  # of the radius, over which the probability falls off
LARGEST = 1e6  # of a number in a lesson's file


@dataclass(frozen=True)
class Lesson:
    """What is left of a visitor's repetitions. mean, scale, weight: (E,) float64; bias. prototypes: (P, E) float64, as
    scaled by mean and scale, and the radius around each. weights, brain: whose encoder.
    repetitions, chunks: how many it was fitted to. kept_out: share of repetitions that were found by a head fitted to
    the others."""

    name: str
    weights: str
    brain: Brain
    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: float
    prototypes: np.ndarray
    radius: float
    repetitions: int = 0
    chunks: int = 0
    kept_out: float = math.nan

    def probability(self, code: np.ndarray) -> np.ndarray:
        """(n, E) -> (n,)."""
        scaled = (code - self.mean) / self.scale
        logit = scaled @ self.weight + self.bias
        far = (nearest(scaled, self.prototypes) - self.radius) / (SOFT * self.radius)
        return 1 / (1 + np.exp(-np.clip(logit, -40, 40))) / (1 + np.exp(np.clip(far, -40, 40)))

    def dump(self) -> dict[str, Any]:
        """As JSON would have it."""
        arrays: dict[str, Any] = {name: getattr(self, name).tolist() for name in ("mean", "scale", "weight")}
        arrays["prototypes"] = np.round(self.prototypes, 4).tolist()
        plain = {
            "name": self.name,
            "weights": self.weights,
            "brain": self.brain,
            "bias": self.bias,
            "radius": self.radius,
        }
        return plain | {"repetitions": self.repetitions, "chunks": self.chunks} | arrays


@dataclass(frozen=True)
class Piece:
    """A piece of a stream. features: (n, in_features) float32, those before `start` came before the piece itself."""

    features: np.ndarray
    start: int


@dataclass
class Course:
    """What one visitor recorded and taught. repetitions, idle: of the lesson that is being recorded. older: what was
    recorded for earlier lessons, which a new one is told from. weights, brain: under which it was recorded."""

    lessons: tuple[Lesson, ...] = ()
    repetitions: list[Piece] = field(default_factory=list)
    idle: list[Piece] = field(default_factory=list)
    older: list[Piece] = field(default_factory=list)
    weights: str = ""
    brain: Brain = "oadtr"


def codes(backend: LocalAction, piece: Piece, brain: Brain, moving: bool) -> np.ndarray:
    """What the encoder says behind the chunks of a piece: (n, E), each chunk with a long, a short and a shorter past,
    so that what happened to come before is not learnt. moving: only from the first to the last lively chunk."""
    features, own = piece.features, range(piece.start, len(piece.features))
    if moving:
        # Displacements of the joints over 1 to 8 chunks stand behind the places: see features.py.
        speed = np.abs(features[piece.start :, 2 * JOINTS : 10 * JOINTS]).mean(axis=1)
        lively = np.flatnonzero(speed > LIVELY * speed.max())
        if len(lively) and speed.max() > 0:
            own = range(piece.start + int(lively[0]), piece.start + int(lively[-1]) + 1)
    found = []
    most = window_of(backend, brain)
    for length in (most, most // 2, most // 4):
        by_length: dict[int, list[np.ndarray]] = {}
        for at in own:
            window = features[max(0, at + 1 - length) : at + 1]
            by_length.setdefault(len(window), []).append(window)
        found += [encoded(backend, np.stack(windows), brain) for windows in by_length.values()]
    return np.concatenate(found) if found else np.zeros((0, 1), np.float32)


def learn(name: str, course: Course, backend: LocalAction, weights: str) -> Lesson:
    """The lesson that was recorded, told from idling and from what was recorded before. UserError: as of `teach`."""
    repetitions = [codes(backend, piece, course.brain, True) for piece in course.repetitions]
    idle = [codes(backend, piece, course.brain, False) for piece in (*course.idle, *course.older)]
    return teach(name, repetitions, idle, weights, course.brain)


def name_of(text: Any, taken: Sequence[str]) -> str:
    """A new action's name without space around it. UserError: none, too long, or it is there already."""
    name = " ".join(str(text or "").split())
    if not name or not name.isprintable():
        raise UserError("Give the new action a name first.")
    if len(name) > LONGEST_NAME:
        raise UserError(f"The name may have at most {LONGEST_NAME} characters.")
    if name.casefold() in {other.casefold() for other in taken}:
        raise UserError(f"There is an action called “{name}” already; choose another name.")
    return name


def teach(
    name: str, repetitions: Sequence[np.ndarray], idle: Sequence[np.ndarray], weights: str, brain: Brain = "oadtr"
) -> Lesson:
    """A head that tells the repetitions from idling.

    repetitions: (n, E) each, what the encoder said of the chunks of one; idle: the same of pieces without the action.
    UserError: too few of either.
    """
    done = [np.asarray(each, np.float64) for each in repetitions if len(each)]
    rest = [np.asarray(each, np.float64) for each in idle if len(each)]
    if len(done) < LEAST:
        raise UserError(f"Record at least {LEAST} repetitions; {REPETITIONS} are better.")
    if sum(map(len, rest)) < 10:
        raise UserError("Record a second or more of idling as well, so that there is something to tell it from.")
    found = []
    for left_out in range(len(done)):
        others = [each for k, each in enumerate(done) if k != left_out]
        head = _fit(name, others, rest, weights, brain)
        found.append(bool(head.probability(done[left_out]).max() >= BEGINS))
    head = _fit(name, done, rest, weights, brain)
    return Lesson(**{**vars(head), "kept_out": float(np.mean(found))})


def _fit(
    name: str, done: Sequence[np.ndarray], rest: Sequence[np.ndarray], weights: str, brain: Brain
) -> Lesson:  # fmt: skip
    codes = np.concatenate([*done, *rest])
    truth = np.repeat([1.0, 0.0], [sum(map(len, done)), sum(map(len, rest))])
    mean, scale = codes.mean(axis=0), codes.std(axis=0) + 1e-3
    weight, bias = logistic((codes - mean) / scale, truth)
    kept = [_spread((each - mean) / scale, PROTOTYPES // len(done)) for each in done]
    apart = [nearest(kept[k], np.concatenate(kept[:k] + kept[k + 1 :])) for k in range(len(kept))]
    radius = max(NEAR * float(np.quantile(np.concatenate(apart), SHARE)), 1e-3)
    return Lesson(
        name, weights, brain, mean, scale, weight, bias, np.concatenate(kept), radius, len(done), len(codes)
    )  # fmt: skip


def _spread(codes: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows, evenly."""
    return codes[np.unique(np.linspace(0, len(codes) - 1, min(len(codes), max(1, most))).astype(int))]


def nearest(codes: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    """(n, E), (P, E) -> (n,) the distance to the nearest prototype."""
    square = (codes**2).sum(1)[:, None] + (prototypes**2).sum(1)[None] - 2 * codes @ prototypes.T
    return np.sqrt(np.maximum(square, 0).min(1))


def logistic(codes: np.ndarray, truth: np.ndarray, pull: float = PULL) -> tuple[np.ndarray, float]:
    """(n, E) and (n,) of 0 and 1 -> weight (E,) and bias of the likeliest logistic regression with a pull to zero, the
    two classes counting alike."""
    n, width = codes.shape
    share = np.where(truth > 0, 0.5 * n / max(truth.sum(), 1), 0.5 * n / max((1 - truth).sum(), 1))
    x = np.concatenate([codes, np.ones((n, 1))], axis=1)
    ridge = np.full(width + 1, pull * width / 16)
    ridge[-1] = 1e-6
    found = np.zeros(width + 1)
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ found, -40, 40)))
        slope = x.T @ (share * (p - truth)) + ridge * found
        bend = (x * (share * p * (1 - p))[:, None]).T @ x + np.diag(ridge)
        step = np.linalg.solve(bend, slope)
        step /= max(1.0, float(np.abs(step).max()))  # from far away, Newton's step is too long
        found -= step
        if np.abs(step).max() < 1e-6:
            break
    return found[:-1], float(found[-1])


class Pupil:
    """Lessons over one stream. probabilities: by name, behind the newest chunk. action: which of them goes on."""

    def __init__(self, lessons: Sequence[Lesson], backend: LocalAction, brain: Brain, weights: str) -> None:
        """UserError: a lesson was made with other weights or another brain."""
        for lesson in lessons:
            if (lesson.weights, lesson.brain) != (weights, brain):
                raise UserError(f"“{lesson.name}” was taught with other weights or another brain; choose those again.")
        self._lessons, self._backend, self._brain = tuple(lessons), backend, brain
        self._window: deque[np.ndarray] = deque(maxlen=window_of(backend, brain))
        self.reset()

    def reset(self) -> None:
        """Forget the stream, not the lessons."""
        self._window.clear()
        self.probabilities: dict[str, float] = {lesson.name: 0.0 for lesson in self._lessons}
        self.action: str | None = None

    def push(self, features: np.ndarray) -> None:
        """The newest chunk, (in_features,)."""
        self._window.append(features)
        code = encoded(self._backend, np.stack(self._window)[None], self._brain)
        for lesson in self._lessons:
            before, now = self.probabilities[lesson.name], float(lesson.probability(code)[0])
            self.probabilities[lesson.name] = SMOOTHED * now + (1 - SMOOTHED) * before
        best = max(self.probabilities, key=lambda name: self.probabilities[name])
        if self.probabilities[best] >= BEGINS:
            self.action = best
        elif self.action is not None and self.probabilities[self.action] < ENDS:
            self.action = None


def export(lessons: Sequence[Lesson]) -> bytes:
    """Lessons as a JSON file."""
    document = {"format": FORMAT, "lessons": [lesson.dump() for lesson in lessons]}
    return json.dumps(document, ensure_ascii=False).encode("utf-8")


def restore(data: bytes, width: Mapping[tuple[str, str], int]) -> tuple[Lesson, ...]:
    """What `export` wrote. width: E of each (weights, brain) that may be meant. UserError: another file, lessons of
    other weights, or a name that a class or another lesson has."""
    try:
        document = json.loads(data.decode("utf-8"))
        if document["format"] != FORMAT:
            raise ValueError("another format")
        lessons = tuple(_lesson(each) for each in document["lessons"])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError("This is not a file of taught actions that was saved here.") from error
    if not 1 <= len(lessons) <= MOST_LESSONS:
        raise UserError(f"A file of taught actions holds 1 to {MOST_LESSONS} of them.")
    for k, lesson in enumerate(lessons):
        name_of(lesson.name, [*CLASSES, *(other.name for other in lessons[:k])])
        if width.get((lesson.weights, lesson.brain)) != len(lesson.weight):
            raise UserError(f"“{lesson.name}” was taught with other weights than those that are chosen here.")
    return lessons


def joined(known: Sequence[Lesson], new: Sequence[Lesson]) -> tuple[Lesson, ...]:
    """Lessons and new ones of one encoder; those of another encoder are left behind, as a stream has only one.
    UserError: a name is there already, or there would be too many."""
    encoder = new[0].weights, new[0].brain
    kept = [each for each in known if (each.weights, each.brain) == encoder]
    for lesson in new:
        name_of(lesson.name, [each.name for each in kept])
    if len(kept) + len(new) > MOST_LESSONS:
        raise UserError(f"At most {MOST_LESSONS} actions can be taught; erase some first.")
    return (*kept, *new)


def _lesson(fields: Mapping[str, Any]) -> Lesson:
    """ValueError, KeyError, TypeError or OverflowError: not a lesson."""
    arrays = {name: np.array(fields[name], np.float64) for name in ("mean", "scale", "weight")}
    prototypes, radius = np.array(fields["prototypes"], np.float64), float(fields["radius"])
    numbers = np.concatenate([*arrays.values(), prototypes.ravel(), [float(fields["bias"]), radius]])
    if {each.ndim for each in arrays.values()} != {1} or len({len(each) for each in arrays.values()}) != 1:
        raise ValueError("not three rows of one length")
    if prototypes.ndim != 2 or not 1 <= len(prototypes) <= PROTOTYPES or prototypes.shape[1] != len(arrays["mean"]):
        raise ValueError("not rows of the same length")
    if not np.isfinite(numbers).all() or np.abs(numbers).max() > LARGEST or arrays["scale"].min() <= 0 or radius <= 0:
        raise ValueError("numbers out of range")
    try:
        name = name_of(fields["name"], ())
    except UserError as error:
        raise ValueError("no name") from error
    counts = int(fields["repetitions"]), int(fields["chunks"])
    brain: Any = str(fields["brain"])
    return Lesson(
        name, str(fields["weights"]), brain, arrays["mean"], arrays["scale"], arrays["weight"],
        float(fields["bias"]), prototypes, radius, *counts,
    )  # fmt: skip
