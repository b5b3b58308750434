"""From the logits of one step to a token: pure functions on (V,) float32 CPU tensors.

They compose in the order of the transformers library: repetition penalty, temperature, top-k, top-p, min-p, and each
sees what those before it left. A token that is out has a logit of minus infinity. Sorting is numpy's, which was
measured to take a twentieth of the time of torch's for one row of 4,096 or 50,000.

Letters: V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

COLD = 1e-6  # a temperature below this is 0: divided by it, the gaps between logits leave float32


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen; the fields are `TextRequest`'s. temperature 0 takes the likeliest token, after the
    penalty."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def choose(logits: Tensor, seen: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token's id. seen (V,) bool: which tokens were there already, given or new."""
    if sampling.temperature < COLD:
        return int(penalised(logits, seen, sampling.repetition_penalty).argmax())
    return draw(warped(logits, seen, sampling), generator)


def warped(logits: Tensor, seen: Tensor, sampling: Sampling) -> Tensor:
    """The logits that a token is drawn by, for a temperature above 0."""
    logits = penalised(logits, seen, sampling.repetition_penalty)
    logits = tempered(logits, sampling.temperature)
    logits = within_top_k(logits, sampling.top_k)
    logits = within_top_p(logits, sampling.top_p)
    return within_min_p(logits, sampling.min_p)


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Tokens that were there already: positive logits divided, negative ones multiplied (Keskar et al. 2019)."""
    if penalty == 1:
        return logits
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Divided by the temperature. The largest becomes 0, which changes no probability and keeps a small temperature
    from making infinities."""
    return (logits - logits.max()) / temperature


def within_top_k(logits: Tensor, k: int) -> Tensor:
    """The k likeliest stay, and those as likely as the last of them; 0 keeps all."""
    count = logits.shape[0]
    if k <= 0 or k >= count:
        return logits
    least = float(np.partition(logits.numpy(), count - k)[count - k])
    return logits.masked_fill(logits < least, -torch.inf)


def within_top_p(logits: Tensor, p: float) -> Tensor:
    """The likeliest that together reach probability p stay (nucleus, Holtzman et al. 2019), and those as likely as the
    last of them; at least the likeliest does."""
    if p >= 1:
        return logits
    probabilities = logits.softmax(dim=0).numpy()
    # All below this together have less than 1 - p, so they are out whatever the rest is: few are left to sort.
    tail = np.float32((1 - p) / len(probabilities))
    candidates = np.sort(probabilities[probabilities >= tail])[::-1]
    before = np.cumsum(candidates, dtype=np.float64) - candidates  # of those likelier
    least = float(candidates[max(int(np.searchsorted(before, p)) - 1, 0)])
    return logits.masked_fill(torch.from_numpy(probabilities < least), -torch.inf)


def within_min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens less likely than p times the likeliest go (Nguyen et al. 2024); 0 keeps all."""
    if p <= 0:
        return logits
    probabilities = logits.softmax(dim=0)
    return logits.masked_fill(probabilities < p * probabilities.max(), -torch.inf)


def draw(logits: Tensor, generator: torch.Generator) -> int:
    """A token by its probability, by the inverse of the distribution function: one random number a token, so that a
    seed means the same text with any library's sampler of the future."""
    reached = logits.double().softmax(dim=0).cumsum(dim=0)
    at = torch.rand(1, generator=generator, dtype=torch.float64) * reached[-1]
    return int(torch.searchsorted(reached, at, right=True).clamp(max=len(reached) - 1))
