"""How well an action can be taught: `python -m pipelines.action.evaluate_teach --out RUN [--weights FILE]`.

Made-up sessions of UTD-MHAD's people who were kept out of the training, before a virtual camera: one of their actions
that the network has no class for is done five times from two recordings, and taught; then it is done from the two other
recordings, among twice as many other movements. Other people's recordings of the same action were background to the
network in training, so a visitor's own idea of an action may be harder.

Letters: n chunks, D features.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from . import teach, train_files
from .camera import film
from .config import BACKGROUND, CHUNKS_PER_SECOND
from .features import chunked, extract
from .local import LocalAction
from .score import LATE, SHORTEST, events
from .skeletons import Body
from .streams import Composer, Script
from .teach import Course, Piece, Pupil
from .train_data import CAMERA, PER_CHUNK
from .train_files import configured, stage
from .weights import build, load

SESSIONS = 16
TESTED = 4  # repetitions to be found in a session
OTHERS = 2  # other movements for each of them
LONG_ENOUGH = 10  # chunks of idling that are taken for a recording of it
NAME = "taught"


@dataclass(frozen=True)
class Session:
    """One stream. features: (n, D). movements: (n,). taught: the movement. test: the chunk at which the test begins."""

    features: np.ndarray
    movements: np.ndarray
    taught: int
    test: int


@dataclass(frozen=True)
class Found:
    """Of one session. delays: seconds from a repetition's beginning to the first chunk that is called the action, of
    those that were found; asked: repetitions. wrong: times that something else was called so; minutes: of the test."""

    delays: tuple[float, ...]
    asked: int
    wrong: int
    minutes: float


def sessions(bodies: Sequence[Body], count: int = SESSIONS, seed: int = 7) -> list[Session]:
    """The same sessions every time: as many as asked for, of people and actions in turn."""
    rng = np.random.default_rng(seed)
    own: dict[tuple[int, int], list[Body]] = {}
    for body in bodies:
        if body.label == BACKGROUND:
            own.setdefault((body.subject, body.action), []).append(body)
    kinds = [key for key, clips in sorted(own.items()) if len(clips) >= 4]
    chosen = [kinds[k] for k in rng.permutation(len(kinds))]
    composer = Composer(bodies, Script(seated=0.0))
    return [_session(rng, composer, bodies, own[chosen[k % len(chosen)]]) for k in range(count)]


def _session(rng: np.random.Generator, composer: Composer, bodies: Sequence[Body], clips: Sequence[Body]) -> Session:
    one, two, *new = (clips[k] for k in rng.permutation(len(clips)))
    course = [(one, two)[k % 2] for k in range(teach.REPETITIONS)]
    others = [b for b in bodies if b.subject == one.subject and b.action != one.action]
    test = [new[k % len(new)] for k in range(TESTED)]
    test += [others[int(rng.integers(len(others)))] for _ in range(OTHERS * TESTED)]
    points, movements = composer.perform(rng, [*course, *(test[k] for k in rng.permutation(len(test)))])
    joints, _ = film(rng, points[None], movements[None], CAMERA)
    features = extract(chunked(joints, PER_CHUNK))[0]
    taught_until = events(movements)[len(course) - 1][1]
    each = movements[PER_CHUNK // 2 :: PER_CHUNK][: len(features)]
    return Session(features, each, one.action, taught_until // PER_CHUNK + 1)


def course_of(session: Session) -> Course:
    """What the visitor of a session would have recorded before its test."""
    own = session.movements[: session.test]

    def pieces(wanted: np.ndarray, least: int) -> list[Piece]:
        return [Piece(session.features[:end], start) for start, end in _spans(wanted) if end - start >= least]

    return Course(repetitions=pieces(own == session.taught, SHORTEST), idle=pieces(own == 0, LONG_ENOUGH))


def run(session: Session, backend: LocalAction) -> Found:
    """Teaches the session's action, and watches its test as a stream does."""
    lesson = teach.learn(NAME, course_of(session), backend, "")
    pupil = Pupil((lesson,), backend, "oadtr", "")
    called = []
    for row in session.features[session.test :]:
        pupil.push(row)
        called.append(pupil.action is not None)
    return judged(np.array(called), session.movements[session.test :] == session.taught)


def judged(called: np.ndarray, wanted: np.ndarray) -> Found:
    """(n,) and (n,) bool: chunks that were called the action, and those of it. What is called out during a repetition
    or up to `LATE` chunks after it is not wrong."""
    asked = [(start, end) for start, end in _spans(wanted) if end - start >= SHORTEST]
    hits = [np.flatnonzero(called[start : end + LATE]) for start, end in asked]
    near = np.zeros(len(wanted) + LATE, bool)
    for start, end in _spans(wanted):
        near[start : end + LATE] = True
    wrong = sum(not near[start:end].any() for start, end in _spans(called))
    delays = tuple(hit[0] / CHUNKS_PER_SECOND for hit in hits if len(hit))
    return Found(delays, len(asked), wrong, len(wanted) / CHUNKS_PER_SECOND / 60)


def _spans(wanted: np.ndarray) -> list[tuple[int, int]]:
    return [(start, end) for start, end, _ in events(wanted.astype(int))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a training's folder, see train.py")
    parser.add_argument("--weights", type=Path, help="an exported OadTR in place of the folder's own")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.weights is None:
        network = build(configured("oadtr"))
        train_files.restore(args.out / f"{stage('oadtr', args.seed, False)}-average.pt", network)
    else:
        network = load(configured("oadtr"), args.weights)
    backend = LocalAction({"oadtr": network.eval()})
    found = [run(each, backend) for each in sessions(train_files.split(args.out)[1][0])]
    delays, asked = [delay for each in found for delay in each.delays], sum(each.asked for each in found)
    minutes = sum(each.minutes for each in found)
    print(
        f"{len(found)} sessions: {len(delays)} of {asked} repetitions found, {float(np.median(delays)):.1f} s after "
        f"they began (median); {sum(each.wrong for each in found) / minutes:.1f} other movements a minute taken for it"
    )


if __name__ == "__main__":
    main()
