"""What each kind of attention costs as the text grows, and how far the linear ones are from softmax.

Measured on one head of random numbers: seconds, the most bytes that are in use at once, and the error.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import one_core
from .attention_config import KINDS

WIDTH = 64
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
ROOM = 3_000_000_000  # bytes
LINEAR = ("elu", "normalised", "flash")


@dataclass(frozen=True)
class Cost:
    """seconds: of one processor core at work, the least of the rounds. peak: bytes."""

    kind: str
    length: int
    seconds: float
    peak: int


def costs(
    kinds: Sequence[str], longest: int, causal: bool = True, halted: Callable[[], bool] = lambda: False
) -> Iterator[Cost]:  # fmt: skip
    """Measure each kind at each of LENGTHS up to `longest`, the shortest first; one whose next matrix would take more
    than ROOM is left out from there on. ValueError: no such kind."""
    if not set(kinds) <= set(KINDS):
        raise ValueError(f"the kinds are {', '.join(KINDS)}")
    import torch

    runs = {kind: _runner(kind, causal) for kind in kinds}
    peaks: dict[str, int] = {}
    with torch.no_grad():
        for length in (each for each in LENGTHS if each <= longest):
            for kind in (each for each in kinds if 4 * peaks.get(each, 0) <= ROOM):
                with one_core.step():  # more threads pay off at some lengths only: a bend
                    found = _measured(kind, length, runs[kind](length))
                peaks[kind] = found.peak if kind not in LINEAR else 0
                yield found
                if halted():
                    return


def _runner(kind: str, causal: bool) -> Callable[[int], Callable[[], Any]]:
    """length -> what is measured, over random inputs."""
    import torch

    from . import attention

    units = {"gau": attention.GatedAttentionUnit, "flash": attention.Flash}
    if kind in units:
        with one_core.seeded(0):
            unit = units[kind](WIDTH, 2 * WIDTH, WIDTH, attention.CHUNK).eval()

        def gated(length: int) -> Callable[[], Any]:
            x = torch.randn(length, WIDTH)
            return lambda: unit(x, causal)

        return gated
    feature = "elu" if kind == "elu" else "softmax"

    def headed(length: int) -> Callable[[], Any]:
        q, k, v = torch.randn(3, length, WIDTH)
        if kind == "softmax":
            return lambda: attention.softmax_attention(q, k, v, causal)
        return lambda: attention.linear_attention(q, k, v, causal, feature)

    return headed


def _measured(kind: str, length: int, run: Callable[[], Any]) -> Cost:
    with Peak() as peak:
        run()
    best, spent, rounds = float("inf"), 0.0, 0
    while rounds < 2 or (spent < 0.1 and rounds < 30):
        start = time.thread_time()  # and not the clock on the wall, which also counts what other work takes
        run()
        passed = time.thread_time() - start
        best, spent, rounds = min(best, passed), spent + passed, rounds + 1
        if passed > 1:
            break
    return Cost(kind, length, best, peak.most)


def order_of_growth(lengths: Sequence[float], values: Sequence[float], last: int = 4) -> float:
    """The exponent a of value ~ length^a, by least squares through the `last` longest; NaN with fewer than two."""
    if len(lengths) < 2:
        return float("nan")
    x, y = np.log(lengths[-last:]), np.log(values[-last:])
    return float(np.polyfit(x, y, 1)[0])


class Peak:
    """Within it, counts the bytes of tensors that torch has made and not given back; `most` is the most at once."""

    def __init__(self) -> None:
        from torch.utils._python_dispatch import TorchDispatchMode

        self.now = self.most = 0
        seen: set[int] = set()
        outer = self

        class Counter(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                found = func(*args, **(kwargs or {}))
                outer._count(found, seen)
                return found

        self._mode = Counter()

    def _count(self, found: Any, seen: set[int]) -> None:
        import torch

        for one in found if isinstance(found, tuple | list) else (found,):
            if not isinstance(one, torch.Tensor):
                continue
            storage = one.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in seen:
                continue
            seen.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, key, size, seen)

    def _forget(self, key: int, size: int, seen: set[int]) -> None:
        seen.discard(key)
        self.now -= size

    def __enter__(self) -> Peak:
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)


@dataclass(frozen=True)
class Error:
    """How far from softmax attention, as a share of its size: each linear kind, and the mean of all values seen, which
    looks at nothing. sharpness: of queries and keys, whose products have this standard deviation."""

    sharpness: float
    shares: dict[str, float]


def errors(sharpness: Sequence[float], length: int = 256, seed: int = 0) -> list[Error]:
    """‖linear - softmax‖ / ‖softmax‖ of causal attention over random values."""
    import torch

    from .attention import linear_attention, softmax_attention

    q, k, v = torch.randn(3, length, WIDTH, generator=torch.Generator().manual_seed(seed))
    mean = v.cumsum(dim=0) / torch.arange(1, length + 1)[:, None]
    found = []
    with one_core.step(), torch.no_grad():
        for size in sharpness:
            a, b = q * size**0.5, k * size**0.5
            exact = softmax_attention(a, b, v, True)
            others = {
                "elu": linear_attention(a, b, v, True, "elu"), "normalised": linear_attention(a, b, v, True, "softmax"),
                "mean": mean,
            }  # fmt: skip
            shares = {name: float((other - exact).norm() / exact.norm()) for name, other in others.items()}
            found.append(Error(size, shares))
    return found
