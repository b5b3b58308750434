"""Muon: momentum whose matrices are made orthogonal before each step (Jordan et al. 2024, "Muon: an optimizer for
hidden layers in neural networks"), with the step scaled to AdamW's size (Liu et al. 2025, "Muon is scalable for LLM
training", section 2.2), so that one learning rate serves both.

Shapes: M rows, N columns; a convolution's weight is taken as (out, in * height * width), a weight of three dimensions
as a stack of matrices (experts).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the quintic of the paper: singular values end in about [0.7, 1.2]


def orthogonalise(matrix: Tensor, iterations: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: (M, N) -> (M, N) with all singular values about 1."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def orthogonalise_wide(matrix: Tensor, iterations: int = 5) -> Tensor:
    """The same for matrices much longer one way, at a third of the cost: the iteration runs on the small Gram matrix.

    Every iterate is a polynomial in G = X X^T times X, and such polynomials commute, so X is touched only at the
    ends.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    gram, total = x @ x.T, None
    for i in range(iterations):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        total = factor if total is None else factor @ total
        if i + 1 < iterations:
            gram = factor @ gram @ factor
    x = total @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """For hidden layers: weights that are matrices. Embeddings, biases, first and last layers belong to AdamW."""

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """dtype: of the products that make a matrix orthogonal. bfloat16 is enough for the plain iteration, but not
        for the one on the Gram matrix, which squares the singular values."""
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                ahead = torch.lerp(weight.grad, state["momentum"], group["momentum"])
                matrices = ahead.unbind() if ahead.ndim == 3 else (ahead.flatten(1),)
                size = max(matrices[0].shape)
                wide = size > 2 * min(matrices[0].shape) and self.dtype == torch.float32
                orthogonal = orthogonalise_wide if wide else orthogonalise
                updates = [orthogonal(matrix.to(self.dtype)).to(weight.dtype) for matrix in matrices]
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(torch.stack(updates).view_as(weight), alpha=-group["lr"] * 0.2 * size**0.5)
