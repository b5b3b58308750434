"""Published parameter names -> ours, with every key accounted for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

State = dict[str, "torch.Tensor"]


class ConversionError(ValueError):
    """Keys that did not fit, all of them, so that one run shows the whole repair."""


@dataclass
class KeyMap:
    """An ordered table from a published layout to a module's state dict.

    Each rule sees the keys that are left. `apply` returns exactly the module's keys or raises the full report:
    every published key must be loaded, fused, split, or ignored with a written reason.

    >>> keys = KeyMap().rename(r"^head\\.", "classifier.").ignore(r"num_batches_tracked$", "a counter of training")
    """

    _renames: list[tuple[re.Pattern[str], str]] = field(default_factory=list)
    _ignored: list[tuple[re.Pattern[str], str]] = field(default_factory=list)
    _steps: list[Callable[[State], None]] = field(default_factory=list)

    def rename(self, pattern: str, replacement: str) -> KeyMap:
        """Every key that matches gets `replacement` by `re.sub`; renames run in order, all of them on each key."""
        self._renames.append((re.compile(pattern), replacement))
        return self

    def ignore(self, pattern: str, reason: str) -> KeyMap:
        """Published keys (before renaming) that match are left out. The reason is not optional."""
        if not reason.strip():
            raise ValueError("a key is ignored only with a reason")
        self._ignored.append((re.compile(pattern), reason))
        return self

    def fuse(self, sources: tuple[str, ...], target: str, dim: int = 0) -> KeyMap:
        """Join keys along `dim`. `sources` and `target` may hold one `*`, which stands for the same text in all."""

        def step(state: State) -> None:
            import torch

            for middle in _matches(state, sources[0]):
                names = [source.replace("*", middle) for source in sources]
                if all(name in state for name in names):
                    state[target.replace("*", middle)] = torch.cat([state.pop(name) for name in names], dim)

        self._steps.append(step)
        return self

    def split(self, source: str, targets: tuple[str, ...], dim: int = 0) -> KeyMap:
        """Cut a key into equal parts along `dim`; `*` as in `fuse`."""

        def step(state: State) -> None:
            for middle in _matches(state, source):
                parts = state.pop(source.replace("*", middle)).chunk(len(targets), dim)
                state.update({t.replace("*", middle): part for t, part in zip(targets, parts, strict=True)})

        self._steps.append(step)
        return self

    def stack(self, sources: tuple[str, ...], target: str) -> KeyMap:
        """Numbered keys in one tensor with a new first dimension: `#` stands for 0, 1, ..., `*` as in `fuse`.

        More than one source: each number's are joined along their first dimension. One number at a time is copied into
        place, so that tensors which are mapped from a file need no second copy in memory.
        """

        def step(state: State) -> None:
            for middle in _matches(state, sources[0].replace("#", "0")):
                first = [source.replace("*", middle) for source in sources]
                rows = _numbered(state, first)
                parts = [[state[name] for name in row] for row in rows]
                if len({tuple(tuple(part.shape) for part in row) for row in parts}) == 1:
                    state[target.replace("*", middle)] = _stacked(parts)
                    for row in rows:
                        for name in row:
                            del state[name]

        self._steps.append(step)
        return self

    def transpose(self, pattern: str, *dims: int) -> KeyMap:
        """Permute the dimensions of the (renamed) keys that match."""
        compiled = re.compile(pattern)

        def step(state: State) -> None:
            for key in [key for key in state if compiled.search(key)]:
                state[key] = state[key].permute(*dims).contiguous()

        self._steps.append(step)
        return self

    def squeeze(self, pattern: str) -> KeyMap:
        """A 1x1 convolution's weight (K, C, 1, 1) as a linear map's (K, C), for the (renamed) keys that match."""
        compiled = re.compile(pattern)

        def step(state: State) -> None:
            for key in [key for key in state if compiled.search(key)]:
                if state[key].ndim == 4 and tuple(state[key].shape[2:]) == (1, 1):
                    state[key] = state[key][:, :, 0, 0]

        self._steps.append(step)
        return self

    def apply(self, published: Mapping[str, Any], expected: Mapping[str, Any]) -> State:
        """The state dict for a module whose own `state_dict()` (meta tensors will do) is `expected`.

        ConversionError: a key is left over, missing, named twice, or of another shape; the message lists all.
        """
        state: State = {}
        trouble: list[str] = []
        for key, tensor in published.items():
            if any(pattern.search(key) for pattern, _ in self._ignored):
                continue
            name = key
            for pattern, replacement in self._renames:
                name = pattern.sub(replacement, name)
            if name in state:
                trouble.append(f"twice: {key} -> {name}")
            state[name] = tensor
        for step in self._steps:
            step(state)
        trouble += [f"not used: {key} {tuple(state[key].shape)}" for key in state.keys() - expected.keys()]
        trouble += [f"missing: {key} {tuple(expected[key].shape)}" for key in expected.keys() - state.keys()]
        trouble += [
            f"shape: {key} is {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
            for key in state.keys() & expected.keys()
            if tuple(state[key].shape) != tuple(expected[key].shape)
        ]
        if trouble:
            raise ConversionError("\n".join([f"{len(trouble)} keys do not fit:", *sorted(trouble)]))
        return state


def _matches(state: State, pattern: str) -> list[str]:
    before, _, after = pattern.partition("*")
    compiled = re.compile(re.escape(before) + ("(.*)" if "*" in pattern else "()") + re.escape(after))
    return [match[1] for key in list(state) if (match := compiled.fullmatch(key))]


def _numbered(state: State, patterns: list[str]) -> list[list[str]]:
    """The names of number 0, 1, ... as long as all patterns have that number."""
    rows: list[list[str]] = []
    while all(pattern.replace("#", str(len(rows))) in state for pattern in patterns):
        rows.append([pattern.replace("#", str(len(rows))) for pattern in patterns])
    return rows


def _stacked(rows: list[list[torch.Tensor]]) -> torch.Tensor:
    """Each row joined along the first dimension, the rows along a new one before it."""
    import torch

    first = rows[0][0]
    height = sum(part.shape[0] for part in rows[0])
    out = torch.empty((len(rows), height, *first.shape[1:]), dtype=first.dtype, device=first.device)
    for place, row in zip(out, rows, strict=True):
        for slot, part in zip(place.split([part.shape[0] for part in row]), row, strict=True):
            slot.copy_(part)
    return out
