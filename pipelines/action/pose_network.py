"""BlazePose's two networks, as Google published them, run by LiteRT; found and checked through the catalogue."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.common import backends, catalogue, checkpoint
from pipelines.common.errors import UserError

PIPELINE, ROLE = "action", "pose"
COPIES = max(1, min(2, os.cpu_count() or 1))  # streams side by side, of each network


class Network:
    """One .tflite file, for all visitors.

    An interpreter keeps the numbers of its last run and is not safe for two threads, so that each run borrows one and
    leaves nothing in it that the next would read. One is made at first, a second only when two runs meet; who comes
    while `copies` are at work waits. LiteRT lets other threads of Python go on while it computes.
    """

    def __init__(self, path: str | Path, copies: int = COPIES) -> None:
        """UserError: the file is no network that LiteRT can run."""
        self._content = Path(path).read_bytes()
        self._places = threading.BoundedSemaphore(copies)
        self._lock = threading.Lock()
        first = self._make()
        self._free: list[Any] = [first]
        (taken,) = first.get_input_details()
        self.shape: tuple[int, ...] = tuple(int(n) for n in taken["shape"])
        # Asking for these lists takes longer than the copies that they serve.
        self._input = int(taken["index"])
        self._outputs = [int(given["index"]) for given in first.get_output_details()]

    def _make(self) -> Any:
        from ai_edge_litert.interpreter import Interpreter

        try:
            # One thread: the networks are small, and a second one would be another visitor's.
            interpreter = Interpreter(model_content=self._content, num_threads=1)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise UserError("The pose network is damaged: install the weights again.") from error
        return interpreter

    def __call__(self, pixels: np.ndarray, wanted: Sequence[int]) -> list[np.ndarray]:
        """pixels: float32 of `shape`, with or without the leading 1. -> the outputs of these numbers, copied, as the
        file orders them. ValueError: another shape."""
        with self._places:
            with self._lock:
                interpreter = self._free.pop() if self._free else None
            interpreter = interpreter or self._make()
            try:
                interpreter.set_tensor(self._input, pixels.reshape(self.shape))
                interpreter.invoke()
                return [interpreter.get_tensor(self._outputs[k])[0] for k in wanted]
            finally:
                with self._lock:
                    self._free.append(interpreter)


@dataclass(frozen=True)
class Networks:
    """What finds people in a picture, and what finds the landmarks of one."""

    detector: Network
    landmarks: Network


def load(entry: catalogue.Entry) -> Networks:
    """The networks of an entry. UserError: a file is missing, is another one, or cannot be run."""
    files = checkpoint.paths(entry)
    return Networks(Network(files["detector"]), Network(files["landmarks"]))


def shared(weights: str = "auto") -> Networks:
    """The networks that all streams of this process use, loaded on first use. UserError as for `load`."""
    entry = catalogue.resolve(PIPELINE, weights, ROLE)
    # Unpacked to float32, with the working memory of the copies.
    size = int(entry.facts.get("memory_megabytes", 100)) * 1_000_000
    return backends.shared().get((__package__, ROLE, entry.id), lambda: load(entry), size)
