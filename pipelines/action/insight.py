"""What happens inside: what the task token looked at, what the past is worth, and whether the future leaks back.

Everything works on the features of chunks, of a stream or of one window, and returns arrays and plain records.

Letters: n chunks of a window, N of a stream, F future chunks, C classes, L layers, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.common.errors import UserError

from .config import Brain

if TYPE_CHECKING:
    from .local import LocalAction
    from .oadtr import OadTR

# Chunks of a stream, first axis, -> what is said behind each of them, first axis.
Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Looked:
    """What was looked at in one window. Rows sum to 1 over the chunks and the task token itself, which is last.

    task: (L, H, n + 1) float32, by the task token, of every layer and head of the encoder. future: (L', H', F, n + 1)
    float32, by each future query, of the decoder.
    """

    task: np.ndarray
    future: np.ndarray

    @property
    def chunks(self) -> np.ndarray:
        """(n,) float32: the task token's over all layers and heads, without what fell on itself."""
        return np.asarray(self.task.mean((0, 1))[:-1], np.float32)


@dataclass(frozen=True)
class Shuffled:
    """One window, and the same with its past in random order. plain: (C,) float32. drawn: (times, C) float32."""

    plain: np.ndarray
    drawn: np.ndarray

    @property
    def moved(self) -> float:
        """Mean over the draws of the total variation distance to the plain answer, in [0, 1]: 0 says that the order is
        worth nothing here."""
        return float(np.abs(self.drawn - self.plain).sum(1).mean() / 2)


@dataclass(frozen=True)
class Causality:
    """Whether a changed future changes the past. before: the largest change of what was said before the changed chunk,
    after: from it on. holds: nothing changed before."""

    before: float
    after: float

    @property
    def holds(self) -> bool:
        return self.before == 0.0


def looked(backend: LocalAction, features: np.ndarray, brain: Brain = "oadtr") -> Looked:
    """What task token and future queries of a brain looked at. features: (n, in_features), the newest last.

    UserError: this brain has no attention.
    """
    import torch

    from .oadtr import Record

    network = _oadtr(backend, brain)
    record = Record()
    with torch.inference_mode():
        network(torch.as_tensor(np.asarray(features, np.float32), device=backend.device)[None], record=record)
    task = torch.stack([weights[0, :, -1] for weights in record.encoder])
    return Looked(task.cpu().numpy(), torch.stack(record.cross)[:, 0].cpu().numpy())


def by_memory(backend: LocalAction, features: np.ndarray, brain: Brain = "oadtr") -> np.ndarray:
    """The answer with 1, 2, ... n chunks of memory: (n, C) float32. features: (n, in_features), the newest last."""
    import torch

    given = torch.as_tensor(np.asarray(features, np.float32), device=backend.device)
    count = len(given)
    places = torch.arange(count, device=given.device)
    hidden = places[None] < count - 1 - places[:, None]  # row m sees the last m + 1
    with torch.inference_mode():
        now, _ = backend.network(brain)(given.expand(count, -1, -1), hidden)
    return now.softmax(1).cpu().numpy()


def shuffled(
    backend: LocalAction, features: np.ndarray, brain: Brain = "oadtr", times: int = 16, seed: int = 0
) -> Shuffled:
    """The answer, and `times` answers with the past chunks in random order, the newest in its place.

    features: (n, in_features), the newest last.
    """
    import torch

    from .windows import shuffle

    given = torch.as_tensor(np.asarray(features, np.float32), device=backend.device)
    orders = [torch.arange(len(given)), *(shuffle(len(given), seed + k) for k in range(times))]
    with torch.inference_mode():
        now, _ = backend.network(brain)(torch.stack([given[order.to(given.device)] for order in orders]))
    found = now.softmax(1).cpu().numpy()
    return Shuffled(found[0], found[1:])


def causality(run: Run, stream: np.ndarray, at: int, seed: int = 0) -> Causality:
    """Run a stream twice, the second time with noise in place of chunk `at` and all after it.

    run: from the whole stream (N, ...) to what is said behind every chunk (N, ...), such as
    `lambda features: backend.sequence(features)[0]`; it must keep nothing between calls. at: 1 to N - 1.
    ValueError: there is no chunk before `at`, or none from it on.
    """
    stream = np.asarray(stream, np.float32)
    if not 1 <= at < len(stream):
        raise ValueError(f"chunk {at} has no past and future in a stream of {len(stream)}")
    changed = stream.copy()
    drawn = np.random.default_rng(seed).standard_normal(stream[at:].shape)
    changed[at:] = drawn * max(float(np.nanstd(stream)), 1e-3) + np.nanmean(stream)
    plain, other = run(stream), run(changed)
    difference = np.abs(np.asarray(other, np.float64) - np.asarray(plain, np.float64))
    difference = np.nan_to_num(difference, nan=np.inf).reshape(len(stream), -1).max(1)
    return Causality(float(difference[:at].max()), float(difference[at:].max()))


def window_of(backend: LocalAction, brain: Brain) -> int:
    """Chunks that a brain with attention looks back over. UserError: this brain has no attention."""
    return _oadtr(backend, brain).config.chunks


def encoded(backend: LocalAction, windows: np.ndarray, brain: Brain = "oadtr") -> np.ndarray:
    """What the frozen network says of windows before any class is named: the task token beside the mean of what the
    future queries found, as the head gets them. windows: (B, n, in_features) -> (B, 2 D) float32.

    UserError: this brain has no attention.
    """
    import torch

    network = _oadtr(backend, brain)
    with torch.inference_mode():
        memory = network.encode(torch.as_tensor(np.asarray(windows, np.float32), device=backend.device))
        found = network.queries.expand(len(memory), -1, -1)
        for layer in network.decoder:
            found = layer(found, memory)
        joined = torch.cat((memory[:, -1], network.decoder_norm(found).mean(1)), 1)
    return joined.cpu().numpy()


def _oadtr(backend: LocalAction, brain: Brain) -> OadTR:
    from .oadtr import OadTR

    network = backend.network(brain)
    if not isinstance(network, OadTR):
        raise UserError("This brain has no attention to look at; choose OadTR or the one with linear attention.")
    return network
