"""Recurrent networks, written as the equations that a step obeys: Elman's RNN, the LSTM and the GRU.

Letters: B sequences, T steps, I width of an input, H width of the state.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

KINDS = ("rnn", "lstm", "gru")
GATES = {"rnn": 1, "lstm": 4, "gru": 3}


class Recurrent(nn.Module):
    """One layer. The steps must run one after another: `forward` is a loop of T `step`s.

    Weights are laid out as torch.nn's: a row block a gate, in the order i f g o (LSTM) or r z n (GRU).
    """

    def __init__(self, kind: str, inputs: int, hidden: int, forget_bias: float = 1.0) -> None:
        """forget_bias: what an LSTM's forget gate begins with, so that it remembers (Gers et al. 2000; Jozefowicz et
        al. 2015). ValueError: no such kind."""
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"the kinds are {KINDS}, not {kind!r}")
        self.kind, self.hidden = kind, hidden
        rows, bound = GATES[kind] * hidden, 1 / math.sqrt(hidden)
        self.weight_input = nn.Parameter(torch.empty(rows, inputs).uniform_(-bound, bound))
        self.weight_hidden = nn.Parameter(torch.empty(rows, hidden).uniform_(-bound, bound))
        self.bias_input = nn.Parameter(torch.zeros(rows))
        self.bias_hidden = nn.Parameter(torch.zeros(rows))
        if kind == "lstm":
            with torch.no_grad():
                self.bias_input[hidden : 2 * hidden] = forget_bias

    def start(self, batch: int) -> tuple[Tensor, ...]:
        """The state before anything was read: (h,), or (h, c) of an LSTM; each (B, H)."""
        zero = self.bias_input.new_zeros(batch, self.hidden)
        return (zero, zero) if self.kind == "lstm" else (zero,)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """x (B, I) -> the next state, whose first part is the output."""
        return self._next(x @ self.weight_input.T + self.bias_input, state)

    def _next(self, drive: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """drive (B, gates · H): what the input says to the gates."""
        hidden = state[0]
        echo = hidden @ self.weight_hidden.T + self.bias_hidden
        if self.kind == "rnn":  # Elman 1990: h = tanh(W x + U h + b)
            return (torch.tanh(drive + echo),)
        if self.kind == "lstm":  # Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000
            write, keep, new, show = (drive + echo).chunk(4, dim=-1)
            cell = torch.sigmoid(keep) * state[1] + torch.sigmoid(write) * torch.tanh(new)
            return torch.sigmoid(show) * torch.tanh(cell), cell
        # Cho et al. 2014, but the reset gate acts on U h + b as in torch and cuDNN, and not on h before that.
        drives, echoes = drive.chunk(3, dim=-1), echo.chunk(3, dim=-1)
        reset, update = torch.sigmoid(drives[0] + echoes[0]), torch.sigmoid(drives[1] + echoes[1])
        new = torch.tanh(drives[2] + reset * echoes[2])
        return ((1 - update) * new + update * hidden,)

    def forward(self, x: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x (B, T, I) -> outputs (B, T, H) and the last state."""
        state = self.start(len(x)) if state is None else state
        drives = x @ self.weight_input.T + self.bias_input  # all inputs at once: only the state has to wait
        outputs = []
        for drive in drives.unbind(dim=1):
            state = self._next(drive, state)
            outputs.append(state[0])
        return torch.stack(outputs, dim=1), state
