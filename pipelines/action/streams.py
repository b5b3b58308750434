"""Streams of one person doing one thing after another, composed of recorded clips, with the movement of every frame.

Between two actions the person stands or sits still, moves the arms somewhere for no reason, steps aside. Who sat down
stays seated, perhaps does the next things seated, and stands up again. Everything here is in metres and of the body;
what a camera makes of it is in camera.py.

Letters: F frames, N = 13 joints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .config import BACKGROUND, CLASSES
from .skeletons import FRAMES_PER_SECOND, HIPS, Body

SIT, STAND = CLASSES.index("sit down"), CLASSES.index("stand up")
WAVE, CLAP = CLASSES.index("wave"), CLASSES.index("clap")
# Of UTD-MHAD's actions, those that nobody does on a chair: bowling, picking up, jogging, walking, sitting down and
# standing up themselves, lunging, squatting.
ON_FEET = (12, 21, 22, 23, 24, 25, 26, 27)
REPEATED = {
    CLASSES.index(name) for name in ("wave", "clap", "draw circle", "punch", "arm curl", "knock", "jog in place")
}
ARM_CHAINS = ((1, 3, 5), (2, 4, 6))
RIGHT_ARM, LEFT_ARM = (4, 6), (3, 5)
UPPER = (0, 1, 2, 3, 4, 5, 6)


@dataclass(frozen=True)
class Script:
    """How streams are composed. Shares and chances in [0, 1], times in seconds.

    untargeted: share of the clips that are actions without a class. seated: chance to begin on a chair, and that
    somebody who sits does something before standing up. fidget: chance that the arms wander in a gap. varied: whether
    clips are altered (speed, size of the movement, height of the arms, repeats), or played as they were recorded.
    """

    untargeted: float = 0.35
    seated: float = 0.3
    fidget: float = 0.4
    shortest_gap: float = 0.3
    mean_gap: float = 1.2
    longest_gap: float = 6.0
    varied: bool = True
    idle: bool = False  # nothing but gaps: a person who sits, and reads, scratches the head, looks around


PLAIN = Script(seated=0.0, fidget=0.0, varied=False)


class Composer:
    """Composes streams of one person each."""

    def __init__(self, bodies: Sequence[Body], script: Script) -> None:
        self.script = script
        self.people: dict[int, dict[int, list[Body]]] = {}  # subject -> label -> clips
        for body in bodies:
            self.people.setdefault(body.subject, {}).setdefault(body.label, []).append(body)

    def compose(self, rng: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
        """points (F, 13, 3) and movements (F,), see skeletons.MOVEMENTS, of `frames` frames."""
        person = self.people[int(rng.choice(sorted(self.people)))]
        take = _Take(rng, person, self.script)
        first = int(rng.integers(0, 2 * FRAMES_PER_SECOND))  # a stream may begin in the middle of something
        while take.length < frames + first:
            if self.script.idle:
                take.rest()
            else:
                take.act()
        points, movements = take.whole()
        return points[first : first + frames], movements[first : first + frames]

    def perform(self, rng: np.random.Generator, clips: Sequence[Body]) -> tuple[np.ndarray, np.ndarray]:
        """One person's recordings one after another, idling between: points and movements as of `compose`."""
        take = _Take(rng, self.people[clips[0].subject], self.script)
        for clip in clips:
            take.add(clip)
        return take.whole()


class _Take:
    """One stream while it is composed."""

    def __init__(self, rng: np.random.Generator, person: dict[int, list[Body]], script: Script) -> None:
        self.rng, self.person, self.script = rng, person, script
        self.parts: list[np.ndarray] = []
        self.movements: list[np.ndarray] = []
        self.length = 0
        self.chair: np.ndarray | None = None  # the pose (13, 3) on it
        self.away = np.zeros(3, np.float32)  # where the person has moved to
        if SIT in person and (script.idle or rng.random() < script.seated):
            self.chair = self._pick(SIT).points[-1]
        pose = self._pick(BACKGROUND).points[0] if self.chair is None else self.chair
        self._append(pose[None])

    def act(self) -> None:
        """A gap, and a clip that can be done from here."""
        if self.chair is not None and (STAND in self.person) and self.rng.random() > self.script.seated:
            body = self._pick(STAND)
        else:
            body = self._choose()
        self.add(body)

    def add(self, body: Body) -> None:
        """A gap, and the clip."""
        points, movements = self._clip(body)
        if self.chair is not None and body.label != STAND:
            points = _seat(points, self.chair)
        self._gap(points[0])
        self._append(points, movements)
        if body.label == STAND:
            self.chair = None
        elif body.label == SIT:
            self.chair = points[-1]

    def rest(self) -> None:
        """Reads for some seconds; then a hand goes somewhere and comes back."""
        rng, pose = self.rng, self.parts[-1][-1] - self.away
        self._append(np.repeat(pose[None], int(rng.integers(30, 300)), axis=0))
        goal = self._reading(pose) if rng.random() < 0.4 else self._wander(pose)
        self._append(_between(pose, goal, int(rng.integers(12, 40))))
        if rng.random() < 0.7:
            self._append(np.repeat(goal[None], int(rng.integers(3, 90)), axis=0))
            self._append(_between(goal, pose, int(rng.integers(12, 40))))

    def _reading(self, pose: np.ndarray) -> np.ndarray:
        """Both hands before the chest or the belly, as they hold a book or lie on a table."""
        moved, side = pose.copy(), pose[2] - pose[1]
        for (shoulder, elbow, wrist), sign in zip(ARM_CHAINS, (1.0, -1.0), strict=True):
            inwards = side * np.float32(sign * self.rng.uniform(0.0, 0.35))
            down, ahead = self.rng.uniform(0.2, 0.28), self.rng.uniform(0.02, 0.15)
            moved[elbow] = pose[shoulder] + np.array([0, -down, -ahead], np.float32)
            height, reach = self.rng.uniform(-0.05, 0.2), self.rng.uniform(0.1, 0.22)
            moved[wrist] = moved[elbow] + inwards + np.array([0, height, -reach], np.float32)
        return moved

    def whole(self) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate(self.parts), np.concatenate(self.movements)

    def _choose(self) -> Body:
        """A clip that can be done from here: nobody sits down twice."""
        label = BACKGROUND
        if self.rng.random() > self.script.untargeted:
            targets = [label for label in self.person if label not in (BACKGROUND, STAND)]
            label = int(self.rng.choice(sorted(targets)))
        body = self._pick(label)
        while self.chair is not None and body.action in ON_FEET:
            body = self._pick(int(self.rng.choice(sorted(self.person))))
        return body

    def _pick(self, label: int) -> Body:
        clips = self.person[label]
        return clips[int(self.rng.integers(len(clips)))]

    def _clip(self, body: Body) -> tuple[np.ndarray, np.ndarray]:
        movements = np.zeros(len(body.points), int)
        movements[body.start : body.end] = body.action
        return vary(self.rng, body, movements) if self.script.varied else (body.points, movements)

    def _gap(self, goal: np.ndarray) -> None:
        """From the last pose to `goal`, by way of some idling."""
        rng, script = self.rng, self.script
        seconds = float(np.clip(rng.exponential(script.mean_gap), script.shortest_gap, script.longest_gap))
        count = int(seconds * FRAMES_PER_SECOND)
        pose = self.parts[-1][-1] - self.away
        while count > 30 and rng.random() < script.fidget:
            wander = self._reading(pose) if self.chair is not None and rng.random() < 0.4 else self._wander(pose)
            move, still = int(rng.integers(9, 36)), int(rng.integers(0, 45))
            self._append(np.concatenate([_between(pose, wander, move), np.repeat(wander[None], still, axis=0)]))
            pose, count = wander, count - move - still
        rest = max(count, 8)
        move = int(rng.integers(min(8, rest), min(rest, 30) + 1))
        if script.fidget and rng.random() < 0.1:  # steps aside
            step = np.array([rng.normal(0, 0.3), 0, rng.normal(0, 0.2)], np.float32)
            path = _between(np.zeros(3, np.float32), step, rest)[:, None] + pose
            self._append(path)
            self.away = self.away + step
        else:
            self._append(np.repeat(pose[None], rest - move, axis=0))
        self._append(_between(pose, goal, move)[1:-1])

    def _wander(self, pose: np.ndarray) -> np.ndarray:
        """The pose with arms, or one arm, as they are in some frame of some clip of the person."""
        body = self._pick(int(self.rng.choice(sorted(self.person))))
        other = body.points[int(self.rng.integers(len(body.points)))]
        moved = pose.copy()
        for shoulder, elbow, wrist in ARM_CHAINS:
            if self.rng.random() < 0.75:
                for joint in (elbow, wrist):
                    moved[joint] = pose[shoulder] + other[joint] - other[shoulder]
        moved[list(UPPER)] += self.rng.normal(0, 0.03, 3).astype(np.float32)
        return moved

    def _append(self, points: np.ndarray, movements: np.ndarray | None = None) -> None:
        self.parts.append(points + self.away)
        self.movements.append(np.zeros(len(points), int) if movements is None else movements)
        self.length += len(points)


def vary(rng: np.random.Generator, body: Body, movements: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The clip as somebody else may do it: longer, faster, smaller, higher, with both hands."""
    points = body.points.copy()
    active = slice(body.start, body.end)
    if body.label == WAVE and rng.random() < 0.3:
        points = _both_hands(points)
    if body.label in (WAVE, CLAP) and rng.random() < 0.6:
        points[active] = _smaller(rng, points[active], body.label)
    points = _tilt_arms(rng, points, 0.35 if body.label in (WAVE, CLAP) else 0.12)
    speed = float(np.exp(rng.normal(0.0, 0.18)))
    if body.label in REPEATED and rng.random() < 0.4:
        times = int(rng.integers(2, 4))
        points, movements = _repeat(points, movements, active, times)
        speed *= float(rng.uniform(0.9, 2.0 if body.label == CLAP else 1.4))
    return _warp(rng, points, movements, speed)


def _warp(
    rng: np.random.Generator, points: np.ndarray, movements: np.ndarray, speed: float
) -> tuple[np.ndarray, np.ndarray]:
    """Played at `speed`, a little faster here and slower there."""
    count = max(8, round(len(points) / speed))
    time = np.linspace(0.0, 1.0, count)
    wobble = rng.uniform(-0.25, 0.25) * np.sin(np.pi * time) * np.sin(np.pi * time + rng.uniform(0, np.pi))
    source = (np.clip(time + wobble / np.pi, 0.0, 1.0)) * (len(points) - 1)
    low = np.minimum(source.astype(int), len(points) - 2)
    part = (source - low).astype(np.float32)[:, None, None]
    return points[low] * (1 - part) + points[low + 1] * part, movements[np.rint(source).astype(int)]


def _repeat(points: np.ndarray, movements: np.ndarray, active: slice, times: int) -> tuple[np.ndarray, np.ndarray]:
    """The middle of the action, there and back again, `times` more times: a movement that goes on without a jump."""
    length = active.stop - active.start
    inner = np.arange(active.start + length // 4, active.stop - length // 4)
    order = [np.arange(inner[-1])]
    for turn in range(times):
        order.append(inner[::-1] if turn % 2 == 0 else inner)
    if times % 2 == 1:
        order.append(inner)
    order.append(np.arange(inner[-1], len(points)))
    index = np.concatenate(order)
    return points[index], movements[index]


def _smaller(rng: np.random.Generator, points: np.ndarray, label: int) -> np.ndarray:
    """A wave about its middle, or an applause about the moment when the hands meet."""
    arms = [joint for chain in ARM_CHAINS for joint in chain[1:]]
    centre = (points[..., 1:3, :].mean(axis=1))[:, None]
    relative = points[:, arms] - centre
    if label == CLAP:
        apart = np.linalg.norm(points[:, 5] - points[:, 6], axis=-1)
        still = relative[int(apart.argmin())][None]
    else:
        still = relative.mean(axis=0, keepdims=True)
    amount = np.float32(rng.uniform(0.35, 1.1))
    # The first and last frames stay, so that the hands don't jump.
    fade = np.clip(np.minimum(np.arange(len(points)), np.arange(len(points))[::-1]) / 8.0, 0, 1)[:, None, None]
    weight = (1 - (1 - amount) * fade).astype(np.float32)
    changed = points.copy()
    changed[:, arms] = centre + still + (relative - still) * weight
    return changed


def _both_hands(points: np.ndarray) -> np.ndarray:
    """The left arm does what the right one does, mirrored."""
    changed = points.copy()
    centre = points[:, 1:3].mean(axis=1)[:, None]
    flipped = (points[:, RIGHT_ARM] - centre) * np.array([-1, 1, 1], np.float32)
    changed[:, LEFT_ARM] = centre + flipped
    return changed


def _tilt_arms(rng: np.random.Generator, points: np.ndarray, spread: float) -> np.ndarray:
    """Each arm turned about its shoulder by some radians up or down, in or out, the same in every frame; the more, the
    higher the arm is raised, so that arms that hang go on hanging."""
    changed = points.copy()
    for shoulder, elbow, wrist in ARM_CHAINS:
        up, out = rng.normal(0.0, spread, 2)
        for joint in (elbow, wrist):
            arm = points[:, joint] - points[:, shoulder]
            raised = np.clip(1.0 + arm[:, 1] / (np.linalg.norm(arm, axis=-1) + 1e-6), 0.0, 1.0)
            changed[:, joint] = points[:, shoulder] + _turned(arm, up * raised, out * raised)
    return changed


def _turned(arm: np.ndarray, up: np.ndarray, out: np.ndarray) -> np.ndarray:
    """(F, 3) turned about x by up (F,) and then about z by out (F,)."""
    x, y, z = arm[:, 0], arm[:, 1], arm[:, 2]
    y, z = y * np.cos(up) - z * np.sin(up), y * np.sin(up) + z * np.cos(up)
    x, y = x * np.cos(out) - y * np.sin(out), x * np.sin(out) + y * np.cos(out)
    return np.stack([x, y, z], axis=-1).astype(np.float32)


def _seat(points: np.ndarray, chair: np.ndarray) -> np.ndarray:
    """The upper body of a clip on the legs of somebody who sits."""
    seated = np.repeat(chair[None], len(points), axis=0)
    shift = chair[list(HIPS)].mean(axis=0) - points[:, HIPS].mean(axis=1)
    seated[:, UPPER] = points[:, UPPER] + shift[:, None]
    return seated


def _between(start: np.ndarray, goal: np.ndarray, count: int) -> np.ndarray:
    """(count, ...): a smooth way from one pose to another, both included."""
    part = np.linspace(0.0, 1.0, max(count, 2), dtype=np.float32)
    part = part * part * (3 - 2 * part)
    return start + (goal - start) * part.reshape(-1, *[1] * start.ndim)
