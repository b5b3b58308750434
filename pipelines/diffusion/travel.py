"""Time travel: a tree of runs, each forked from a moment of another, and the one file that a tree is kept in.

The file is a safetensors file: numbers without compression behind a JSON header, so there is nothing to unpickle and
nothing to inflate. All functions return new trees; nothing is kept between calls. No torch until a fork asks for it.

Letters: S calls of a run, L latent channels, h and w the latent's sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.common.checkpoint import paths
from pipelines.common.errors import UserError
from pipelines.common.limits import limits

from . import pipeline
from .checks import checked, fitted, whole
from .config import DiffusionConfig
from .contract import DiffusionRequest, DiffusionResult, History, Start

if TYPE_CHECKING:
    from .samplers import Plan

# What a fork may change, and which of these leave no use for what the sampler remembers.
CHANGES = ("prompt", "negative_prompt", "guidance_scale", "sampler", "num_steps", "seed", "backend", "precision")


@dataclass(frozen=True)
class Node:
    """One run. request: as it was drawn. parent: index of the run that it was forked from, None for the root; call: of
    the parent's plan, where it left. image (H, W, 3) uint8. history: of its own calls, the first of which is that of
    its start."""

    request: DiffusionRequest
    image: np.ndarray
    history: History
    parent: int | None = None
    call: int = 0

    @property
    def first(self) -> int:
        """The call of its plan that its history begins with."""
        return self.request.start.call if self.request.start is not None else 0

    @property
    def calls(self) -> range:
        """The calls of its plan that it can be forked at."""
        return range(self.first, self.first + len(self.history.timesteps))


@dataclass(frozen=True)
class Tree:
    """Runs, each behind the one that it was forked from."""

    nodes: tuple[Node, ...] = ()

    def add(self, result: DiffusionResult, parent: int | None = None, call: int = 0) -> Tree:
        """With one more run. parent, call: where it was forked; None for the first run of all.

        ValueError: there is no such run or call. UserError: the run has no history, or the tree is full.
        """
        if (parent is None) == bool(self.nodes) or (parent is not None and not 0 <= parent < len(self.nodes)):
            raise ValueError(f"a tree of {len(self.nodes)} runs has no place behind {parent}")
        if parent is not None and call not in self.nodes[parent].calls:
            raise ValueError(f"run {parent} has no call {call}")
        if result.history is None:
            raise UserError("Only a run whose history is kept can be gone back into; draw it again with it.")
        self.check_room()
        grown = Tree((*self.nodes, Node(result.request, result.image, result.history, parent, call)))
        if grown.size > limits().history_mb * 1_000_000:
            raise UserError(f"The tree would take more than {limits().history_mb} MB; begin another one.")
        return grown

    def check_room(self) -> None:
        """UserError: the tree has as many runs as it may have."""
        if len(self.nodes) >= limits().tree_runs:
            raise UserError(f"The tree has {limits().tree_runs} runs already; begin another one.")

    def children(self, index: int) -> tuple[int, ...]:
        """The runs that were forked from one."""
        return tuple(i for i, node in enumerate(self.nodes) if node.parent == index)

    def path(self, index: int) -> tuple[int, ...]:
        """From the root to a run, both included."""
        found = [index]
        while (parent := self.nodes[found[0]].parent) is not None:
            found.insert(0, parent)
        return tuple(found)

    def changes(self, index: int) -> dict[str, tuple[Any, Any]]:
        """What a run has that its parent has not: field to values before and after. Empty for the root."""
        node = self.nodes[index]
        if node.parent is None:
            return {}
        pairs = {
            name: (getattr(self.nodes[node.parent].request, name), getattr(node.request, name)) for name in CHANGES
        }
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    @property
    def size(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for node in self.nodes for array in arrays(node).values())


def fork(node: Node, call: int, changes: Mapping[str, Any] | None = None) -> DiffusionRequest:
    """The request that goes on from the latents before a call of a run, with some fields changed (`CHANGES`).

    Without any change it draws the very same picture. Another sampler or number of steps goes on at the nearest noise
    level of its own. Another seed keeps the end picture as it was predicted at that call, and puts new noise on it. At
    call 0 of a whole run all of it is drawn anew.

    UserError: there is no such call, the field cannot be changed, or its value is out of range.
    """
    changes = dict(changes or {})
    check_changes(changes)
    if not whole(call, 0) or call not in node.calls:
        raise UserError(f"The run has calls {node.calls[0]} to {node.calls[-1]}; fork at one of these.")
    request = checked(replace(node.request, history=True, start=None, **changes))
    if call == 0 and node.request.start is None:
        return request
    config = config_of(request)
    here, there = _plans(node.request, request, config)
    return checked(replace(request, start=_start(node, int(call), request, here, there)))


def check_changes(changes: Mapping[str, Any]) -> None:
    """UserError: a fork cannot change one of these fields."""
    for name in changes:
        if name not in CHANGES:
            raise UserError(f"A fork cannot change “{str(name)[:40]}”; it may change {', '.join(CHANGES)}.")


def config_of(request: DiffusionRequest) -> DiffusionConfig:
    """The sizes of a request's weights; no network is loaded. UserError: they are not on this machine or damaged."""
    from . import local

    entry = pipeline.entry(request.weights)
    return local.config_of(entry, paths(entry))


def _plans(before: DiffusionRequest, after: DiffusionRequest, config: DiffusionConfig) -> tuple[Plan, Plan]:
    return pipeline.plan_of(before, config), pipeline.plan_of(after, config)


def _start(node: Node, call: int, request: DiffusionRequest, here: Plan, there: Plan) -> Start:
    import torch

    from . import samplers
    from .generate import first_noise

    at, history = call - node.first, node.history
    latents = torch.from_numpy(history.latents[at].copy())
    if request.seed != node.request.seed:
        noise = first_noise(request.seed, (1, *latents.shape))[0]
        latents = samplers.start_from(here, torch.from_numpy(history.clean[at].copy()), noise, call)
    if there != here:
        latents, call = samplers.switch(here, call, latents, there)
    same = all(getattr(request, name) == getattr(node.request, name) for name in CHANGES)
    memory = history.memory[at] if same else history.memory[at][:0]  # it speaks of another picture
    return Start(latents.numpy(), call, memory)


# --- the file --------------------------------------------------------------------------------------------------------


def arrays(node: Node) -> dict[str, np.ndarray]:
    """All arrays of a run by name."""
    history, request = node.history, node.request
    found = {
        "picture": node.image,
        "latents": history.latents,
        "clean": history.clean,
        "memory": np.concatenate(history.memory),
        "remembered": np.array([len(each) for each in history.memory], np.int32),
        "timesteps": history.timesteps,
    }
    given = {"image": request.image, "mask": request.mask}
    if request.start is not None:
        given |= {"start": request.start.latents, "start_memory": request.start.memory}
    return found | {name: array for name, array in given.items() if array is not None}


def fits(node: Node, config: DiffusionConfig) -> bool:
    """Whether all arrays of a run are of the sizes that its request has with these weights."""
    request = fitted(node.request, config)
    plan = pipeline.plan_of(request, config)
    assert request.width is not None and request.height is not None
    shape = (config.vae.latent_channels, request.height // config.vae.factor, request.width // config.vae.factor)
    history, count = node.history, len(plan.timesteps) - node.first
    return (
        node.image.shape == (request.height, request.width, 3)
        and history.latents.shape == (count + 1, *shape)
        and history.clean.shape == (count, *shape)
        and history.timesteps.tolist() == list(plan.timesteps[node.first :])
        and len(history.memory) == count
        and all(each.shape[1:] == shape for each in history.memory)
    )
