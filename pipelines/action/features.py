"""What a brain reads of a person: one row of numbers a chunk, made from pose landmarks. Numpy only.

Thirteen joints stand for the body, the head being the middle of the ears. A chunk (a tenth of a second) has the mean
of its frames' poses, and the way that the elbows and wrists went within it, which shows a clap that is too fast for ten
poses a second. Places are relative to the middle of the shoulders and in about metres, by a causal running mean of the
person's size: neither where somebody stands nor how large they are matters, only how they move. The distances between
joints stay as they are however the camera is tilted (Yang et al. 2019, "Make skeleton-based action recognition model
smaller, faster and better").

`extract` reads a whole recording, `FeatureStream` a chunk at a time; a test holds them equal.

Letters: ... any leading axes, F frames, N = 13 joints, D = WIDTH features.
"""

from __future__ import annotations

from collections import deque

import numpy as np

JOINTS = (
    "head", "left shoulder", "right shoulder", "left elbow", "right elbow", "left wrist", "right wrist",
    "left hip", "right hip", "left knee", "right knee", "left ankle", "right ankle",
)  # fmt: skip
N = len(JOINTS)
LANDMARKS = 33
# Of MediaPipe's 33 landmarks; the head is made of the ears, or of what the face shows.
BODY = (11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)
EARS, FACE = (7, 8), tuple(range(11))
SHOULDERS, ARMS, HIPS = (1, 2), (3, 4, 5, 6), (7, 8)

ASPECT = 4 / 3  # width over height of a picture of unknown shape
LAGS = (1, 2, 4, 8)  # chunks
HOLD = 3  # chunks for which a person whom the tracker lost stands still; after that nobody is there
SIZE_CHUNKS = 30  # the window of the running mean of the size
# From here on a joint counts fully; below, the less the tracker trusts it, the less its place counts.
TRUSTED = 0.3

# Bones that tell how many picture heights a metre is: between the shoulders, neck, trunk, upper arms; joint 13 is the
# middle of the shoulders, 14 that of the hips. And their length in an adult, in metres.
BONES = ((1, 0, 13, 1, 2), (2, 13, 14, 3, 4))
METRES = (0.36, 0.30, 0.50, 0.28, 0.28)
SMALLEST = 0.01  # picture heights a metre; a smaller person is noise
LARGEST = 4.0  # features are cut to this

PAIRS = np.triu_indices(N, 1)  # of joints whose distance is told
USUAL = 0.5  # metres between two joints

WIDTH = 2 * N * (1 + len(LAGS)) + N + 2 * len(LAGS) + len(ARMS) + 2 + len(PAIRS[0])


def joints_of(landmarks: np.ndarray, aspect: float = ASPECT) -> np.ndarray:
    """Landmarks (..., 33, 4) -> joints (..., 13, 3) float32: x and y in picture heights, visibility 0..1.

    landmarks: x and y normalised to the picture, z (not used: it is the least reliable), visibility, in MediaPipe's
    order; NaN where unknown, and a known place of unknown visibility counts as visible. aspect: the picture's width
    over its height. ValueError: another shape.
    """
    points = np.asarray(landmarks, np.float32)
    if points.ndim < 2 or points.shape[-2:] != (LANDMARKS, 4):
        raise ValueError(f"landmarks have shape (..., 33, 4), not {points.shape}")
    known = np.isfinite(points[..., 0] + points[..., 1])
    seen = np.where(known, np.nan_to_num(points[..., 3], nan=1.0), 0.0).clip(0.0, 1.0)
    flat = np.concatenate([points[..., :2] * np.array([aspect, 1.0], np.float32), seen[..., None]], axis=-1)
    flat[~known] = (np.nan, np.nan, 0.0)
    ears, face = flat[..., EARS, :], flat[..., FACE, :]
    head = np.where(known[..., EARS].any(axis=-1, keepdims=True), _mean(ears), _mean(face))
    return np.concatenate([head[..., None, :], flat[..., BODY, :]], axis=-2)


def pool(frames: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
    """One chunk: joints of its frames (..., F, 13, 3) -> (..., 13, 4): mean x, y, visibility, and the way gone.

    before: (..., 13, 3), the last pose of the chunk before it. The way is the sum of the steps from frame to frame,
    relative to the middle of the shoulders. NaN for what no frame shows.
    """
    if before is not None:
        frames = np.concatenate([before[..., None, :, :], frames], axis=-3)
    own = frames if before is None else frames[..., 1:, :, :]
    relative = frames[..., :2] - middle(frames)[..., None, :]
    held = _fill(np.moveaxis(relative, -3, 0))
    steps = np.sqrt((np.diff(held, axis=0) ** 2).sum(axis=-1))
    way = np.nan_to_num(steps).sum(axis=0)  # (..., 13)
    return np.concatenate([_mean(own, axis=-3), way[..., None]], axis=-1)


def chunked(frames: np.ndarray, per_chunk: int) -> np.ndarray:
    """A recording's joints (..., F, 13, 3) at a steady rate -> chunks (..., F // per_chunk, 13, 4)."""
    count = frames.shape[-3] // per_chunk
    split = frames[..., : count * per_chunk, :, :]
    split = split.reshape(*frames.shape[:-3], count, per_chunk, *frames.shape[-2:])
    last = _fill(np.moveaxis(split, -3, 0))[-1]
    before = np.concatenate([np.full_like(last[..., :1, :, :], np.nan), last[..., :-1, :, :]], axis=-3)
    return pool(split, before)


def middle(joints: np.ndarray) -> np.ndarray:
    """(..., 13, 2 or more) -> (..., 2): between the shoulders; one shoulder if the other is unknown, else NaN."""
    return _mean(joints[..., SHOULDERS, :2])


def metre(joints: np.ndarray) -> np.ndarray:
    """(..., 13, 2 or more) -> (...): picture heights a metre at the person, NaN if no bone is known.

    A bone that points at the camera looks short, so the longest-looking one tells.
    """
    neck, pelvis = middle(joints), _mean(joints[..., HIPS, :2])
    place = np.concatenate([joints[..., :2], neck[..., None, :], pelvis[..., None, :]], axis=-2)
    bones = place[..., BONES[0], :] - place[..., BONES[1], :]
    return np.fmax.reduce(np.sqrt((bones**2).sum(axis=-1)) / np.array(METRES, np.float32), axis=-1)


class _Scale:
    """The causal running mean of the size of who is there, for any number of streams at once."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.value, self.count = np.ones(shape, np.float32), np.zeros(shape, np.float32)

    def __call__(self, size: np.ndarray, here: np.ndarray) -> np.ndarray:
        self.count = np.where(here, np.minimum(self.count + 1, SIZE_CHUNKS), 0)
        usable = here & np.isfinite(size)
        change = (np.where(usable, size, self.value) - self.value) / np.maximum(self.count, 1)
        self.value = np.maximum(self.value + change, SMALLEST).astype(np.float32)
        return self.value


def _hold(chunk: np.ndarray, held: np.ndarray, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One chunk's pose, with the last one in the place of somebody just lost -> pose, its missing count, here (...)."""
    known = np.isfinite(middle(chunk)).all(axis=-1)
    missing = np.where(known, 0, missing + 1)
    still = held * np.array([1, 1, 1, 0], np.float32)
    return np.where(known[..., None, None], chunk, still), missing, missing <= HOLD


def extract(chunks: np.ndarray) -> np.ndarray:
    """Chunks of whole streams (..., T, 13, 4) as from `pool` -> features (..., T, D) float32, zeros where nobody is.

    Row t depends on chunks up to t only.
    """
    lead, count = chunks.shape[:-3], chunks.shape[-3]
    held, missing = np.full((*lead, N, 4), np.nan, np.float32), np.full(lead, HOLD)
    scale, start = _Scale(lead), np.zeros(lead, int)
    poses, sizes, heres, starts = [], [], [], []
    for t in range(count):
        held, missing, here = _hold(chunks[..., t, :, :], held, missing)
        poses.append(held)
        heres.append(here)
        sizes.append((metre(held), scale(metre(held), here)))
        start = np.where(here, start, t + 1)
        starts.append(start)
    pose, here = np.stack(poses, axis=-3), np.stack(heres, axis=-1)
    now, size = (np.stack(each, axis=-1) for each in zip(*sizes, strict=True))
    first = np.minimum(np.stack(starts, axis=-1), count - 1)
    past = []
    for lag in LAGS:
        index = np.maximum(np.arange(count) - lag, first)
        past.append(np.take_along_axis(pose, index[..., None, None], axis=-3))
    return _rows(pose, past, now, size, here)


class FeatureStream:
    """Features of one stream, a chunk at a time. Its memory is nine poses."""

    def __init__(self) -> None:
        self._held, self._missing = np.full((N, 4), np.nan, np.float32), np.array(HOLD)
        self._scale = _Scale(())
        self._last: np.ndarray | None = None
        self._poses: deque[np.ndarray] = deque(maxlen=LAGS[-1] + 1)

    def step(self, frames: np.ndarray) -> np.ndarray:
        """Joints of the chunk's frames (F, 13, 3), F may be 0 -> its features (D,)."""
        frames = np.asarray(frames, np.float32).reshape(-1, N, 3)
        if len(frames):
            chunk, self._last = pool(frames, self._last), _fill(frames)[-1]
        else:
            chunk, self._last = np.full((N, 4), np.nan, np.float32), None
        self._held, self._missing, here = _hold(chunk, self._held, self._missing)
        now = metre(self._held)
        size = self._scale(now, here)
        if not here:
            self._poses.clear()
            return np.zeros(WIDTH, np.float32)
        self._poses.append(self._held)
        past = [self._poses[max(-1 - lag, -len(self._poses))] for lag in LAGS]
        return _rows(self._held, past, now, size, here)


def _rows(pose: np.ndarray, past: list[np.ndarray], now: np.ndarray, size: np.ndarray, here: np.ndarray) -> np.ndarray:
    """Features from the pose (..., 13, 4), those of LAGS chunks ago, and the size now and on average (...)."""
    each = size[..., None, None]
    trust = _trust(pose)
    place = (pose[..., :2] - middle(pose)[..., None, :]) / each
    parts = [place * trust[..., None] * 2.0]
    roots = []
    for lag, old in zip(LAGS, past, strict=True):
        moved = place - (old[..., :2] - middle(old)[..., None, :]) / each
        parts.append(moved * np.minimum(trust, _trust(old))[..., None] * (5.0 / lag**0.5))
        roots.append((middle(pose) - middle(old)) / size[..., None] * (5.0 / lag**0.5))
    flat = [part.reshape(*part.shape[:-2], -1) for part in parts]
    way = pose[..., ARMS, 3] / size[..., None] * trust[..., ARMS] * 4.0
    change = np.log(np.maximum(now, SMALLEST) / size) * 3.0
    ends = [np.nan_to_num(change)[..., None], np.ones_like(size)[..., None]]
    one, other = (place[..., joints, :] for joints in PAIRS)
    apart = (np.sqrt(((one - other) ** 2).sum(axis=-1)) - USUAL) * 2.0
    apart = apart * np.minimum(trust[..., PAIRS[0]], trust[..., PAIRS[1]])
    rows = np.concatenate([*flat, pose[..., 2], *roots, way, *ends, apart], axis=-1)
    rows = np.nan_to_num(rows, posinf=LARGEST, neginf=-LARGEST).clip(-LARGEST, LARGEST)
    return (rows * np.asarray(here)[..., None]).astype(np.float32)


def _trust(pose: np.ndarray) -> np.ndarray:
    return np.clip(np.nan_to_num(pose[..., 2]) / TRUSTED, 0.0, 1.0)


def _mean(values: np.ndarray, axis: int = -2) -> np.ndarray:
    """The mean of what is known along an axis, NaN where nothing is, without numpy's warning."""
    known = np.isfinite(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _fill(frames: np.ndarray) -> np.ndarray:
    """(F, ...) with unknown numbers replaced by the last known ones before them."""
    known = np.isfinite(frames)
    index = np.where(known, np.arange(len(frames)).reshape(-1, *[1] * (frames.ndim - 1)), 0)
    return np.take_along_axis(frames, np.maximum.accumulate(index, axis=0), axis=0)
