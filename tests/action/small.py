"""A catalogue with one tiny brain family for the features of real streams, in files as they are shipped."""

from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import save_file

from pipelines.action import weights
from pipelines.action.config import BRAINS, FEATURES, PRESETS, TINY, preset
from pipelines.action.features import BODY
from pipelines.common import catalogue
from pipelines.common.catalogue import Entry, File
from tests.action.bodies import STANDING
from tests.alone import alone

LABELS = ("background", "a", "b", "c", "d")


def small(tmp_path, monkeypatch, brains=BRAINS, **facts):
    """The entry "small", alone in the catalogue."""
    monkeypatch.setitem(PRESETS, "small", replace(TINY, in_features=FEATURES))
    for brain in ("linear", "gru", "none"):
        monkeypatch.setitem(PRESETS, f"small-{brain}", replace(PRESETS[f"tiny-{brain}"], in_features=FEATURES))
    monkeypatch.setattr("pipelines.common.checkpoint.WEIGHTS", tmp_path)
    for k, brain in enumerate(brains):
        with torch.random.fork_rng():
            torch.manual_seed(k)
            network = weights.build(preset("small", brain))
        save_file(network.state_dict(), tmp_path / f"{brain}.safetensors")
    files = tuple(File(brain, f"{brain}.safetensors") for brain in brains)
    entry = Entry(
        "small", "action", "brain", "Small", "oadtr", "small", "bundled", "own", "-", files,
        facts={"labels": list(LABELS), **facts},
    )  # fmt: skip
    (pose,) = catalogue.entries("action", "pose")
    (tmp_path / "action").symlink_to(catalogue.WEIGHTS / "action")
    alone(entry, monkeypatch)
    monkeypatch.setattr(catalogue, "manifest", lambda: {entry.id: entry, pose.id: pose})
    return entry


def standing():
    """Somebody in the middle of a picture of 4:3: (33, 4) float32."""
    landmarks = np.full((33, 4), np.nan, np.float32)
    place = np.array([0.5, 0.9]) + STANDING[:, :2] * np.array([-0.3, -0.4])
    landmarks[list(BODY), :2] = place[1:]
    landmarks[:11, :2] = place[0]
    landmarks[13:23][np.isnan(landmarks[13:23, 0]), :2] = place[5]
    landmarks[29:, :2] = place[11]
    landmarks[:, 2:] = (0.0, 0.95)
    return landmarks
