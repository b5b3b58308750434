"""What if not all experts fit into memory? A trace is replayed over caches of every size.

A cache belongs to a layer and holds some of that layer's experts, as in the offloading of Mixtral (Eliseev and Mazur
2023): the next layer's experts are other weights, and what one layer holds says nothing of another. A token asks for
its k experts of a layer at once, so that no policy may give up one of them for another: a cache has room for k at
least. It starts empty, and each token of the trace, those of the prompt too, counts as one decoding step.

Letters: N tokens, L layers, E experts, k of them active, S sizes of a cache. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.common.errors import UserError

from .config import MoeConfig
from .contract import Simulation

# Which expert goes when there is no room. "ahead" gives up what will not be needed for longest (Belady 1966): no cache
# can know that, so it is the bound. "random" is the control: what any rule must beat.
POLICIES = ("lru", "lfu", "ahead", "random")


@dataclass(frozen=True)
class Machine:
    """What a prediction is made for. memory, storage: bandwidths in 10^9 bytes a second; bits: of one weight.

    The defaults are those of an ordinary laptop: two channels of memory, an NVMe disk, bfloat16.
    """

    memory: float = 20.0
    storage: float = 3.0
    bits: float = 16.0

    def __post_init__(self) -> None:
        for value, name in ((self.memory, "memory"), (self.storage, "storage")):
            if not 0.001 <= value <= 100_000:
                raise UserError(f"The bandwidth of the {name} must lie between 0.001 and 100,000 GB a second.")
        if not 1 <= self.bits <= 64:
            raise UserError("A weight has between 1 and 64 bits.")


def simulate(
    experts: np.ndarray, config: MoeConfig, slots: int, policy: str, machine: Machine | None = None, seed: int = 0
) -> Simulation:
    """Replay a trace's experts (L, N, k) over caches of `slots` experts a layer. seed: of the random policy.

    UserError: no such policy, or a cache that is too small for one token or larger than the layer.
    """
    hits = replay(experts, config.experts, [slots], policy, seed)[0].sum(axis=0)  # (N,)
    misses = experts.shape[0] * experts.shape[2] - hits
    rate = float(hits.sum() / max(1, hits.sum() + misses.sum()))
    speed = speed_of(config, rate, machine or Machine(), active=experts.shape[2])
    return Simulation(policy, slots, hits, misses, rate, speed)


def replay(experts: np.ndarray, count: int, sizes: Sequence[int], policy: str, seed: int = 0) -> np.ndarray:
    """(S, L, N) int64: how many of its k experts each token finds in the cache of each layer, for caches of all sizes.

    experts (L, N, k) of `count` experts. UserError: as `simulate`.

    Every policy is an order: what is there and what is asked for compete, those of the token itself come first, and the
    first `size` stay. So one loop over the tokens serves all policies, all sizes and all layers.
    """
    layers, tokens, active = experts.shape
    if policy not in POLICIES:
        raise UserError(f"The policy must be one of {', '.join(POLICIES)}.")
    if not sizes or any(not active <= size <= count for size in sizes):
        raise UserError(f"A cache holds between {active} and {count} experts: a token needs {active} at once.")
    asked = np.zeros((tokens, layers, count), bool)
    np.put_along_axis(asked, experts.transpose(1, 0, 2), True, axis=2)
    held = np.zeros((len(sizes), layers, count), bool)
    room = np.asarray(sizes)[:, None, None]
    hits = np.zeros((len(sizes), layers, tokens), np.int64)
    worth = _worth(asked, policy, seed)
    for now in range(tokens):
        hits[:, :, now] = (held & asked[now]).sum(axis=-1)
        held |= asked[now]
        value = np.where(asked[now], np.inf, worth(now))
        place = np.argsort(np.argsort(np.where(held, -value, np.inf), axis=-1, kind="stable"), axis=-1)
        held &= place < room
    return hits


def _worth(asked: np.ndarray, policy: str, seed: int) -> Callable[[int], np.ndarray]:
    """A function of the step that says what each expert (L, E) is worth keeping after it. asked (N, L, E)."""
    tokens = len(asked)
    steps = np.arange(tokens, dtype=np.float64)[:, None, None]
    if policy == "random":
        generator = np.random.default_rng(seed)
        return lambda now: generator.random(asked.shape[1:])
    if policy == "ahead":
        # The next step that asks, this one included: whoever is asked for now stays anyway.
        following = np.minimum.accumulate(np.where(asked, steps, tokens)[::-1], axis=0)[::-1]
        return lambda now: -following[now]
    last = np.maximum.accumulate(np.where(asked, steps, -1.0), axis=0)
    if policy == "lru":
        return lambda now: last[now]
    often = asked.cumsum(axis=0)  # since the beginning, also while an expert was away
    return lambda now: often[now] + last[now] / (tokens + 1)  # among equals the longest unused one goes


def curves(experts: np.ndarray, count: int, seed: int = 0) -> tuple[list[int], dict[str, np.ndarray]]:
    """(sizes, policy -> (S,) hit rates): the share of all requests that find their expert, at every size of a cache."""
    layers, tokens, active = experts.shape
    sizes = list(range(active, count + 1))
    asked = max(1, layers * tokens * active)
    return sizes, {name: replay(experts, count, sizes, name, seed).sum((1, 2)) / asked for name in POLICIES}


# --- bytes and seconds -----------------------------------------------------------------------------------------------


def expert_bytes(config: MoeConfig, bits: float) -> float:
    """Of one expert of one layer."""
    return 3 * config.width * config.expert_width * bits / 8


def shared_bytes(config: MoeConfig, bits: float) -> float:
    """What every token reads besides experts: attention, norms, routers and the output matrix. Of an embedding that is
    not the output matrix too it reads a single row, which is nothing beside the rest."""
    _, working = config.parameters
    apart = 0 if config.tied else config.vocabulary * config.width
    return (working - apart) * bits / 8 - config.layers * config.active * expert_bytes(config, bits)


def room_bytes(config: MoeConfig, slots: int, bits: float) -> float:
    """What must fit into memory: all but the experts, and `slots` experts of each layer."""
    total, _ = config.parameters
    apart = total * bits / 8 - config.layers * config.experts * expert_bytes(config, bits)
    return apart + config.layers * slots * expert_bytes(config, bits)


def speed_of(config: MoeConfig, hit_rate: float, machine: Machine, active: int | None = None) -> float:
    """Predicted tokens a second of decoding, which is bound by bytes, not by sums.

    A token reads what is shared and its experts from memory, and before that fetches those that are not there from
    storage; the two follow each other, since who is needed is known only when the layer's router has spoken.
    """
    asked = config.layers * (active or config.active) * expert_bytes(config, machine.bits)
    read = (shared_bytes(config, machine.bits) + asked) / (machine.memory * 1e9)
    fetched = asked * (1 - hit_rate) / (machine.storage * 1e9)
    return 1 / (read + fetched)
