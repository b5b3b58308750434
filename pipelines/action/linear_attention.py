"""Attention of several heads: by the softmax, and by a kernel whose cost grows with the length alone. torch only.

Katharopoulos et al. 2020, "Transformers are RNNs": with weights phi(q) . phi(k) in place of exp(q . k), the sum over
the keys can be taken before any query is known. phi is elu + 1, which is positive.

Letters: B batch, H heads, Q tokens that ask, S tokens that are looked at, E width of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import Attention

# q (B, H, Q, E), k and v (B, H, S, E), hidden (B, S) bool or None, causal, dropout -> (B, H, Q, E).
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool, float], Tensor]


def attend(kind: Attention) -> Attend:
    """The attention of a kind, in its fast form."""
    return linear if kind == "linear" else softmax


def softmax(
    q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """q (B, H, Q, E), k and v (B, H, S, E) -> (B, H, Q, E), by torch's fused kernel.

    hidden: (B, S) bool, True where nothing may look; never all of a row. causal: token i sees 0 to i, and Q is S.
    dropout: of the weights.
    """
    if hidden is None:
        return F.scaled_dot_product_attention(q, k, v, None, dropout, causal)
    may = ~hidden[:, None, None, :]  # this kernel's True means "may look"
    if causal:
        may = may & _lower(q)
    return F.scaled_dot_product_attention(q, k, v, may, dropout)


def linear(
    q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """The same shapes with the kernel's weights. dropout: of the values, as the weights are never formed."""
    v = F.dropout(v, dropout, dropout > 0)
    if causal:  # the few queries of a decoder: not worth a running sum
        return weights("linear", q, k, hidden, True) @ v
    q, k = feature_map(q), feature_map(k)
    if hidden is not None:
        k = k.masked_fill(hidden[:, None, :, None], 0.0)
    total = k.sum(2)  # (B, H, E)
    return (q @ (k.transpose(2, 3) @ v)) / (q @ total[..., None])


def feature_map(x: Tensor) -> Tensor:
    """elu(x) + 1, above 0."""
    return F.elu(x) + 1.0


def weights(kind: Attention, q: Tensor, k: Tensor, hidden: Tensor | None = None, causal: bool = False) -> Tensor:
    """What each asking token looks at, written out: (B, H, Q, S), rows sum to 1."""
    if kind == "linear":
        scores, never = feature_map(q) @ feature_map(k).transpose(2, 3), 0.0
    else:
        scores, never = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3), -torch.inf
    if hidden is not None:
        scores = scores.masked_fill(hidden[:, None, None, :], never)
    if causal:
        scores = scores.masked_fill(~_lower(q), never)
    return scores / scores.sum(-1, keepdim=True) if kind == "linear" else scores.softmax(-1)


def _lower(q: Tensor) -> Tensor:
    count = q.shape[2]
    return torch.ones(count, count, dtype=torch.bool, device=q.device).tril()
