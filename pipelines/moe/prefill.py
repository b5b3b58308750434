"""A prompt through the layers that `decode` prepared: many tokens at once, for the cache and the next token.

The matrix products are most of the time and the same as in the modules. What is saved: of the last layer only keys and
values of the whole prompt are wanted, and the rest of it for the last tokens alone; positions are turned and experts
gated in place; answers are added to the stream where they are made.

Letters: B batch, T new tokens, N = B T, D width, H heads, G key-value heads, d head width, E experts, k active.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import sees
from .cache import KeyValueCache
from .config import MoeConfig
from .rotary import rotation
from .router import Routing, route


@dataclass(frozen=True)
class Layer:
    """One layer's weights, laid out for decoding; norms are float32. mix: queries', keys' and values' matrices, one
    below the other."""

    attention_norm: Tensor
    mix: Tensor
    query_key_norms: tuple[Tensor, Tensor] | None
    out: Tensor
    moe_norm: Tensor
    router: Tensor
    gate_up: tuple[Tensor, ...]
    down: tuple[Tensor, ...]
    scale: float


def read(config: MoeConfig, layers: Sequence[Layer], embedded: Tensor, cache: KeyValueCache, last_only: bool) -> Tensor:
    """embedded (B, T, D), behind what `cache` holds -> the stream after the layers: (B, T, D), or (B, 1, D) of each
    text's last token. Inference only; `embedded` is overwritten. ValueError: the cache has no room."""
    batch, count, width = embedded.shape
    start, stream = cache.length, embedded.view(-1, width)  # (N, D)
    table = rotation(torch.arange(start, start + count, device=stream.device), config.head_width, config.rope_base)
    turn = [each[:, None, None, : config.head_width // 2].to(stream.dtype) for each in table]  # (T, 1, 1, d/2)
    for number, layer in enumerate(layers):
        queries, keys, values = _projected(config, layer, _norm(config, stream, layer.attention_norm), batch, turn)
        keys, values = cache.extend(number, keys, values)
        if last_only and number == len(layers) - 1:
            queries, stream = queries[:, :, -1:], stream.view(batch, count, width)[:, -1].clone()
        asked = queries.shape[2]
        allowed = sees(start + count - asked, asked, config.window, stream.device)
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, allowed, is_causal=allowed is None and asked > 1, scale=layer.scale,
            enable_gqa=keys.shape[1] != queries.shape[1],
        )  # fmt: skip
        mixed = mixed.transpose(1, 2).reshape(stream.shape[0], -1)
        stream.addmm_(mixed, layer.out.T, alpha=config.residual_multiplier)
        rows = _norm(config, stream, layer.moe_norm)
        routing = route(rows @ layer.router.T, config.active, config.normalise_weights)
        answer(layer, rows, routing, stream, config.residual_multiplier)
    cache.advance(count)
    return stream.view(batch, -1, width)


def _norm(config: MoeConfig, x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), config.norm_epsilon)


def _projected(
    config: MoeConfig, layer: Layer, x: Tensor, batch: int, turn: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, D) -> queries (B, H, T, d) and keys (B, G, T, d), turned, and values (B, G, T, d)."""
    heads, shared, width = config.heads, config.key_value_heads, config.head_width
    found = x @ layer.mix.T  # (N, (H + 2 G) d)
    if layer.query_key_norms is not None:
        sizes = [heads * width, shared * width, shared * width]
        for part, weight in zip(found.split(sizes, dim=-1), layer.query_key_norms, strict=False):
            part.copy_(_norm(config, part, weight))
    if config.clip is not None:
        found.clamp_(-config.clip, config.clip)
    found = found.view(batch, -1, heads + 2 * shared, width)  # (B, T, H + 2 G, d)
    straight = found[:, :, : heads + shared].unflatten(-1, (2, width // 2))
    cosine, sine = turn
    turned = straight * cosine
    turned[..., 0, :].addcmul_(straight[..., 1, :], sine[..., 0, :], value=-1)
    turned[..., 1, :].addcmul_(straight[..., 0, :], sine[..., 0, :])
    turned = turned.flatten(-2).transpose(1, 2)
    return turned[:, :heads], turned[:, heads:], found[:, :, heads + shared :].transpose(1, 2)


def answer(layer: Layer, rows: Tensor, routing: Routing, stream: Tensor, scale: float) -> None:
    """Adds to the stream (N, D), times `scale`, what the experts say to the rows (N, D): `Experts.sorted`, in place."""
    chosen = routing.experts.flatten()  # (N k)
    order = chosen.argsort(stable=True)
    counts = torch.bincount(chosen, minlength=len(layer.down)).tolist()
    tokens = (order // routing.experts.shape[1]).split(counts)
    weights = routing.weights.flatten()[order].mul_(scale).to(rows.dtype)[:, None].split(counts)
    hidden = rows.new_empty(max(counts), layer.gate_up[0].shape[0])
    for expert, count in enumerate(counts):
        if count:
            both = torch.mm(rows.index_select(0, tokens[expert]), layer.gate_up[expert].T, out=hidden[:count])
            gate, value = both.chunk(2, dim=-1)
            said = F.silu(gate, inplace=True).mul_(value) @ layer.down[expert].T
            stream.index_add_(0, tokens[expert], said.mul_(weights[expert]))
