"""Made-up recordings for tests: a person of metres who moves one hand, sits down, stands up."""

import numpy as np

from pipelines.action.config import CLASSES
from pipelines.action.skeletons import ACTIONS, Body, Film

# Facing the camera: x to the subject's right, y up.
STANDING = np.array([
    (0, 1.6, 0), (-0.18, 1.4, 0), (0.18, 1.4, 0), (-0.22, 1.12, 0), (0.22, 1.12, 0), (-0.22, 0.87, 0), (0.22, 0.87, 0),
    (-0.1, 0.9, 0), (0.1, 0.9, 0), (-0.1, 0.48, 0), (0.1, 0.48, 0), (-0.1, 0.05, 0), (0.1, 0.05, 0),
], np.float32)  # fmt: skip
SITTING = STANDING + np.array([(0, -0.4, 0)] * 9 + [(0, 0, -0.4)] * 2 + [(0, 0, -0.4)] * 2, np.float32)
FRAMES = 45


def body(action: int, subject: int, seed: int = 0) -> Body:
    rng = np.random.default_rng((action, subject, seed))
    name = ACTIONS.get(action, "background")
    part = np.clip((np.arange(FRAMES) - 8) / 20, 0, 1).astype(np.float32)[:, None, None]
    if name == "sit down":
        points = STANDING + (SITTING - STANDING) * part
    elif name == "stand up":
        points = SITTING + (STANDING - SITTING) * part
    else:
        points = np.repeat(STANDING[None], FRAMES, axis=0)
        goal = rng.uniform((0.0, 1.0, -0.4), (0.5, 1.7, -0.1)).astype(np.float32)
        swing = np.sin(np.linspace(0, np.pi * (1 + action % 5), FRAMES)).astype(np.float32)[:, None]
        points[:, 6] += (goal - points[:, 6]) * np.abs(swing)
        points[:, 4] += (goal - points[:, 4]) * 0.4 * np.abs(swing)
    return Body(points.astype(np.float32), CLASSES.index(name), action, subject, 8, 34)


def people(subjects=(1, 3)) -> list[Body]:
    return [body(action, subject) for subject in subjects for action in range(1, 28)]


def filmed(name: str, label: str, frames: int = 30) -> Film:
    rng = np.random.default_rng(len(name))
    place = np.array([0.5, 0.9]) + STANDING[:, :2] * np.array([-0.4, -0.4])
    place = place + np.cumsum(rng.normal(0, 0.003, (frames, 13, 2)), axis=0)
    joints = np.concatenate([place, np.full((frames, 13, 1), 0.9)], axis=-1).astype(np.float32)
    return Film(joints, CLASSES.index(label), name)


def clips() -> list[Film]:
    kinds = (("wave", "wave"), ("clap", "clap"), ("golf", "background"), ("sit", "sit down"), ("stand", "stand up"))
    return [filmed(f"{kind}/some{k}_{kind}_u_cm_np1_fr_med_0.avi", label) for kind, label in kinds for k in range(12)]
