"""Our brains behind the contract: `load` is what the pipeline calls for backend "local".

Letters: n chunks, T that a brain was built for, F future chunks, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipelines.common.catalogue import Entry
from pipelines.common.checkpoint import paths
from pipelines.common.errors import UserError

from .config import BRAINS, CLASSES, THUMOS14_CLASSES, Brain, BrainConfig, preset
from .contract import Answer

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from .streaming import FastOadTR


def load(entry: Entry, device: str | torch.device = "cpu") -> LocalAction:
    """Backend over one checkpoint of the catalogue, whose files are named after the brains that they hold.

    UserError: a file is missing, damaged or of another network.
    """
    from . import weights

    found = paths(entry)
    networks = {
        brain: weights.load(preset(entry.preset, brain), found[brain]).to(device) for brain in BRAINS if brain in found
    }
    labels = entry.facts.get("labels")
    return LocalAction(networks, None if labels is None else tuple(labels), device)


class Memory(Protocol):
    """What one stream remembers; belongs to one visitor. The attributes may be changed between two chunks.

    memory: chunks that are looked back at, the newest included; None is all that the brain was built for. shuffled:
    all but the newest come in random order, drawn from `seed`. attention: whether answers tell what the task token
    looked at.
    """

    memory: int | None
    shuffled: bool
    seed: int
    attention: bool

    def push(self, features: np.ndarray) -> Answer:
        """The newest chunk, (in_features,) float32, and the answer behind it."""

    def reset(self) -> None:
        """Forget everything."""


class LocalAction:
    """The brains of one checkpoint. Keeps nothing of a stream: see `open`.

    labels: C names, background first. brains: those that the checkpoint has. device: as torch names it.
    """

    def __init__(
        self,
        networks: Mapping[Brain, nn.Module],
        labels: Sequence[str] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        """networks: float32, in eval mode, on `device`. ValueError: none, or names that do not fit their classes."""
        from .oadtr import OadTR
        from .streaming import FastOadTR

        if not networks:
            raise ValueError("no brain")
        self.networks, self.device = dict(networks), str(device)
        self._fast = {brain: FastOadTR(net) for brain, net in networks.items() if isinstance(net, OadTR)}
        classes = {self.config(brain).classes for brain in networks}
        known = {len(CLASSES): CLASSES, len(THUMOS14_CLASSES): THUMOS14_CLASSES}
        self.labels = tuple(labels or known.get(max(classes)) or (str(k) for k in range(max(classes))))
        if classes != {len(self.labels)}:
            raise ValueError(f"{len(self.labels)} labels for networks of {sorted(classes)} classes")

    @property
    def brains(self) -> tuple[Brain, ...]:
        return tuple(self.networks)

    def config(self, brain: Brain = "oadtr") -> BrainConfig:
        """UserError: these weights have no such brain."""
        from .windows import config_of

        return config_of(self.network(brain))

    def network(self, brain: Brain = "oadtr") -> nn.Module:
        """The readable network. UserError: these weights have no such brain."""
        if brain not in self.networks:
            raise UserError(f"These weights have no brain called “{str(brain)[:40]}”: {', '.join(self.networks)}.")
        return self.networks[brain]

    def open(
        self,
        brain: Brain = "oadtr",
        memory: int | None = None,
        shuffled: bool = False,
        seed: int = 0,
        attention: bool = False,
    ) -> Memory:
        """The memory of a new stream. UserError: no such brain, or a memory of no chunk or of more than it can hold."""
        chunks = self.config(brain).chunks
        if memory is not None and not 1 <= memory <= chunks:
            raise UserError(f"The memory of this brain can be cut to 1 to {chunks} chunks, not {memory}.")
        if brain in self._fast:
            return WindowMemory(self._fast[brain], self.device, memory, shuffled, seed, attention)
        return StateMemory(self.network(brain), self.device, memory, shuffled, seed)

    def window(self, features: np.ndarray, brain: Brain = "oadtr") -> Answer:
        """The readable path over one window: (n, in_features) float32, the newest chunk last, n at most T."""
        import torch

        with torch.inference_mode():
            given = torch.as_tensor(np.asarray(features, np.float32), device=self.device)[None]
            now, later = self.network(brain)(given)
        return answer(now[0], later[0])

    def sequence(self, features: np.ndarray, brain: Brain = "oadtr", batch: int = 64) -> tuple[np.ndarray, np.ndarray]:
        """The readable path over a whole stream: (N, in_features) -> probabilities (N, C) and (N, F, C) float32.

        Behind each chunk the brain knows those before it, as many as fit its window (of the GRU: all).
        """
        import torch

        from .windows import run_sequence

        given = torch.as_tensor(np.asarray(features, np.float32), device=self.device)
        with torch.inference_mode():
            now, later = run_sequence(self.network(brain), given, batch)
            return now.softmax(-1).cpu().numpy(), later.softmax(-1).cpu().numpy()


class WindowMemory:
    """Of OadTR, whose past is a window."""

    def __init__(
        self, fast: FastOadTR, device: str, memory: int | None, shuffled: bool, seed: int, attention: bool
    ) -> None:
        self._fast, self._device = fast, device
        self.memory, self.shuffled, self.seed, self.attention = memory, shuffled, seed, attention
        self.reset()

    def reset(self) -> None:
        self._past = self._fast.start()

    def push(self, features: np.ndarray) -> Answer:
        import torch

        from .windows import shuffle

        self._fast.push(torch.as_tensor(np.asarray(features, np.float32), device=self._device), self._past)
        count = min(self._past.count, self.memory or self._past.count)
        order = shuffle(count, self.seed).to(self._device) if self.shuffled else None
        record: list[Tensor] | None = [] if self.attention else None
        now, later = self._fast.answer(self._past, self.memory, order, record)
        found = answer(now, later)
        if record is None:
            return found
        looked = torch.stack(record).mean((0, 1))[:-1].cpu().numpy()  # over layers and heads; the token itself is last
        if order is not None:  # back at the chunks' own places
            looked[order.cpu().numpy()] = looked.copy()
        padded = np.zeros(self._fast.config.chunks, np.float32)
        padded[len(padded) - count :] = looked
        return Answer(found.probabilities, found.anticipated, padded)


class StateMemory:
    """Of the other brains. A GRU's state goes back to the stream's beginning; cut or shuffled, it is run anew over the
    chunks that are left."""

    def __init__(self, network: nn.Module, device: str, memory: int | None, shuffled: bool, seed: int) -> None:
        self._network, self._device = network, device
        self.memory, self.shuffled, self.seed, self.attention = memory, shuffled, seed, False
        self.reset()

    def reset(self) -> None:
        self._state: Tensor | None = None
        self._chunks: list[Tensor] = []

    def push(self, features: np.ndarray) -> Answer:
        import torch

        from .gru import Recurrent
        from .windows import config_of, shuffle

        newest = torch.as_tensor(np.asarray(features, np.float32), device=self._device).clone()
        self._chunks = [*self._chunks, newest][-config_of(self._network).chunks :]
        with torch.inference_mode():
            if not isinstance(self._network, Recurrent):
                now, later = self._network(newest[None, None])
                return answer(now[0], later[0])
            # The state goes on in any case, so that the memory can be whole again.
            now, later, self._state = self._network.run(newest[None, None], self._state)
            if self.memory is not None or self.shuffled:
                left = torch.stack(self._chunks[-(self.memory or len(self._chunks)) :])
                left = left[shuffle(len(left), self.seed)] if self.shuffled else left
                now, later = (x[:, None] for x in self._network(left[None]))
            return answer(now[0, -1], later[0, -1])


def answer(now: Tensor, later: Tensor) -> Answer:
    """Logits (C,) and (F, C) as probabilities."""
    return Answer(now.softmax(-1).cpu().numpy(), later.softmax(-1).cpu().numpy())
