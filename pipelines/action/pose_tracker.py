"""Follow one person through a stream: find them once, then crop each frame by where the last one had them.

Bazarevsky et al. 2020, section 3: the detector, which looks at the whole picture, runs only while nobody is followed.
Where five people are in the picture the largest is taken, and stays taken until the network no longer sees anybody in
the crop; after a short loss the same place is preferred to a larger person.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pipelines.common.images import check_array

from . import pose_detector, pose_landmarks
from .clock import LATE, seconds
from .pose_detector import Person
from .pose_network import Networks, shared
from .pose_region import Region, between
from .pose_smoothing import Steady

PRESENT = 0.5  # presence above which there is a person in the crop (ThresholdingCalculator of MediaPipe's graph)
REMEMBERED = 2.0  # seconds for which a lost person's place is preferred to larger people
PAUSE = 1.0  # seconds without a frame after which the last crop says nothing: the person is looked for anew

Choice = Literal["largest", "surest"]


@dataclass(frozen=True)
class Pose:
    """landmarks: (33, 4) float32 in MediaPipe's order: x and y normalised to the picture (a place outside it is below 0
    or above 1), z by the picture's width with the hips at about 0 and what is nearer below, visibility in [0, 1].
    presence: probability that there is a person, above 0.5. region: the crop that was looked at. found: whether the
    detector had to look for the person in this frame."""

    landmarks: np.ndarray
    presence: float
    region: Region
    found: bool = False


@dataclass
class Tracker:
    """Landmarks of one stream. It holds the stream's state, so each visitor needs their own, used by one thread at a
    time; the networks are shared by all.

    networks: None takes the catalogue's, loaded on first use. smooth: without it, landmarks are as the network says.
    choice: who is followed of several people; "surest" is what MediaPipe does, for comparisons.
    """

    networks: Networks | None = None
    smooth: bool = True
    choice: Choice = "largest"
    _region: Region | None = None  # the next crop; None: look for somebody
    _steady: Steady = field(default_factory=Steady)  # of who is followed
    _pose: Pose | None = None
    _time: float | None = None
    _size: tuple[int, ...] = ()
    _last: Region | None = None  # where somebody was at _seen
    _seen: float = -math.inf

    def reset(self) -> None:
        """Forget the person and the clock."""
        self._forget()
        self._last, self._seen, self._time = None, -math.inf, None

    def _forget(self) -> None:
        self._region, self._pose = None, None

    def track(self, frame: np.ndarray, timestamp: float) -> Pose | None:
        """The followed person in this frame; None where nobody is.

        frame: (H, W, 3) uint8 RGB, of any size; another size than before means another picture, in which the person is
        looked for anew. timestamp: seconds, growing. A time that repeats, or goes back by up to a second, is of a frame
        that came too late to be followed: it is not looked at, and the last answer is given again. A time further back
        begins a new stream. UserError: no such frame, or a time that is no finite number.
        """
        picture, now = check_array(frame), seconds(timestamp)
        if self._time is not None and now <= self._time:
            if now >= self._time - LATE:
                return self._pose
            self.reset()
        if picture.shape != self._size:
            self._forget()
            self._last, self._size = None, picture.shape
        if self._time is not None and now - self._time > PAUSE:
            self._forget()
        self._time = now
        self._pose = self._look(picture, now)
        return self._pose

    def _look(self, picture: np.ndarray, now: float) -> Pose | None:
        networks = self.networks = self.networks or shared()
        region, found = self._region, self._region is None
        if region is None:
            region = self._find(networks, picture, now)
        if region is None:
            return None
        raw = pose_landmarks.find(networks.landmarks, picture, region)
        size = between(raw.anchors[0], raw.anchors[1], margin=1.0).side
        if not (raw.presence > PRESENT and size > 0 and np.isfinite(raw.points).all()):
            self._region = None  # the next frame is searched
            return None
        if found:
            self._steady = Steady()
        points, seen = raw.points, raw.seen
        if self.smooth:
            points, seen = self._steady.points(points, size, now), self._steady.seen(seen)
        hips, rim = self._steady.anchors(raw.anchors, size, now)
        following = between(hips, rim)
        self._region = following if following.usable(*picture.shape[:2]) else None
        self._last, self._seen = region, now
        return Pose(_normalised(points, seen, picture), raw.presence, region, found)

    def _find(self, networks: Networks, picture: np.ndarray, now: float) -> Region | None:
        people = pose_detector.detect(networks.detector, picture)
        lost = self._last if now - self._seen <= REMEMBERED else None
        chosen = choose(people, lost, self.choice)
        return None if chosen is None else chosen.region


def choose(people: list[Person], lost: Region | None, choice: Choice = "largest") -> Person | None:
    """Who is followed from now on: who is within half a side of where the lost person was, nearest first, else the
    largest, or the surest. None of nobody."""
    if not people:
        return None
    if choice == "surest":
        return people[0]
    if lost is not None:
        near = min(people, key=lambda person: _distance(person.region, lost))
        # As large as before, too: a bystander behind is not the person.
        if _distance(near.region, lost) < lost.side / 2 and near.region.side > lost.side / 2:
            return near
    return max(people, key=lambda person: person.region.side)


def _normalised(points: np.ndarray, seen: np.ndarray, picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    landmarks = np.empty((pose_landmarks.COUNT, 4), np.float32)
    landmarks[:, :3] = points / (width, height, width)
    landmarks[:, 3] = seen
    return landmarks


def _distance(a: Region, b: Region) -> float:
    return math.hypot(a.x - b.x, a.y - b.y)
