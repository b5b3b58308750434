"""Sizes and constants of the mixture-of-experts decoders. No torch here: the page reads this before any model library.

One decoder is three published families: Mixtral (Jiang et al. 2024), OLMoE (Muennighoff et al. 2024) and Granite-MoE
(IBM 2024); what differs is below, each at the value that turns it off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Family = Literal["mixtral", "olmoe", "granitemoe"]


@dataclass(frozen=True)
class MoeConfig:
    """A decoder.

    family: whose file layout it has. vocabulary: tokens. width: of the residual stream. layers, heads, key_value_heads,
    head_width: of attention (grouped queries where there are fewer key-value heads than heads). expert_width: hidden
    units of one expert. experts, active: how many there are, and how many work for a token. context: positions it was
    trained for. window: tokens that attention looks back, itself included; None means all.
    """

    family: Family = "mixtral"
    vocabulary: int = 4096
    width: int = 256
    layers: int = 6
    heads: int = 8
    key_value_heads: int = 4
    head_width: int = 32
    expert_width: int = 512
    experts: int = 8
    active: int = 2
    context: int = 4096
    window: int | None = None
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5

    # Whether the weights of the chosen experts are scaled to sum to one (Mixtral, Granite) or are the router's
    # probabilities as they are (OLMoE, Switch).
    normalise_weights: bool = True
    # Fedus et al. 2021: in training an expert takes at most this many times its even share of the tokens, the rest pass
    # it by. None drops nothing.
    capacity_factor: float | None = None

    # OLMoE: RMSNorm over all heads' queries together, and keys; values clipped to +- this.
    query_key_norm: bool = False
    clip: float | None = None

    # Granite's four multipliers, and the output matrix that is the embedding.
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float | None = None  # None is head_width ** -0.5
    logits_divisor: float = 1.0
    tied: bool = False

    # Coefficients of the router's losses in training.
    balance_coefficient: float = 0.06
    z_coefficient: float = 0.001

    def __post_init__(self) -> None:
        if self.heads % self.key_value_heads:
            raise ValueError(f"{self.heads} heads do not share {self.key_value_heads} key-value heads evenly")
        if not 1 <= self.active <= self.experts:
            raise ValueError(f"{self.active} of {self.experts} experts cannot work")
        if self.head_width % 2:
            raise ValueError("rotary positions turn pairs: head_width must be even")

    @property
    def parameters(self) -> tuple[int, int]:
        """(all, those that work for one token); embeddings count in both."""
        attention = self.width * self.head_width * (2 * self.heads + 2 * self.key_value_heads)
        if self.query_key_norm:
            attention += self.head_width * (self.heads + self.key_value_heads)
        expert = 3 * self.width * self.expert_width
        shared = self.vocabulary * self.width * (1 if self.tied else 2) + self.width
        layer = attention + 2 * self.width + self.experts * self.width
        total = shared + self.layers * (layer + self.experts * expert)
        return total, shared + self.layers * (layer + self.active * expert)


STORIES = MoeConfig(window=512)
TINY = MoeConfig(
    vocabulary=320, width=32, layers=2, heads=4, key_value_heads=2, head_width=8, expert_width=24, experts=4
)  # fmt: skip

PRESETS: dict[str, MoeConfig] = {
    "stories": STORIES,
    "tiny": TINY,
    "tiny-olmoe": replace(
        TINY, family="olmoe", key_value_heads=4, normalise_weights=False, query_key_norm=True, clip=0.5
    ),
    "tiny-granite": replace(
        TINY, family="granitemoe", embedding_multiplier=3.0, residual_multiplier=0.4, attention_multiplier=0.2,
        logits_divisor=2.0, tied=True,
    ),
    "tiny-switch": replace(TINY, active=1, normalise_weights=False, capacity_factor=1.25),
    # The model that speed is measured on: 63 M parameters, 21 M of them for each token.
    "bench": MoeConfig(width=384, layers=6, heads=6, key_value_heads=6, head_width=64, expert_width=1024),
    "mixtral-8x7b": MoeConfig(
        vocabulary=32_000, width=4096, layers=32, heads=32, key_value_heads=8, head_width=128, expert_width=14_336,
        context=32_768, rope_base=1e6,
    ),
    "olmoe-1b-7b": MoeConfig(
        family="olmoe", vocabulary=50_304, width=2048, layers=16, heads=16, key_value_heads=16, head_width=128,
        expert_width=1024, experts=64, active=8, context=4096, normalise_weights=False, query_key_norm=True,
    ),
    "granite-3.1-1b-a400m": MoeConfig(
        family="granitemoe", vocabulary=49_155, width=1024, layers=24, heads=16, key_value_heads=8, head_width=64,
        expert_width=512, experts=32, active=8, context=131_072, rope_base=1.5e6, norm_epsilon=1e-6,
        embedding_multiplier=12.0, residual_multiplier=0.22, attention_multiplier=0.015625, logits_divisor=6.0,
        tied=True,
    ),
}  # fmt: skip
