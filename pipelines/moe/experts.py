"""The expert layer: E small gated networks (SwiGLU, Shazeer 2020), of which k work for a token.

Three ways to compute the same: a loop that can be read aloud, tokens sorted by expert for many tokens at once, and one
token that touches nothing but its own experts.

Letters: N tokens, D width, I expert width, E experts, k active.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import MoeConfig
from .router import Routing


class Experts(nn.Module):
    """All experts of a layer, stacked. gate_up (E, 2 I, D): the gate's rows, then the values'; down (E, D, I)."""

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(config.experts, 2 * config.expert_width, config.width))
        self.down = nn.Parameter(torch.empty(config.experts, config.width, config.expert_width))

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """x (N, D) -> (N, D): the weighted sum of what each token's experts say."""
        if x.shape[0] == 1 and not torch.is_grad_enabled():
            return self.one(x, routing)
        return self.sorted(x, routing)

    def loop(self, x: Tensor, routing: Routing) -> Tensor:
        """The definition: every expert in turn, for the tokens that chose it."""
        out = torch.zeros_like(x)
        for number in range(self.gate_up.shape[0]):
            chose = routing.experts == number
            if routing.kept is not None:
                chose = chose & routing.kept
            tokens, place = chose.nonzero(as_tuple=True)
            answer = expert(x[tokens], self.gate_up[number], self.down[number])
            out.index_add_(0, tokens, answer * routing.weights[tokens, place, None].to(x.dtype))
        return out

    def sorted(self, x: Tensor, routing: Routing) -> Tensor:
        """One matrix product an expert: rows sorted by expert, so that each expert's lie together."""
        chosen = routing.experts.flatten()  # (N k)
        if routing.kept is not None:
            chosen = torch.where(routing.kept.flatten(), chosen, self.gate_up.shape[0])  # behind the last expert
        order = chosen.argsort(stable=True)
        tokens = order // routing.experts.shape[1]
        counts = torch.bincount(chosen, minlength=self.gate_up.shape[0]).tolist()
        rows = x[tokens].split(counts)
        # unbind: the gradient of a slice would be as large as the stack, once for every expert
        stacks = zip(rows, self.gate_up.unbind(), self.down.unbind(), strict=False)
        answers = [expert(part, gate_up, down) for part, gate_up, down in stacks if part.shape[0]]
        used = sum(counts[: self.gate_up.shape[0]])
        if not used:
            return torch.zeros_like(x)
        scaled = torch.cat(answers) * routing.weights.flatten()[order[:used], None].to(x.dtype)
        return torch.zeros_like(x).index_add(0, tokens[:used], scaled)

    def one(self, x: Tensor, routing: Routing) -> Tensor:
        """One token, (1, D): its experts' weights are read once and nothing else is."""
        out = torch.zeros_like(x)
        for number, weight in zip(routing.experts[0].tolist(), routing.weights[0].tolist(), strict=True):
            out.add_(expert(x, self.gate_up[number], self.down[number]), alpha=weight)
        return out


def expert(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """SwiGLU: (n, D) -> (n, D)."""
    gate, value = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * value, down)
