"""What a camera and a pose tracker make of a body: places on a picture that jitter, hide, lag and get lost.

Letters: B streams, F frames at 30 a second, N = 13 joints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .skeletons import ANKLES, HIPS, KNEES, mirror, rotation, view

# How far each joint of a tracked person strays in a picture, in metres, by what BlazePose does on real clips.
JITTER = np.array([0.010, 0.012, 0.012, 0.022, 0.022, 0.032, 0.032, 0.014, 0.014, 0.02, 0.02, 0.03, 0.03], np.float32)
SIDES = np.array([0, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1], np.float32)  # left, right


@dataclass(frozen=True)
class Camera:
    """How differently cameras see. Angles in degrees (one standard deviation), shares in [0, 1].

    yaw: of most people; a third is turned by up to `turned`. pitch, roll: of the camera. nearest, farthest: metres.
    stretch: of the picture's unknown shape, as the logarithm. body: of the joints' mean places, in metres, as people
    differ. found: how far the joints may go from where the Kinect sees them (0) to where BlazePose does (1), and
    beyond. jitter: times JITTER. hidden: share of streams whose legs are not in the picture. flat: share in which every
    joint counts as visible. mirrored: share. lost: dropouts a second. rates: whether cameras take 10 to 30 frames a
    second and filters lag, or all of them take 30.
    """

    yaw: float = 15.0
    turned: float = 65.0
    pitch: float = 9.0
    roll: float = 4.0
    nearest: float = 1.1
    farthest: float = 4.5
    stretch: float = 0.15
    body: float = 0.025
    found: float = 1.2
    jitter: float = 1.0
    hidden: float = 0.5
    flat: float = 0.25
    mirrored: float = 0.5
    lost: float = 0.02
    rates: bool = True


# Somebody stands in front of a good camera, and the tracker, which is the Kinect, sees every joint.
STUDIO = Camera(
    yaw=8.0, turned=0.0, pitch=4.0, roll=1.5, nearest=2.0, farthest=3.5, stretch=0.0, body=0.0, found=0.0, jitter=0.4,
    hidden=0.0, flat=1.0, mirrored=0.0, lost=0.0, rates=False,
)  # fmt: skip


def film(
    rng: np.random.Generator, points: np.ndarray, movements: np.ndarray, camera: Camera
) -> tuple[np.ndarray, np.ndarray]:
    """Bodies (B, F, 13, 3) in metres, their movements (B, F) -> joints (B, F, 13, 3) as features.joints_of gives, and
    the movements as the picture shows them."""
    count = len(points)
    points = _as_found(points, rng.uniform(0.0, camera.found, (count, 1, 1, 1)).astype(np.float32))
    shape = np.exp(rng.normal(0.0, 0.08, (count, 1, 1, 3))).astype(np.float32) if camera.body else 1.0
    offset = rng.normal(0.0, max(camera.body, 1e-9), (count, 1, points.shape[2], 3)).astype(np.float32)
    wide = 1.0 + (rng.uniform(0.0, 0.4, (count, 1, 1, 1)) if camera.body else 0.0)
    points = points * shape + offset
    hips = points[:, :, HIPS]
    centre = hips.mean(axis=2, keepdims=True)
    points[:, :, HIPS] = centre + (hips - centre) * wide
    yaw = np.radians(rng.normal(0.0, camera.yaw, count))
    yaw = np.where(rng.random(count) < 0.35, yaw + np.radians(rng.uniform(-1, 1, count) * camera.turned), yaw)
    pitch, roll = np.radians(rng.normal(0.0, camera.pitch, count)), np.radians(rng.normal(0.0, camera.roll, count))
    distance = np.exp(rng.uniform(np.log(camera.nearest), np.log(camera.farthest), count))
    place = view(points, rotation(yaw, pitch, roll), distance) * distance[:, None, None, None]  # about metres again
    place[..., 0] *= np.exp(rng.normal(0.0, camera.stretch, (count, 1, 1))) if camera.stretch else 1.0
    seen = _visibility(rng, yaw, points.shape[:2], camera)
    _hide_legs(rng, place, seen, camera.hidden)
    joints = np.concatenate([place, seen[..., None]], axis=-1).astype(np.float32)
    return track(rng, joints, movements, camera)


def _as_found(points: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Bodies (B, F, 13, 3) with the Kinect's hips and head moved by `part` (B, 1, 1, 1) to where BlazePose finds them:
    its hips are a fifth of the thigh lower, the middle of its ears a quarter of the way nearer to the shoulders. With
    the Kinect's own, a trunk is but 1.3 times as long as neck and head; in real clips it is twice to three times."""
    points = points.copy()
    hips, knees, neck = points[:, :, HIPS], points[:, :, KNEES], points[:, :, 1:3].mean(axis=2, keepdims=True)
    points[:, :, HIPS] = hips + 0.2 * part * (knees - hips)
    points[:, :, :1] += 0.25 * part * (neck - points[:, :, :1])
    return points


def track(
    rng: np.random.Generator, joints: np.ndarray, movements: np.ndarray, camera: Camera, jitter: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Joints (B, F, 13, 3) with places in about metres -> the same as a tracker sees them: with jitter that lasts some
    frames, lag, mirrored pictures, lost people, and a lower frame rate (NaN where there was no frame)."""
    count = len(joints)
    amount = camera.jitter * jitter * np.exp(rng.normal(-0.2, 0.6, (count, 1, 1)))
    joints[..., :2] += _wobble(rng, joints.shape[:3]) * (amount * JITTER)[..., None]
    if camera.jitter >= 1.0:
        _glitch(rng, joints)
    lagging = rng.random(count) < 0.4 if camera.rates else np.zeros(count, bool)
    if lagging.any():
        joints[lagging] = _smooth(joints[lagging], rng.uniform(0.35, 0.8, (int(lagging.sum()), 1, 1)))
    turned = rng.random(count) < camera.mirrored
    movements = movements.copy()
    joints[turned], movements[turned] = mirror(joints[turned], movements[turned])
    for row in range(count):
        for _ in range(rng.poisson(camera.lost * joints.shape[1] / 30)):
            at = int(rng.integers(joints.shape[1]))
            joints[row, at : at + int(rng.integers(3, 24))] = np.nan
    if camera.rates:
        joints[~_captured(rng, count, joints.shape[1])] = np.nan
    return joints, movements


def _visibility(rng: np.random.Generator, yaw: np.ndarray, shape: tuple[int, int], camera: Camera) -> np.ndarray:
    """(B, F, 13): high for the trunk, lower and changing for arms and legs and for the side that is turned away."""
    count, frames = shape
    base = np.array([1, 1, 1, 0.85, 0.85, 0.8, 0.8, 0.97, 0.97, 0.75, 0.75, 0.6, 0.6], np.float32)
    spread = np.array([0, 0, 0, 0.15, 0.15, 0.25, 0.25, 0.03, 0.03, 0.3, 0.3, 0.35, 0.35], np.float32)
    away = np.maximum(np.sin(yaw)[:, None] * -SIDES, 0.0) * 6 * spread  # of a full turn, nothing is left
    level = base + spread * rng.normal(0.0, 0.8, (count, len(base))) - away
    slow = _wobble(rng, (count, frames, len(base)))[..., 0] * spread * 0.35
    seen = np.clip(level[:, None] + slow, 0.02, 1.0)
    flat = rng.random(count) < camera.flat
    seen[flat] = 1.0
    return seen.astype(np.float32)


def _hide_legs(rng: np.random.Generator, place: np.ndarray, seen: np.ndarray, share: float) -> None:
    """Below the picture's lower edge a tracker guesses, and says that it does; or says nothing (visibility 0)."""
    for row in np.flatnonzero(rng.random(len(place)) < share):
        cut = rng.choice(4, p=(0.2, 0.35, 0.3, 0.15))
        joints = list((ANKLES, ANKLES + KNEES, ANKLES + KNEES, ANKLES + KNEES + HIPS)[cut])
        if cut == 3:
            seen[row][:, joints] = rng.uniform(0.0, 0.6)
        else:
            seen[row][:, joints] = rng.uniform(0.0, 0.15)
        drift = _wobble(rng, (1, place.shape[1], len(joints)), slow=True)[0] * rng.uniform(0.0, 0.15)
        place[row][:, joints] += drift + rng.normal(0.0, 0.1, (len(joints), 2)).astype(np.float32)


def _wobble(rng: np.random.Generator, shape: tuple[int, int, int], slow: bool = False) -> np.ndarray:
    """(B, F, N, 2) noise of variance about one, of which a part lasts for a few frames: a box over white noise."""
    count, frames, joints = shape
    width = 45 if slow else int(rng.integers(3, 9))
    white = rng.standard_normal((count, frames + width, joints, 2), dtype=np.float32)
    total = np.cumsum(white, axis=1)
    lasting = (total[:, width:] - total[:, :-width]) / np.float32(width**0.5)
    return lasting if slow else 0.85 * lasting + 0.5 * white[:, width:]


def _glitch(rng: np.random.Generator, joints: np.ndarray) -> None:
    """Now and then a hand is found where it isn't, for some frames."""
    count, frames = joints.shape[:2]
    for _ in range(rng.poisson(count * frames / 30 * 0.1)):
        row, at, wrist = int(rng.integers(count)), int(rng.integers(frames)), int(rng.integers(5, 7))
        span = slice(at, at + int(rng.integers(1, 7)))
        joints[row, span, wrist, :2] += rng.normal(0.0, 0.2, 2).astype(np.float32)
        joints[row, span, wrist, 2] *= np.float32(rng.uniform(0.1, 0.7))


def _smooth(joints: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Places follow the true ones by a share `keep` (B, 1, 1) a frame, as filters against jitter make them."""
    smooth = joints.copy()
    keep = keep.astype(np.float32)
    for frame in range(1, joints.shape[1]):
        before, now = smooth[:, frame - 1, :, :2], joints[:, frame, :, :2]
        mixed = before + (now - before) * keep
        smooth[:, frame, :, :2] = np.where(np.isfinite(mixed), mixed, now)
    return smooth


def _captured(rng: np.random.Generator, count: int, frames: int) -> np.ndarray:
    """(B, F): which frames of 30 a second a camera or a slow machine took."""
    every = np.arange(frames)
    masks = []
    for rate in rng.choice((30, 24, 20, 15, 10), count, p=(0.4, 0.15, 0.15, 0.2, 0.1)):
        kept = np.diff(np.floor((every + rng.random()) * rate / 30), prepend=-1) > 0
        masks.append(kept & (rng.random(frames) > 0.02))
    return np.stack(masks)
