"""How well a checkpoint of OadTR tells the action of every chunk of recorded features:

python -m pipelines.action.evaluate --checkpoint FILE --features DIR --targets DIR

The authors' layout: DIR/<video>_rgb.npy (N, R) and DIR/<video>_flow.npy (N, O), R + O = in_features; targets
DIR/<video>.npy (N, C), 1 where a chunk has the class. Their THUMOS14 targets are in one pickle, which could run code
when read: save each video's "anno" by numpy.save where you trust it. Their rules: every window of T chunks that has F
more behind it is judged by its newest chunk; class 21, "ambiguous", takes no part.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from pipelines.common.errors import UserError

from .config import PRESETS, THUMOS14_CLASSES, OadTRConfig
from .metrics import FrameScores, frame_scores

if TYPE_CHECKING:
    from .oadtr import OadTR


@dataclass(frozen=True)
class Video:
    """features: (N, in_features) float32, RGB first. targets: (N, C) float32."""

    name: str
    features: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """current: of the newest chunks. future: mean_ap of each of the F chunks ahead. videos: how many, and how many of
    them are too short for one window."""

    current: FrameScores
    future: tuple[float, ...]
    videos: int
    too_short: int


def read_videos(features: Path, targets: Path, config: OadTRConfig, names: Sequence[str] = ()) -> Iterator[Video]:
    """The videos of a folder, or those named. Files are read as plain arrays, never as pickles.

    UserError: a file is missing, damaged, or of another shape than the network's.
    """
    found = list(names) or sorted(path.name.removesuffix("_rgb.npy") for path in features.glob("*_rgb.npy"))
    if not found:
        raise UserError(f"{features} has no <video>_rgb.npy.")
    for name in found:
        rgb, flow = (_matrix(features / f"{name}_{kind}.npy") for kind in ("rgb", "flow"))
        wanted = _matrix(targets / f"{name}.npy")
        if len(rgb) != len(flow):
            raise UserError(f"{name} has {len(rgb)} chunks of RGB and {len(flow)} of optical flow.")
        if rgb.shape[1] + flow.shape[1] != config.in_features:
            raise UserError(
                f"{name} has {rgb.shape[1]} + {flow.shape[1]} features a chunk, the network {config.in_features}."
            )
        if wanted.shape != (len(rgb), config.classes):
            raise UserError(f"The targets of {name} are {wanted.shape}, not {(len(rgb), config.classes)}.")
        yield Video(name, np.concatenate((rgb, flow), 1), wanted)


def _matrix(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UserError(f"There is no {path.name} in {path.parent}.") from error
    except (ValueError, EOFError) as error:
        raise UserError(f"{path.name} is damaged, or holds Python objects, which are not read.") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "fiub":
        raise UserError(f"{path.name} does not hold one row of numbers a chunk.")
    if not np.isfinite(array).all():
        raise UserError(f"{path.name} holds numbers that are not finite.")
    return array.astype(np.float32)


def evaluate(
    network: OadTR,
    videos: Iterator[Video] | Sequence[Video],
    labels: Sequence[str],
    ambiguous: int | None = None,
    batch: int = 64,
    streaming: bool = False,
    reduced: bool = False,
) -> Evaluation:
    """Score a network in eval mode. labels: C names. ambiguous: a class that takes no part, not even in the softmax.

    streaming: chunk by chunk as a live stream would, in place of batches of windows; the same but for rounding.
    reduced: of streaming, with weights in 8 bits, to see what they cost.
    UserError: no video is long enough for one window.
    """
    chunks, future = network.config.chunks, network.config.future
    now, later, wanted, wanted_later, count, short = [], [], [], [], 0, 0
    for video in videos:
        count += 1
        windows = len(video.features) - chunks - future  # as the authors count: one fewer than would fit
        if windows < 1:
            short += 1
            continue
        if streaming:
            of_video = _streamed(network, video.features, windows, reduced)
        else:
            of_video = _batched(network, video.features, windows, batch)
        newest = np.arange(windows) + chunks - 1
        judged = np.ones(windows, bool)
        if ambiguous is not None:
            judged = video.targets[newest].argmax(1) != ambiguous
        ahead = newest[:, None] + 1 + np.arange(future)
        now.append(_probabilities(of_video[0][judged], ambiguous))
        later.append(_probabilities(of_video[1][judged], ambiguous))
        wanted.append(video.targets[newest][judged])
        wanted_later.append(video.targets[ahead][judged])
    if not now:
        raise UserError(f"None of the {count} videos has {chunks + future + 1} chunks, which one window takes.")
    scores, answers = np.concatenate(later), np.concatenate(wanted_later)
    return Evaluation(
        frame_scores(np.concatenate(now), np.concatenate(wanted), labels, ambiguous),
        tuple(
            frame_scores(scores[:, k], _unjudged(answers[:, k], ambiguous), labels, None).mean_ap for k in range(future)
        ),
        count,
        short,
    )


def _unjudged(targets: np.ndarray, ambiguous: int | None) -> np.ndarray:
    """The authors judge future chunks that are ambiguous as having no action."""
    if ambiguous is None:
        return targets
    targets = targets.copy()
    targets[:, ambiguous] = 0
    return targets


def _probabilities(logits: np.ndarray, ambiguous: int | None) -> np.ndarray:
    """Softmax over the last axis without the ambiguous class, whose probability is 0."""
    logits = logits.astype(np.float64)
    if ambiguous is not None:
        logits[..., ambiguous] = -np.inf
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def _batched(network: OadTR, features: np.ndarray, windows: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (windows, C) and (windows, F, C) of the first so many windows."""
    import torch

    device = network.positions.device
    given = torch.as_tensor(features, device=device).unfold(0, network.config.chunks, 1).transpose(1, 2)[:windows]
    with torch.inference_mode():
        parts = [network(given[at : at + batch]) for at in range(0, windows, batch)]
    return tuple(torch.cat([part[k] for part in parts]).cpu().numpy() for k in (0, 1))  # type: ignore[return-value]


def _streamed(network: OadTR, features: np.ndarray, windows: int, reduced: bool) -> tuple[np.ndarray, np.ndarray]:
    """The same, chunk by chunk."""
    import torch

    from .streaming import FastOadTR

    fast, chunks = FastOadTR(network, reduced=reduced), network.config.chunks
    past, answers = fast.start(), []
    for k, chunk in enumerate(torch.as_tensor(features, device=network.positions.device)[: windows + chunks - 1]):
        fast.push(chunk, past)
        if k >= chunks - 1:
            answers.append(fast.answer(past))
    return tuple(torch.stack([each[k] for each in answers]).cpu().numpy() for k in (0, 1))  # type: ignore[return-value]


def main(arguments: Sequence[str] | None = None) -> Evaluation:
    from pipelines.common.device import pick

    from . import weights

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--targets", type=Path, required=True)
    parser.add_argument(
        "--preset", default="thumos14", choices=[k for k, v in PRESETS.items() if isinstance(v, OadTRConfig)]
    )
    parser.add_argument("--videos", nargs="*", default=(), help="names; none means all of the folder")
    parser.add_argument("--streaming", action="store_true", help="chunk by chunk, as a live stream would")
    parser.add_argument("--reduced", action="store_true", help="of streaming: weights in 8 bits")
    parser.add_argument("--out", type=Path, help="a JSON file for the scores")
    given = parser.parse_args(arguments)
    if given.reduced and not given.streaming:
        parser.error("--reduced is of --streaming")
    config = PRESETS[given.preset]
    assert isinstance(config, OadTRConfig)
    thumos = config.classes == len(THUMOS14_CLASSES)
    labels = THUMOS14_CLASSES if thumos else tuple(str(k) for k in range(config.classes))
    try:
        network = cast("OadTR", weights.load(config, given.checkpoint).to(pick().device))
        videos = read_videos(given.features, given.targets, config, given.videos)
        ambiguous = config.classes - 1 if thumos else None
        found = evaluate(network, videos, labels, ambiguous, streaming=given.streaming, reduced=given.reduced)
    except UserError as error:
        raise SystemExit(str(error)) from error
    for name, value in found.current.ap.items():
        print(f"{name:<20} AP {value:.4f}  calibrated {found.current.calibrated[name]:.4f}")
    print(f"mAP {found.current.mean_ap:.4f}  mcAP {found.current.mean_calibrated:.4f}  chunks {found.current.chunks}")
    print("future mAP " + " ".join(f"{value:.4f}" for value in found.future))
    if given.out is not None:
        given.out.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
