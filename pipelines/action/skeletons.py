"""Recorded skeletons and poses, as thirteen joints: what the training streams are made of. Numpy only.

UTD-MHAD (Chen et al., ICIP 2015) has bodies in metres, which a virtual camera looks at from anywhere; JHMDB (Jhuang et
al., ICCV 2013) has the landmarks that BlazePose found in real pictures, which can only be moved as pictures can.

Letters: B streams, F frames, N = 13 joints as in features.JOINTS.
"""

from __future__ import annotations

import csv
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .config import BACKGROUND, CLASSES
from .features import joints_of

FRAMES_PER_SECOND = 30
# The Kinect's joint in the place of each of ours. Its head is the middle of the head, as the middle of the ears is.
KINECT = (0, 4, 8, 5, 9, 6, 10, 12, 16, 13, 17, 14, 18)
MIRRORED = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11)
HIPS, KNEES, ANKLES = (7, 8), (9, 10), (11, 12)

# UTD-MHAD's number of an action -> our class; the others are background.
ACTIONS = {
    1: "swipe left", 2: "swipe right", 3: "wave", 4: "clap", 5: "throw", 6: "arm cross", 9: "draw circle",
    10: "draw circle", 13: "punch", 16: "arm curl", 18: "push", 19: "knock", 22: "jog in place", 24: "stand up",
    25: "sit down", 27: "squat",
}  # fmt: skip
# JHMDB's classes that are ours too. People who run have the legs and arms of somebody who jogs in place.
FILMED = {
    "wave": "wave", "clap": "clap", "sit": "sit down", "stand": "stand up", "throw": "throw", "run": "jog in place",
}  # fmt: skip
KINDS = (  # of JHMDB, in the order of their numbers here
    "brush_hair", "catch", "clap", "climb_stairs", "golf", "jump", "kick_ball", "pick", "pour", "pullup", "push", "run",
    "shoot_ball", "shoot_bow", "shoot_gun", "sit", "stand", "swing_baseball", "throw", "walk", "wave",
)  # fmt: skip
# A movement is finer than a class: 0 is none, then UTD-MHAD's actions by their numbers, then JHMDB's kinds. Training
# tells movements apart too, since what is background to us has much in common with what is not.
FIRST_KIND = 28
MOVEMENTS = FIRST_KIND + len(KINDS)
CLASS_OF = np.full(MOVEMENTS, BACKGROUND)  # of each movement
CLASS_OF[list(ACTIONS)] = [CLASSES.index(name) for name in ACTIONS.values()]
CLASS_OF[[FIRST_KIND + KINDS.index(kind) for kind in FILMED]] = [CLASSES.index(name) for name in FILMED.values()]
TURNED = {1: 2, 2: 1, 9: 10, 10: 9}  # movements that a mirror makes another one of: swipes, circles either way round


@dataclass(frozen=True)
class Body:
    """One recorded action of one person: points (F, 13, 3) in metres, x to the subject's right, y up, z away from the
    camera, with the feet near the origin in the first frame; the class; and the frames [start, end) of the action."""

    points: np.ndarray
    label: int
    action: int  # its movement
    subject: int
    start: int
    end: int


@dataclass(frozen=True)
class Film:
    """One real clip: joints (F, 13, 3) as of features.joints_of; the class of all its frames; JHMDB's name of it."""

    joints: np.ndarray
    label: int
    name: str

    @property
    def movement(self) -> int:
        return FIRST_KIND + KINDS.index(self.name.split("/")[0])


def bodies(folder: Path) -> list[Body]:
    """The sequences of UTD-MHAD from skeletons.npz and labels.csv."""
    found = []
    with np.load(folder / "skeletons.npz") as file, (folder / "labels.csv").open(newline="") as table:
        for row in csv.DictReader(table):
            points = file[row["key"]][:, KINECT].astype(np.float32)
            feet = points[0, ANKLES, :].mean(axis=0)
            action = int(row["action_id"])
            label = CLASSES.index(ACTIONS[action]) if action in ACTIONS else BACKGROUND
            span = int(row["active_start_auto"]), int(row["active_end_auto"]) + 1
            found.append(Body(points - feet, label, action, int(row["subject"]), *span))
    return found


def films(folder: Path) -> list[Film]:
    """The poses of JHMDB from jhmdb_pose.npz, 320x240; clips in which nobody was ever found are left out."""
    found = []
    with np.load(folder / "jhmdb_pose.npz") as file:
        for name in sorted(file.files):
            kind = name.split("/")[0]
            label = CLASSES.index(FILMED[kind]) if kind in FILMED else BACKGROUND
            joints = joints_of(file[name])
            if np.isfinite(joints[..., 0]).any():
                found.append(Film(joints, label, name))
    return found


def fold(name: str, folds: int) -> int:
    """Which of `folds` parts a film belongs to: clips cut from one video stay together, whatever else is there."""
    kind, file = name.split("/")
    video = re.sub("[^a-z0-9]", "", re.split(f"_{kind}_[fhlu]_[cn]m_", file)[0].lower())
    return int.from_bytes(hashlib.sha256(video.encode()).digest()[:8], "big") % folds


def mirror(points: np.ndarray, movements: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bodies or pictures (..., 13, 3) seen in a mirror, and what the movements, of any shape, are there."""
    flipped = points[..., MIRRORED, :] * np.array([-1, 1, 1], np.float32)
    swapped = movements.copy()
    for one, other in TURNED.items():
        swapped[movements == one] = other
    return flipped, swapped


def rotation(yaw: np.ndarray, pitch: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """Radians (B,) each -> (B, 3, 3): the body turns about the vertical by yaw, the camera looks down by pitch and is
    tilted by roll."""
    (cy, cp, cr), (sy, sp, sr) = (tuple(f(each) for each in (yaw, pitch, roll)) for f in (np.cos, np.sin))
    one, zero = np.ones_like(yaw), np.zeros_like(yaw)
    turn = np.stack([cy, zero, sy, zero, one, zero, -sy, zero, cy], axis=-1)
    nod = np.stack([one, zero, zero, zero, cp, -sp, zero, sp, cp], axis=-1)
    tilt = np.stack([cr, -sr, zero, sr, cr, zero, zero, zero, one], axis=-1)
    a, b, c = (each.reshape(-1, 3, 3) for each in (tilt, nod, turn))
    return (a @ b @ c).astype(np.float32)


def view(points: np.ndarray, turn: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Bodies (B, F, N, 3) in metres, turned by (B, 3, 3) about their middle and seen from `distance` (B,) metres ->
    (B, F, N, 2) on the picture, y down, as an unmirrored picture has it, at a size that means nothing."""
    pivot = points[..., HIPS, :].mean(axis=(1, 2), keepdims=True)
    seen = np.einsum("bij,bfnj->bfni", turn, points - pivot)
    depth = np.maximum(seen[..., 2] + distance[:, None, None], 0.3)
    return -seen[..., :2] / depth[..., None]
