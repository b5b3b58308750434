"""A change of the routers, put into practice: bans, orders, another number of experts, two routers that know nothing.

Letters: N tokens, E experts, k of them active, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipelines.common.errors import UserError

from .config import MoeConfig
from .contract import RouterChange
from .router import Steer, Steered

COLDEST, HOTTEST = 0.01, 100.0  # temperatures of a router
AWAY = -10.0  # logit of the first expert that the hash table does not choose; the chosen ones have about 0


def check(change: RouterChange, config: MoeConfig) -> None:
    """UserError unless these routers can be changed so: experts that exist, enough of them left, none both banned and
    forced, numbers in range."""
    active = config.active if change.active is None else change.active
    if not isinstance(active, int) or not 1 <= active <= config.experts:
        raise UserError(f"Between 1 and {config.experts} experts can work for a token.")
    if not COLDEST <= change.temperature <= HOTTEST:  # false for a NaN too
        raise UserError(f"The router's temperature must lie between {COLDEST:g} and {HOTTEST:g}.")
    if change.control not in ("none", "random", "hash"):
        raise UserError("The control must be none, random or hash.")
    for layer, expert in change.banned | change.forced:
        if not (0 <= layer < config.layers and 0 <= expert < config.experts):
            raise UserError(f"This model has {config.layers} layers of {config.experts} experts; choose among those.")
    if both := change.banned & change.forced:
        layer, expert = min(both)
        raise UserError(f"Expert {expert + 1} of layer {layer + 1} is both banned and forced; choose one of the two.")
    for layer in range(config.layers):
        _check_layer(layer, active, len(_of(change.banned, layer)), len(_of(change.forced, layer)), config.experts)


def _check_layer(layer: int, active: int, banned: int, forced: int, experts: int) -> None:
    if banned == experts:
        raise UserError(f"Every expert of layer {layer + 1} is banned; leave at least {active}.")
    if experts - banned < active:
        raise UserError(
            f"Layer {layer + 1} has {experts - banned} expert(s) left, and {active} work for each token: ban fewer, or "
            "let fewer work."
        )
    if forced > active:
        raise UserError(
            f"{forced} experts are forced in layer {layer + 1}, and {active} work for each token: force fewer, or let "
            "more work."
        )


def _of(pairs: frozenset[tuple[int, int]], layer: int) -> list[int]:
    """The experts of one layer."""
    return sorted(expert for at, expert in pairs if at == layer)


def steer(change: RouterChange, config: MoeConfig) -> Steer | None:
    """What `Decoder.forward` takes, or None where nothing is changed. UserError: as `check`.

    A banned expert cannot be picked; the others keep the weights that the router gives them. The random router's noise
    is a function of (seed, layer, position) and the hash router's table one of (seed, layer), so that a text means the
    same whole, token by token, and in any batch. Temperature, bans and orders apply to the controls too.
    """
    if change.nothing:
        return None
    check(change, config)
    return _Steering(change, config)


@dataclass
class _Steering:
    change: RouterChange
    config: MoeConfig
    tables: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, layer: int, logits: Tensor, tokens: Tensor, positions: Tensor) -> Steered:
        """logits (N, E), tokens (N,), positions (N,)."""
        change = self.change
        banned, forced = _of(change.banned, layer), _of(change.forced, layer)
        active = self.config.active if change.active is None else change.active
        if change.control == "random":
            logits = noise(change.seed, layer, positions, self.config.experts)
        elif change.control == "hash":
            if layer not in self.tables:
                self.tables[layer] = hash_table(change.seed, layer, self.config.vocabulary, self.config.experts)
            order = hashed(self.tables[layer].to(tokens.device), tokens)
            logits = _even(order, banned, forced, active)
        logits = logits / change.temperature
        preference = None
        # By the logits also where it is cold: probabilities would underflow to zero and leave the choice to chance.
        if banned or forced or change.temperature < 1:
            preference = torch.zeros_like(logits)
            # Just over the whole range of the logits, so that the order among the forced stays the router's.
            preference[:, forced] = logits.amax(-1, keepdim=True) - logits.amin(-1, keepdim=True) + 1
            preference[:, banned] = -torch.inf
        return Steered(logits, preference, active)


# --- the random router -----------------------------------------------------------------------------------------------


def noise(seed: int, layer: int, positions: Tensor, experts: int) -> Tensor:
    """(N, E) float32 from a standard normal distribution: a function of seed, layer and position alone.

    A generator that is drawn from in turn would depend on what was drawn before; this one is a hash of the place.
    """
    place = positions.long()[:, None] * 65_536 + layer * 1024 + torch.arange(experts, device=positions.device)
    mixed = _mixed(_mixed(place) + _mixed(torch.tensor(seed, device=positions.device)))
    uniform = (_shifted(mixed, 11).double() + 0.5) / 2**53  # in (0, 1)
    return (torch.erfinv(2 * uniform - 1) * 2**0.5).float()


def _mixed(x: Tensor) -> Tensor:
    """splitmix64 (Steele et al. 2014) on int64, whose sums and products wrap around like unsigned ones."""
    x = x + -7046029254386353131
    x = (x ^ _shifted(x, 30)) * -4658895280553007687
    x = (x ^ _shifted(x, 27)) * -7723592293110705685
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right with zeros coming in: int64 alone would bring in the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


# --- the hash router -------------------------------------------------------------------------------------------------


def hash_table(seed: int, layer: int, vocabulary: int, experts: int) -> Tensor:
    """(blocks, E) int64: an order of the experts for each block of E neighbouring token ids.

    The tokens of a block take the order one place apart, so that each expert comes first for one of them, second for
    another: the load is even over the vocabulary, and nearly so over a text, since the neighbours in a vocabulary of
    merges are about equally frequent (Roller et al. 2021 balance by frequency).
    """
    generator = torch.Generator("cpu").manual_seed((seed * 1_000_003 + layer) % 2**63)
    return torch.rand(-(-vocabulary // experts), experts, generator=generator).argsort(dim=-1)


def hashed(table: Tensor, tokens: Tensor) -> Tensor:
    """(N, E): each token's experts, its first one first."""
    experts = table.shape[1]
    places = (tokens[:, None] % experts + torch.arange(experts, device=tokens.device)) % experts
    return table[tokens // experts].gather(1, places)


def _even(order: Tensor, banned: list[int], forced: list[int], active: int) -> Tensor:
    """(N, E) logits that give the first `active` experts of an order (N, E) equal weights, the others next to none.

    Banned experts go to its end and forced ones to its front beforehand: a stand-in weighs what any other does.
    """
    experts = order.shape[1]
    place = order.argsort(dim=-1).float()  # of each expert in the order
    place[:, forced] -= experts
    place[:, banned] += experts
    rank = place.argsort(dim=-1).argsort(dim=-1)
    return torch.where(rank < active, -1e-4 * rank, AWAY - rank)
