"""python -m pipelines.action.bench: what a chunk costs on one core.

OadTR at the authors' full size and at the size that is shipped: streaming, the whole window by the readable path, and
the authors' forward pass step by step, in turn on the same weights and chunks; and streaming in 8 bits, which is not
exact. Then the other brains beside OadTR. At last a video of 640x480 from the file to the answers: frames a second.
Times are of the processor, of the one thread that computes (of a video: of all threads together, as if one core did
their work): what else the machine does leaves them almost as they are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pipelines.common import bench
from pipelines.common.catalogue import ROOT
from pipelines.common.video import Video

from . import weights
from .bench_authors import AuthorsForward
from .config import BRAINS, PRESETS, OadTRConfig, preset
from .local import LocalAction
from .oadtr import OadTR
from .pipeline import open_stream
from .streaming import FastOadTR

CLIP = ROOT / "assets" / "examples" / "action" / "jumping-jacks.webm"
Logits = tuple[Tensor, Tensor]


def random_network(config: OadTRConfig) -> OadTR:
    """In eval mode, with numbers in place of the zeros and ones that a new network has."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = cast(OadTR, weights.build(config))
        for parameter in network.parameters():
            if parameter.ndim == 1 or parameter is network.task_token:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval().requires_grad_(False)


class OneChunk:
    """One network, and a stream whose past is full."""

    def __init__(self, network: OadTR) -> None:
        config = network.config
        drawn = torch.Generator().manual_seed(1)
        self.network, self.chunks = network, torch.randn(config.chunks, config.in_features, generator=drawn)
        self.fast, self.authors = FastOadTR(network), AuthorsForward(network)
        self.past = self.fast.start()
        self.small = FastOadTR(network, reduced=True)
        self.small_past = self.small.start()
        for chunk in self.chunks:
            self.fast.push(chunk, self.past)
            self.small.push(chunk, self.small_past)

    def streaming(self) -> Logits:
        """The newest chunk, and the answer behind it. The stream is one chunk that comes again and again after the
        first time: it costs the same."""
        self.fast.push(self.chunks[-1], self.past)
        return self.fast.answer(self.past)

    def reduced(self) -> Logits:
        """The same with weights in 8 bits."""
        self.small.push(self.chunks[-1], self.small_past)
        return self.small.answer(self.small_past)

    def whole(self) -> Logits:
        """The readable path."""
        with torch.inference_mode():
            now, later = self.network(self.chunks[None])
            return now[0], later[0]

    def port(self) -> Logits:
        """The authors' steps; two thirds of the features are the first stream's, as theirs are."""
        split = self.chunks.shape[1] * 2 // 3
        with torch.inference_mode():
            now, later = self.authors(self.chunks[None, :, :split], self.chunks[None, :, split:])
            return now[0], later[0]


def rows(name: str, rounds: int) -> list[bench.Row]:
    """Streaming, whole window and port of one preset, each against the next slower one."""
    config = PRESETS[name]
    assert isinstance(config, OadTRConfig)
    chunk = OneChunk(random_network(config))
    checks: dict[str, Any] = {
        "parameters": f"{sum(p.numel() for p in chunk.network.parameters()) / 1e6:.1f} M",
        "streaming-whole": difference(chunk.fast.answer(chunk.past), chunk.whole()),
        "whole-port": difference(chunk.whole(), chunk.port()),
    }
    rounded = (chunk.small.answer(chunk.small_past), chunk.fast.answer(chunk.past))
    chances = (rounded[0][0].softmax(0) - rounded[1][0].softmax(0)).abs().max()
    small = {"8 bits": chunk.small.reduced, "logits": difference(*rounded), "probabilities": float(chances)}
    pairs: list[tuple[str, Callable[[], Logits], Callable[[], Logits]]] = [
        ("streaming against port", chunk.streaming, chunk.port),
        ("whole window against port", chunk.whole, chunk.port),
        ("streaming against whole window", chunk.streaming, chunk.whole),
    ]
    found = [
        bench.Row(f"{name}, {task}", *interleave(a, b, rounds), checks, bench.peak_mb(), bench.setup())
        for task, a, b in pairs
    ]
    times = interleave(chunk.reduced, chunk.port, rounds)
    return [*found, bench.Row(f"{name}, 8-bit streaming against port", *times, small, bench.peak_mb(), bench.setup())]


def brain_rows(rounds: int) -> list[bench.Row]:
    """The brains of the shipped size, each against OadTR, through the backend that the pipeline uses."""
    networks = {brain: weights.build(preset("bundled", brain)).eval() for brain in BRAINS}
    backend = LocalAction(networks)
    chunk = np.random.default_rng(0).standard_normal(backend.config().in_features).astype(np.float32)
    memories = {brain: backend.open(brain) for brain in BRAINS}
    for _ in range(backend.config().chunks):
        for memory in memories.values():
            memory.push(chunk)
    found = []
    for brain in BRAINS[1:]:
        calls = (partial(memories[brain].push, chunk), partial(memories["oadtr"].push, chunk))
        size = sum(p.numel() for p in networks[brain].parameters()) / 1e6
        times = interleave(*calls, rounds)
        checks = {"parameters": f"{size:.2f} M"}
        found.append(bench.Row(f"bundled, {brain} against oadtr", *times, checks, bench.peak_mb(), bench.setup()))
    return found


@dataclass(frozen=True)
class EndToEnd:
    """Milliseconds of the processor a frame, medians over the rounds. frames: of the video."""

    decode: float
    pose: float
    model: float
    frames: int

    @property
    def rate(self) -> float:
        """Frames a second."""
        return 1000 / (self.decode + self.pose + self.model)


def end_to_end(path: Path, rounds: int) -> EndToEnd:
    """A video through the pipeline: decoded, the pose found and followed in every frame, an answer every chunk."""
    found: list[tuple[float, float, float]] = []
    count = 0
    for k in range(-1, rounds):  # one to warm up
        poses: list[tuple[np.ndarray, float]] = []
        decoding = looking = 0.0
        with Video(path) as video, open_stream() as stream, open_stream() as again:
            before = time.process_time()
            for frame in video.every():
                decoded = time.process_time()
                stream.push(frame.pixels, frame.seconds)
                done = time.process_time()
                decoding, looking, before = decoding + decoded - before, looking + done - decoded, done
                poses.append((np.full((33, 4), np.nan) if stream.pose is None else stream.pose, frame.seconds))
            # The same stream without its pictures tells the share of features and brain.
            before = time.process_time()
            for pose, seconds in poses:
                again.push_pose(pose, seconds)
            model, count = time.process_time() - before, len(poses)
        if k >= 0:
            found.append((decoding / count, (looking - model) / count, model / count))
    decode, pose_share, model = (statistics.median(each) * 1000 for each in zip(*found, strict=True))
    return EndToEnd(decode, pose_share, model, count)


def interleave(
    local: Callable[[], Any], reference: Callable[[], Any], rounds: int
) -> tuple[bench.Timing, bench.Timing]:
    """Processor time of the two in turn; who goes first alternates."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for k in range(-2, rounds):  # two to warm up
        for which in (0, 1) if k % 2 == 0 else (1, 0):
            start = time.thread_time()
            (local, reference)[which]()
            if k >= 0:
                seconds[which].append(time.thread_time() - start)
    return bench.timing(seconds[0]), bench.timing(seconds[1])


def difference(a: Logits, b: Logits) -> float:
    """The largest, of all logits."""
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", choices=["thumos14", "bundled", "brains", "video"])
    parser.add_argument("--video", type=Path, default=CLIP, help="of 640x480")
    arguments = parser.parse_args()
    found: list[bench.Row] = []
    with bench.torch_threads(1):
        for name in ("thumos14", "bundled"):
            if arguments.only in (None, name):
                found += rows(name, arguments.rounds)
        if arguments.only in (None, "brains"):
            found += brain_rows(arguments.rounds)
        if arguments.only in (None, "video"):
            video = end_to_end(arguments.video, max(3, arguments.rounds // 6))
    if found:
        print(bench.table(found))
    for row in found:
        print(row.json())
    if arguments.only in (None, "video"):
        print(
            f"video to answers, {video.frames} frames of {arguments.video.name}: {video.rate:.1f} frames a second of "
            f"one core; {video.decode:.1f} ms decode, {video.pose:.1f} ms pose, {video.model:.1f} ms model a frame"
        )
        print(json.dumps({**asdict(video), "rate": video.rate, "setup": bench.setup("ai-edge-litert")}))


if __name__ == "__main__":
    main()
