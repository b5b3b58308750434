"""Honest timing of two implementations: both in turn in one process, medians, and what is needed to repeat it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "torchvision", "numpy", "opencv-python")


@dataclass(frozen=True)
class Timing:
    """Seconds of one implementation: the median over the rounds, and the quartiles around it."""

    median: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class Row:
    """One line of a benchmark: ours against the reference's on the same input.

    checks: what shows that both did the same work, e.g. the largest difference. peak_mb: largest resident memory of the
    process so far. setup: processor, threads and versions.
    """

    task: str
    local: Timing
    reference: Timing
    checks: dict[str, Any] = field(default_factory=dict)
    peak_mb: float = 0.0
    setup: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """How many times as fast ours is, by the medians."""
        return self.reference.median / self.local.median

    def json(self) -> str:
        return json.dumps({**asdict(self), "ratio": round(self.ratio, 3)})


def interleave(
    local: Callable[[], Any], reference: Callable[[], Any], rounds: int = 15, warmup: int = 2
) -> tuple[Timing, Timing]:
    """Time the two in turn, so that whatever else the machine does falls on both. Who goes first alternates."""
    for _ in range(warmup):
        local()
        reference()
    seconds: tuple[list[float], list[float]] = ([], [])
    for k in range(rounds):
        for which in (0, 1) if k % 2 == 0 else (1, 0):
            start = time.perf_counter()
            (local, reference)[which]()
            seconds[which].append(time.perf_counter() - start)
    return timing(seconds[0]), timing(seconds[1])


def timing(seconds: Sequence[float]) -> Timing:
    """Median and quartiles of some measurements."""
    if len(seconds) == 1:
        return Timing(seconds[0], seconds[0], seconds[0], 1)
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, low, high, len(seconds))


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run torch on so many threads, and put the number back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def setup(*libraries: str) -> dict[str, Any]:
    """Processor, threads, system, and versions of torch and of the libraries named."""
    import torch

    versions = {}
    for name in (*LIBRARIES, *libraries):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "processor": processor(), "threads": torch.get_num_threads(), "system": platform.platform(),
        "python": platform.python_version(), "versions": versions,
    }  # fmt: skip


def processor() -> str:
    """Name of the processor, as good as the system knows it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # not a Unix
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if platform.system() == "Darwin" else 1e3)


def table(rows: Sequence[Row]) -> str:
    """The rows for people: milliseconds with quartiles, and the ratio."""
    head = f"{'task':<44} {'local ms':>20} {'reference ms':>22} {'ratio':>6}  checks"
    lines = [head, "-" * len(head)]
    for row in rows:
        checks = ", ".join(f"{k} {v:.2g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.checks.items())
        times = f"{_spread(row.local):>20} {_spread(row.reference):>22}"
        lines.append(f"{row.task:<44} {times} {row.ratio:>6.2f}  {checks}")
    return "\n".join(lines)


def _spread(t: Timing) -> str:
    return f"{t.median * 1e3:.1f} ({t.low * 1e3:.1f}-{t.high * 1e3:.1f})"
