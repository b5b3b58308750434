"""The decoder: Mixtral, OLMoE or Granite-MoE, as the configuration says.

Letters: B batch, T new tokens, S all tokens so far, D width, E experts, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .attention import Attention, sees
from .cache import KeyValueCache
from .config import MoeConfig
from .experts import Experts
from .norm import RMSNorm
from .rotary import rotation
from .router import Routing, Steer, decide


@dataclass
class Record:
    """Filled by a forward pass that is given one: a layer's routing each, over the B T tokens of the call."""

    routings: list[Routing] = field(default_factory=list)


@dataclass(frozen=True)
class Call:
    """What all layers of one forward pass share. tokens (B, T), the first at position `start`; turn: cosine and sine
    (T, d); allowed as in `Attention`."""

    tokens: Tensor
    start: int
    turn: tuple[Tensor, Tensor]
    allowed: Tensor | None
    cache: KeyValueCache | None
    steer: Steer | None
    record: Record | None


class MoeLayer(nn.Module):
    """The router and its experts."""

    def __init__(self, config: MoeConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.router = nn.Linear(config.width, config.experts, bias=False)
        self.experts = Experts(config)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        flat = x.flatten(0, 1)
        logits = self.router(flat)
        routing = decide(self.config, self.layer, logits, call.tokens, call.start, call.steer, self.training)
        if call.record is not None:
            call.record.routings.append(routing)
        return self.experts(flat, routing).view_as(x)


class DecoderLayer(nn.Module):
    """Attention, then experts, each behind a norm and added to the stream."""

    def __init__(self, config: MoeConfig, layer: int) -> None:
        super().__init__()
        self.multiplier = config.residual_multiplier
        self.dropout = 0.0
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon)
        self.attention = Attention(config, layer)
        self.moe_norm = RMSNorm(config.width, config.norm_epsilon)
        self.moe = MoeLayer(config, layer)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = self.joined(x, self.attention(self.attention_norm(x), call.turn, call.allowed, call.cache))
        return self.joined(x, self.moe(self.moe_norm(x), call))

    def joined(self, x: Tensor, branch: Tensor) -> Tensor:
        """The stream with a branch added. In training some of the branch's channels are left out, the same for all
        tokens of a row (Gal and Ghahramani 2016), which costs no pass over the memory of its own."""
        if not (self.training and self.dropout):
            return torch.add(x, branch, alpha=self.multiplier)
        kept = x.new_empty(x.shape[0], 1, x.shape[2]).bernoulli_(1 - self.dropout)
        return torch.addcmul(x, branch, kept, value=self.multiplier / (1 - self.dropout))


class Decoder(nn.Module):
    """Tokens in, logits of the next token out."""

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_epsilon)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        if config.tied:
            self.head.weight = self.embedding.weight

    def set_dropout(self, share: float) -> None:
        """The share of each branch's channels that is left out in training."""
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            layer.dropout = share

    def forward(
        self,
        tokens: Tensor,
        cache: KeyValueCache | None = None,
        *,
        steer: Steer | None = None,
        record: Record | None = None,
        documents: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """tokens (B, T) int64, behind what `cache` holds -> logits (B, T, V), or (B, 1, V) with `last_only`.

        documents (B, T): numbers; a token sees only those of its own number (training on packed texts, no cache).
        """
        start = cache.length if cache is not None else 0
        count, device = tokens.shape[1], tokens.device
        allowed = sees(start, count, self.config.window, device)
        if documents is not None:
            same = documents[:, None, :, None] == documents[:, None, None, :]
            allowed = same & (allowed if allowed is not None else same.new_ones(count, count).tril())
        x = scaled(self.embedding(tokens), self.config.embedding_multiplier)  # (B, T, D)
        cosine, sine = rotation(
            torch.arange(start, start + count, device=device), self.config.head_width, self.config.rope_base
        )
        turn = (cosine.to(x.dtype), sine.to(x.dtype))
        call = Call(tokens, start, turn, allowed, cache, steer, record)
        for layer in self.layers:
            x = layer(x, call)
        if cache is not None:
            cache.advance(count)
        return scaled(self.head(self.norm(x[:, -1:] if last_only else x)), 1 / self.config.logits_divisor)

    def initialise(self, generator: torch.Generator, spread: float = 0.02) -> None:
        """Random weights for a new training: normal with this spread, smaller where a branch joins the stream."""
        joins = spread / (2 * self.config.layers) ** 0.5
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim > 1:
                    into = name.endswith(("attention.out.weight", "experts.down"))
                    parameter.normal_(0.0, joins if into else spread, generator=generator)


def scaled(x: Tensor, factor: float) -> Tensor:
    """x times a factor that is mostly one: a pass over all logits is worth not making."""
    return x if factor == 1.0 else x * factor
