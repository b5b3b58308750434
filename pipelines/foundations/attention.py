"""Attention and what was made of it to grow with the length and not with its square.

softmax (Vaswani et al. 2017), linear attention (Katharopoulos et al. 2020, with elu + 1; Shen et al. 2018, with keys
and queries normalised by softmax), the gated attention unit, FLASH-Quad and FLASH (Hua et al. 2022).

Letters: ... any leading axes, T tokens, D width of a query and a key, E width of a value, C tokens of a chunk, N
chunks.
Each causal form that is parallel over the tokens has a recurrent twin, and tests hold the two equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = ("elu", "softmax")
CHUNK = 128
PART = 4  # chunks


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """softmax(QKᵀ / √D) V. q, k (..., T, D), v (..., T, E) -> (..., T, E). Time and memory grow with T²."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(_future(q.shape[-2], k.shape[-2], q.device), -math.inf)
    return scores.softmax(dim=-1) @ v


def _future(queries: int, keys: int, device: torch.device) -> Tensor:
    """(queries, keys) bool: the keys that a query may not see yet. The last query stands at the last key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).triu(keys - queries + 1)


# --- linear ----------------------------------------------------------------------------------------------------------


def mapped(
    q: Tensor, k: Tensor, feature: str, causal: bool, before: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Queries and keys whose products are the attention weights, each row of which adds up to 1.

    before (..., 1, D): of causal attention over a text in parts, the sum of the keys of the earlier ones.

    elu: φ(x) = elu(x) + 1, divided by the sum over the keys that are seen (Katharopoulos et al., equation 9).
    softmax: a query's features are normalised over the features, a key's over the tokens that are seen (Shen et al.,
    equation 9). exp is taken as it is in the causal form: |k| must stay below 80.
    """
    if feature == "elu":
        q, k = F.elu(q) + 1, F.elu(k) + 1
        seen = before + k.cumsum(dim=-2) if causal else k.sum(dim=-2, keepdim=True)
        return q / (q * seen).sum(dim=-1, keepdim=True), k
    if feature != "softmax":
        raise ValueError(f"the feature maps are {FEATURES}, not {feature!r}")
    if not causal:
        return q.softmax(dim=-1), k.softmax(dim=-2)
    k = k.exp()
    return q.softmax(dim=-1) / (before + k.cumsum(dim=-2)), k


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = False, feature: str = "elu", chunk: int = CHUNK
) -> Tensor:
    """φ(Q) (φ(K)ᵀ V): the same weights as `linear_weights`, without writing them down. Time and memory grow with T.

    A causal text is read in parts of PART chunks that hand their sums on: what is at work stays within the processor's
    cache, without which the time of a long text grows faster than its length.
    """
    if not causal:
        q, k = mapped(q, k, feature, causal)
        return q @ (k.transpose(-1, -2) @ v)
    total: Tensor | float = 0.0
    before: Tensor | float = 0.0
    found = []
    for part in zip(*(each.split(PART * chunk, dim=-2) for each in (q, k, v)), strict=True):
        a, b = mapped(part[0], part[1], feature, True, before)
        here = causal_product(a, b, part[2], chunk)
        found.append(here + a @ total if isinstance(total, Tensor) else here)
        total = total + b.transpose(-1, -2) @ part[2]
        before = before + b.sum(dim=-2, keepdim=True)
    return torch.cat(found, dim=-2)


def linear_weights(q: Tensor, k: Tensor, causal: bool = False, feature: str = "elu") -> Tensor:
    """(..., T, T): the attention matrix of linear attention, written down."""
    q, k = mapped(q, k, feature, causal)
    weights = q @ k.transpose(-1, -2)
    return weights.tril() if causal else weights


def causal_product(q: Tensor, k: Tensor, v: Tensor, chunk: int = CHUNK) -> Tensor:
    """tril(QKᵀ) V in chunks: within a chunk as it stands, and what came before it through one (D, E) state."""
    length = q.shape[-2]
    q, k, v = (_chunked(each, chunk) for each in (q, k, v))  # (..., N, C, *)
    within = (q @ k.transpose(-1, -2)).tril() @ v
    return (within + q @ _before(k.transpose(-1, -2) @ v)).flatten(-3, -2)[..., :length, :]


def _chunked(x: Tensor, chunk: int) -> Tensor:
    """(..., T, D) -> (..., N, C, D), with zeros at the end."""
    return F.pad(x, (0, 0, 0, -x.shape[-2] % chunk)).unflatten(-2, (-1, chunk))


def _before(states: Tensor) -> Tensor:
    """(..., N, D, E): the sum of the chunks before each. Not a difference of sums with it and without: what is large in
    a chunk would leave its rounding error in what came before it."""
    return F.pad(states.cumsum(dim=-3)[..., :-1, :, :], (0, 0, 0, 0, 1, 0))


@dataclass
class LinearState:
    """All that linear attention remembers when it decodes. total (..., D, E); seen (..., D)."""

    total: Tensor | float = 0.0
    seen: Tensor | float = 0.0

    def step(self, q: Tensor, k: Tensor, v: Tensor, feature: str = "elu") -> Tensor:
        """One token: q, k (..., D), v (..., E) -> (..., E)."""
        q, k = (F.elu(q) + 1, F.elu(k) + 1) if feature == "elu" else (q.softmax(dim=-1), k.exp())
        self.seen = self.seen + k
        self.total = self.total + k[..., :, None] * v[..., None, :]
        if feature == "elu":
            return (q[..., None, :] @ self.total)[..., 0, :] / (q * self.seen).sum(dim=-1, keepdim=True)
        return ((q / self.seen)[..., None, :] @ self.total)[..., 0, :]


# --- gated attention units -------------------------------------------------------------------------------------------


class RelativeBias(nn.Module):
    """A number for each distance, T5's buckets (Raffel et al. 2020): exact when near, logarithmic when far.

    buckets: of the past, and as many of the future; the first half of them hold one distance each. far: the distance
    from which on all are in the last one. ValueError: it lies among those that have a bucket of their own."""

    def __init__(self, buckets: int = 32, far: int = 128) -> None:
        super().__init__()
        if far <= buckets // 2:
            raise ValueError(f"far must be more than half of {buckets} buckets, not {far}")
        self.buckets, self.far = buckets, far
        self.table = nn.Parameter(torch.zeros(2 * buckets))

    def forward(self, queries: int, keys: int) -> Tensor:
        """(queries, keys); the last query stands at the last key."""
        # All depends on the distance only: one number for each, then a window of them for each query.
        apart = keys - 1 - torch.arange(queries + keys - 1, device=self.table.device)
        size, exact = apart.abs(), self.buckets // 2
        ratio = (size.clamp_min(1) / exact).log() / math.log(self.far / exact)
        logarithmic = (exact + (ratio * (self.buckets - exact)).long()).clamp_max(self.buckets - 1)
        values = self.table[torch.where(size < exact, size, logarithmic) + self.buckets * (apart < 0)]
        return values.unfold(0, keys, 1).flip(0)


def squared_relu(q: Tensor, k: Tensor, bias: Tensor, scale: float, causal: bool) -> Tensor:
    """relu²(QKᵀ / scale + b): the attention weights of Hua et al., section 3.2; no row need add up to 1."""
    weights = F.relu(q @ k.transpose(-1, -2) / scale + bias).square()
    return weights.masked_fill(_future(q.shape[-2], k.shape[-2], q.device), 0) if causal else weights


class ScaleOffset(nn.Module):
    """Queries and keys are cheap images of one shared Z: a gain and a shift a feature, for each of `count` uses."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(1 + 0.02 * torch.randn(count, width))
        self.shift = nn.Parameter(torch.zeros(count, width))

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        return (z[..., None, :] * self.gain + self.shift).unbind(dim=-2)


class GatedAttentionUnit(nn.Module):
    """O = (U ⊙ A V) W_o, equations 4 to 6: attention and feed-forward layer in one, with a single head. With its whole
    square of weights it is the layer of FLASH-Quad."""

    uses = 2

    def __init__(self, width: int, expanded: int, shared: int = 64, chunk: int = CHUNK) -> None:
        """expanded: width E of U and V, twice `width` in the paper; shared: width of Z; chunk: in FLASH the length of a
        chunk, and in both what QKᵀ is divided by. The paper divides by the length of the text in a unit alone, which
        while decoding would change with every token."""
        super().__init__()
        self.expanded, self.shared, self.chunk = expanded, shared, chunk
        self.inward = nn.Linear(width, 2 * expanded + shared)
        self.images = ScaleOffset(shared, self.uses)
        self.bias = RelativeBias(far=max(chunk, 32))
        self.outward = nn.Linear(expanded, width)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """(..., T, width) -> U, V (..., T, E), and the queries and keys (..., T, shared)."""
        u, v, z = F.silu(self.inward(x)).split([self.expanded, self.expanded, self.shared], dim=-1)
        return u, v, self.images(z)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """(..., T, width) -> the same."""
        u, v, (q, k) = self.split(x)
        bias = self.bias(x.shape[-2], x.shape[-2])
        return self.outward(u * (squared_relu(q, k, bias, self.chunk, causal) @ v))

    def step(self, x: Tensor, state: UnitState) -> Tensor:
        """One more token (..., width), given all those before it."""
        u, v, (q, k) = self.split(x[..., None, :])
        keys, values = state.add(k, v)
        weights = squared_relu(q, keys, self.bias(1, keys.shape[-2]), self.chunk, True)
        return self.outward(u * (weights @ values))[..., 0, :]


class Flash(GatedAttentionUnit):
    """Mixed chunk attention, section 4: within a chunk a gated attention unit, between chunks linear attention. Causal,
    a chunk hears the sum of those before it."""

    uses = 4

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        length = x.shape[-2]
        u, v, images = self.split(x)
        near_q, near_k, far_q, far_k = (_chunked(each, self.chunk) for each in images)
        values = _chunked(v, self.chunk)  # (..., N, C, E)
        weights = squared_relu(near_q, near_k, self.bias(self.chunk, self.chunk), self.chunk, causal)
        states = far_k.transpose(-1, -2) @ values / self.chunk  # (..., N, shared, E)
        heard = _before(states) if causal else states.sum(dim=-3, keepdim=True)
        # Without the causal mask the sum has all T tokens in it, and is brought back to the size of one chunk's.
        heard = heard / (1 if causal else states.shape[-3])
        mixed = (weights @ values + far_q @ heard).flatten(-3, -2)[..., :length, :]
        return self.outward(u * mixed)

    def step(self, x: Tensor, state: UnitState) -> Tensor:
        u, v, (near_q, near_k, far_q, far_k) = self.split(x[..., None, :])
        if state.tokens and state.tokens % self.chunk == 0:  # a chunk is full: it becomes part of the sum
            state.before = state.before + state.chunk_sum
            state.keys, state.values, state.chunk_sum = None, None, 0.0
        keys, values = state.add(near_k, v)
        state.chunk_sum = state.chunk_sum + far_k.transpose(-1, -2) @ v / self.chunk
        mixed = squared_relu(near_q, keys, self.bias(1, keys.shape[-2]), self.chunk, True) @ values
        if isinstance(state.before, Tensor):
            mixed = mixed + far_q @ state.before
        return self.outward(u * mixed)[..., 0, :]


@dataclass
class UnitState:
    """What a gated attention unit remembers when it decodes: keys and values (of this chunk only in FLASH), and the
    sums of this chunk and of those before it."""

    keys: Tensor | None = None
    values: Tensor | None = None
    before: Tensor | float = 0.0
    chunk_sum: Tensor | float = 0.0
    tokens: int = 0

    def add(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """One token: key (..., 1, shared), value (..., 1, E). Returns all that are kept."""
        self.keys = key if self.keys is None else torch.cat([self.keys, key], dim=-2)
        self.values = value if self.values is None else torch.cat([self.values, value], dim=-2)
        self.tokens += 1
        return self.keys, self.values
