"""Batches to train on: composed streams of UTD-MHAD's people and clips of JHMDB, as features and movements of chunks.

Letters: B streams, T chunks, F frames, N = 13 joints, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from .camera import Camera, film, track
from .config import BACKGROUND, CHUNKS_PER_SECOND
from .features import chunked, extract, metre
from .skeletons import ANKLES, CLASS_OF, FRAMES_PER_SECOND, KNEES, Body, Film
from .streams import Composer, Script

PER_CHUNK = FRAMES_PER_SECOND // CHUNKS_PER_SECOND
UNCOUNTED = -1
LIMBS = ((1, 3, 5), (2, 4, 6), (7, 9, 11), (8, 10, 12))  # arms and legs, from the trunk outwards
# Milder than what `score` calls hard: the wider cameras vary, the slower is what most of them show learnt.
CAMERA = Camera(
    yaw=12.0, turned=50.0, pitch=7.0, roll=3.0, nearest=1.3, stretch=0.1, body=0.02, hidden=0.4, flat=0.4, mirrored=0.35
)
SCRIPT = Script(seated=0.2, fidget=0.3)


@dataclass(frozen=True)
class Recipe:
    """What a batch is made of.

    streams, chunks: a draw. draws: batches of windows that are taken from one draw. films: share of its streams that
    are JHMDB clips. targets: share of those clips that are of a class of ours. sure: share of a clip's first two chunks
    that are counted, in which a movement that was cut out of a film is hardly to be told. calm: how often a window ends
    in background, against one that ends in an action. noise: of the features. idle: share of the composed streams in
    which somebody only sits and reads.
    """

    script: Script = SCRIPT
    camera: Camera = CAMERA
    streams: int = 24
    chunks: int = 96
    draws: int = 6
    films: float = 0.4
    targets: float = 0.5
    sure: float = 0.4
    calm: float = 0.4
    noise: float = 0.03
    idle: float = 0.3


@dataclass(frozen=True)
class Draw:
    """features (B, T, D) float32; movements (B, T) int64, see skeletons.MOVEMENTS, -1 where a chunk is not counted."""

    features: np.ndarray
    movements: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """The classes of the movements, (B, T) int64, -1 where a chunk is not counted."""
        return classes(self.movements)


def classes(movements: np.ndarray) -> np.ndarray:
    """The class of each movement, UNCOUNTED where it is."""
    return np.where(movements == UNCOUNTED, UNCOUNTED, CLASS_OF[movements])


class Source:
    """Draws streams from bodies and films, and windows from streams; the generator alone decides what is drawn."""

    def __init__(self, bodies: Sequence[Body], films: Sequence[Film], recipe: Recipe) -> None:
        self.recipe = recipe
        self.composer = Composer(bodies, recipe.script)
        self.reader = Composer(bodies, replace(recipe.script, idle=True))
        self.films: dict[int, list[Film]] = {}
        for each in films:
            self.films.setdefault(each.label, []).append(each)

    def draw(self, rng: np.random.Generator) -> Draw:
        """Streams with every chunk's movement."""
        recipe = self.recipe
        filmed = round(recipe.streams * recipe.films) if self.films else 0
        parts = []
        if recipe.streams > filmed:
            parts.append(self._composed(rng, recipe.streams - filmed))
        if filmed:
            parts.append(self._filmed(rng, filmed))
        joints, movements = (np.concatenate(each) for each in zip(*parts, strict=True))
        features = extract(chunked(joints, PER_CHUNK))
        if recipe.noise:
            features += rng.standard_normal(features.shape, dtype=np.float32) * recipe.noise * (features != 0)
        return Draw(features, movements[:, PER_CHUNK // 2 :: PER_CHUNK])

    def _composed(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        kinds = [self.reader if rng.random() < self.recipe.idle else self.composer for _ in range(count)]
        takes = [each.compose(rng, self.recipe.chunks * PER_CHUNK) for each in kinds]
        points, movements = (np.stack(each) for each in zip(*takes, strict=True))
        return film(rng, points, movements, self.recipe.camera)

    def _filmed(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        frames = self.recipe.chunks * PER_CHUNK
        joints = np.full((count, frames, 13, 3), np.nan, np.float32)
        movements = np.zeros((count, frames), int)
        for row in range(count):
            at = int(rng.integers(0, 24))
            while at < frames:
                clip = self._pick(rng)
                pose = picture(rng, clip.joints)
                end = min(at + len(pose), frames)
                joints[row, at:end] = pose[: end - at]
                movements[row, at:end] = clip.movement
                if clip.label != BACKGROUND and rng.random() > self.recipe.sure:
                    movements[row, at : at + 2 * PER_CHUNK] = UNCOUNTED
                movements[row, end : end + 6 * PER_CHUNK] = UNCOUNTED  # where the film was cut, nobody can know
                at = end + int(rng.integers(12, 30))  # long enough for nobody to be there
        return track(rng, joints, movements, self.recipe.camera, jitter=0.4)

    def _pick(self, rng: np.random.Generator) -> Film:
        wanted = sorted(label for label in self.films if label != BACKGROUND)
        label = BACKGROUND
        if wanted and (rng.random() < self.recipe.targets or BACKGROUND not in self.films):
            label = int(rng.choice(wanted))
        clips = self.films[label]
        return clips[int(rng.integers(len(clips)))]


def windows(
    rng: np.random.Generator, draw: Draw, count: int, past: int, future: int, calm: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`count` windows of `past` chunks -> features (count, past, D), movements of these (count, past) and labels of
    `future` chunks after them (count, future), and hidden (count, past): True where the stream had not begun, movement
    -1."""
    of_draw = draw.labels
    rows, length = of_draw.shape
    weight = np.where(of_draw == BACKGROUND, calm, 1.0) * (of_draw != UNCOUNTED)
    # Where nobody is to be seen there is little to learn.
    weight = weight * np.where((draw.features == 0).all(axis=-1), 0.15, 1.0)
    weight[:, length - future :] = 0.0
    chosen = rng.choice(rows * length, count, p=(weight / weight.sum()).ravel())
    row, end = np.divmod(chosen, length)
    index = end[:, None] + np.arange(1 - past, 1)
    hidden = index < 0
    features = draw.features[row[:, None], np.maximum(index, 0)] * ~hidden[..., None]
    ahead = of_draw[row[:, None], end[:, None] + np.arange(1, future + 1)]
    movements = np.where(hidden, UNCOUNTED, draw.movements[row[:, None], np.maximum(index, 0)])
    return features, movements, ahead, hidden


def picture(rng: np.random.Generator, joints: np.ndarray) -> np.ndarray:
    """A filmed clip (F, 13, 3), in about metres, as another camera may have shown it, and of somebody else: faster or
    slower, tilted, of another shape, drifting, with other limbs, with hidden legs. There are 20 to 30 clips of a class,
    and a network soon knows each by how the person in it stands."""
    count = max(6, round(len(joints) * float(np.exp(rng.normal(0.0, 0.25)))))
    pose = joints[np.rint(np.linspace(0, len(joints) - 1, count)).astype(int)].copy()
    sizes = metre(pose)
    known = sizes[np.isfinite(sizes)]
    place = pose[..., :2] / max(float(np.median(known)) if len(known) else 1.0, 0.02)
    place = place @ _turn(rng.normal(0.0, 8.0)).T * np.exp(rng.normal(0.0, 0.18, 2))
    place = place + np.linspace(0, 1, count)[:, None, None] * rng.normal(0.0, 0.08, 2)
    # Two people differ in their bones, and a tracker in where it thinks that a joint is.
    pose[..., :2] = _limbs(rng, place) + rng.normal(0.0, 0.02, (1, 13, 2))
    if rng.random() < 0.45:
        pose[:, ANKLES + KNEES, 2] *= rng.uniform(0.0, 0.3)
    return pose


def _limbs(rng: np.random.Generator, place: np.ndarray) -> np.ndarray:
    """Places (F, 13, 2) with arms and legs longer or shorter, and bent otherwise, each bone by the same in every
    frame."""
    moved = place.copy()
    for limb in LIMBS:
        for joint, end in pairwise(limb):
            bone = (place[:, end] - place[:, joint]) * np.exp(rng.normal(0.0, 0.12))
            moved[:, end] = moved[:, joint] + bone @ _turn(rng.normal(0.0, 8.0)).T
    return moved


def _turn(degrees: float) -> np.ndarray:
    """(2, 2), a rotation."""
    angle = np.radians(degrees)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
