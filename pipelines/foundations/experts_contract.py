"""What the live training of the toy experts hands to the page: numpy and Python types only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .config import ExpertsRecipe, Knobs

NETWORKS = ("experts", "size", "cost", "frozen")


@dataclass(frozen=True)
class Picture:
    """What a training has come to after `step` steps. S points a side, E experts.

    curves: (looks, 6), one row a look: step, share of points right of each of NETWORKS, balance loss. load (E,): each
    expert's share of the choices. refused: of the choices in the last batch. wanted (S, S): 0 or 1. answers: network ->
    (S, S), probability of 1. expert (S, S): the likeliest expert; sure (S, S): its probability.
    """

    recipe: ExpertsRecipe
    knobs: Knobs
    step: int
    curves: np.ndarray
    load: np.ndarray
    refused: float
    wanted: np.ndarray
    answers: dict[str, np.ndarray]
    expert: np.ndarray
    sure: np.ndarray
