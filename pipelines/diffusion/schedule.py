"""The noise schedule, as numbers per training step.

Conventions: a noisy latent is x = alpha * x0 + sigma * noise with alpha^2 + sigma^2 = 1; the velocity is
v = alpha * noise - sigma * x0 (Salimans & Ho 2022, appendix D).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import ScheduleConfig


def alphas_cumprod(cfg: ScheduleConfig) -> Tensor:
    """alpha^2 at each of the training steps, float64: (num_train_timesteps,), falling."""
    roots = torch.linspace(cfg.beta_start**0.5, cfg.beta_end**0.5, cfg.num_train_timesteps, dtype=torch.float64)
    return torch.cumprod(1.0 - roots.square(), dim=0)


def alpha_sigma(cfg: ScheduleConfig) -> tuple[Tensor, Tensor]:
    """alpha and sigma at each of the training steps, float32."""
    squares = alphas_cumprod(cfg)
    return squares.sqrt().float(), (1.0 - squares).sqrt().float()
