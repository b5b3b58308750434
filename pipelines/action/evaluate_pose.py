"""The pose tracker beside recorded MediaPipe values on real clips, and where its time goes on one core.

    python -m pipelines.action.evaluate_pose --clips DIR --reference poses.npz
    python -m pipelines.action.evaluate_pose --video assets/examples/action/jumping-jacks.webm

poses.npz holds, for each clip below DIR by its relative path, (frames, 33, 4) landmarks of MediaPipe's own tracker on
the same frames, NaN where it found nobody. Record them with mediapipe 0.10.14 in an environment of its own (it wants an
older numpy): `mediapipe.solutions.pose.Pose(model_complexity=1)`, a new one for each clip.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipelines.common.video import Video

from . import pose_landmarks, pose_network
from .pose_network import Networks
from .pose_tracker import Choice, Tracker

RATE = 30.0  # frames a second that MediaPipe's Python interface takes every clip for
VISIBLE = 0.5


@dataclass(frozen=True)
class Agreement:
    """Distances are means over landmarks, in shoulder widths of the reference (the clip's median).

    both, theirs, ours: frames in which both, only the reference, only we found somebody. mean, median, high: over the
    frames that both have, high being 95 of 100. visible: the mean over landmarks that the reference sees (visibility at
    least 0.5). visibility: mean difference.
    """

    both: int
    theirs: int
    ours: int
    mean: float
    median: float
    high: float
    visible: float
    visibility: float


def landmarks_of(frames: Iterable[np.ndarray], tracker: Tracker, rate: float = RATE) -> np.ndarray:
    """(F, 33, 4) float32 of a stream of pictures, NaN where nobody was found."""
    nobody = np.full((pose_landmarks.COUNT, 4), np.nan, np.float32)
    poses = (tracker.track(frame, (k + 1) / rate) for k, frame in enumerate(frames))
    return np.array([nobody if pose is None else pose.landmarks for pose in poses], np.float32).reshape(-1, 33, 4)


def distances(ours: np.ndarray, theirs: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Of two (F, 33, 4) of one clip: "places" (N, 33) in shoulder widths, "seen" (N, 33) the reference's visibilities
    and "visibility" (N, 33) differences in the N frames that both have; "counts" (3,) as in `Agreement`. size: height
    and width of the picture."""
    count = min(len(ours), len(theirs))
    ours, theirs = ours[:count], theirs[:count]
    mine, other = np.isfinite(ours[:, 0, 0]), np.isfinite(theirs[:, 0, 0])
    both = mine & other
    scale = np.array([size[1], size[0]], np.float64)
    a, b = ours[both], theirs[both]
    width = np.median(np.linalg.norm((b[:, 11, :2] - b[:, 12, :2]) * scale, axis=-1)) if both.any() else np.nan
    return {
        "places": np.linalg.norm((a[..., :2] - b[..., :2]) * scale, axis=-1) / width,
        "seen": b[..., 3], "visibility": np.abs(a[..., 3] - b[..., 3]),
        "counts": np.array([both.sum(), (other & ~mine).sum(), (mine & ~other).sum()]),
    }  # fmt: skip


def agreement(clips: list[dict[str, np.ndarray]]) -> Agreement:
    """Over all frames of several clips. ValueError: there is no frame that both have."""
    places, seen, visibility = (np.concatenate([c[key] for c in clips]) for key in ("places", "seen", "visibility"))
    if not len(places):
        raise ValueError("there is no frame in which both found somebody")
    frames = places.mean(axis=1)
    both, theirs, ours = (int(n) for n in np.sum([c["counts"] for c in clips], axis=0))
    return Agreement(
        both, theirs, ours, float(frames.mean()), float(np.median(frames)), float(np.quantile(frames, 0.95)),
        float(places[seen >= VISIBLE].mean()), float(visibility.mean()),
    )  # fmt: skip


def compare(folder: Path, reference: Path, choice: Choice = "surest") -> Agreement:
    """Our tracker on every clip of a reference. choice: MediaPipe follows the surest person."""
    found = []
    with np.load(reference) as recorded:
        for name in recorded.files:
            with Video(folder / name) as video:
                ours = landmarks_of((frame.pixels for frame in video.every()), Tracker(choice=choice))
                found.append(distances(ours, recorded[name], video.size))
    return agreement(found)


def stages(path: Path, size: tuple[int, int] = (480, 640), rounds: int = 3) -> dict[str, float]:
    """Milliseconds of processor time a frame of that height and width, medians: "decode" (file to RGB), "detect" (only
    in frames where somebody is looked for), "crop", "network" (landmarks), "track" (all but decoding, in a frame where
    somebody is followed), and "wall" of the same by the clock. One thread."""
    cv2.setNumThreads(1)
    frames, decoding = [], []
    with Video(path) as video:
        stream = video.every()
        while True:
            start = time.process_time()
            frame = next(stream, None)
            decoding.append(time.process_time() - start)
            if frame is None:
                break
            frames.append(cv2.resize(frame.pixels, size[::-1]) if frame.pixels.shape[:2] != size else frame.pixels)
    shared = pose_network.shared()
    spent: dict[str, list[float]] = {"decode": decoding[1:-1], "track": [], "wall": []}
    networks = Networks(_timed(shared.detector, spent, "detect"), _timed(shared.landmarks, spent, "network"))
    for _ in range(rounds):
        tracker = Tracker(networks)
        for k, picture in enumerate(frames):
            start, clock = time.process_time(), time.perf_counter()
            pose = tracker.track(picture, k / RATE)
            if pose is not None and not pose.found:
                spent["track"].append(time.process_time() - start)
                spent["wall"].append(time.perf_counter() - clock)
                _timed(pose.region.crop, spent, "crop")(picture, pose_landmarks.SIDE, cv2.BORDER_REPLICATE)
    return {name: round(statistics.median(values) * 1e3, 3) for name, values in spent.items() if values}


def _timed(call: Callable[..., Any], spent: dict[str, list[float]], name: str) -> Any:
    def run(*args: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return call(*args, **options)
        finally:
            spent.setdefault(name, []).append(time.process_time() - start)

    return run


def main(arguments: list[str] | None = None) -> None:
    """Command line: prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="folder of clips")
    parser.add_argument("--reference", type=Path, help="recorded landmarks of them, npz")
    parser.add_argument("--choice", choices=("surest", "largest"), default="surest", help="who is followed of several")
    parser.add_argument("--video", type=Path, help="measure the time of each stage on this video")
    asked = parser.parse_args(arguments)
    if (asked.clips is None) != (asked.reference is None):
        parser.error("--clips and --reference belong together")
    if asked.clips is not None:
        print(json.dumps(asdict(compare(asked.clips, asked.reference, asked.choice))))
    if asked.video is not None:
        print(json.dumps(stages(asked.video)))
    if asked.clips is None and asked.video is None:
        parser.error("give clips with a reference, or a video")


if __name__ == "__main__":
    main()
