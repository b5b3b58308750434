"""Small recurrent networks and Transformers of equal size, trained side by side on one task while one watches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import one_core
from .recurrent import Recurrent
from .tasks import TOKENS, Batch, draw
from .transformer import Decoder, Encoder, places

HEADS = 4
SIZE = 24_000  # parameters, at most
RATE = 3e-3
BATCH = 32


class Reader(nn.Module):
    """Reads a task and its answer so far, and says the next symbol of the answer after each.

    kind: rnn, lstm, gru; transformer (two causal layers over all that is read); encdec (Vaswani et al. 2017 in full:
    one encoder layer over what is given up to its last symbol; one decoder layer that starts with that symbol, the
    mark or the key that is asked for, and reads the answer so far). `answers`, below, is the answer's length A: of T
    symbols that are read, the last A belong to the decoder.
    """

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind, self.width = kind, width
        self.embedding = nn.Embedding(TOKENS, width)
        if kind == "transformer":
            self.body: nn.Module = Encoder(width, HEADS, 4 * width, 2, norm_first=True)
        elif kind == "encdec":
            self.encoder = Encoder(width, HEADS, 4 * width, 1, norm_first=True)
            self.body = Decoder(width, HEADS, 4 * width, 1, norm_first=True)
        else:
            self.body = Recurrent(kind, width, width)
        self.head = nn.Linear(width, TOKENS)

    def embed(self, tokens: Tensor, answers: int) -> Tensor:
        """(B, T) int64 -> (B, T, W)."""
        x, length = self.embedding(tokens), tokens.shape[1]
        if self.kind == "transformer":
            return x + places(length, self.width).to(x)
        if self.kind == "encdec":  # either half counts its own places
            own = [places(part, self.width) for part in (length - answers, answers)]
            return x + torch.cat(own).to(x)
        return x

    def read(self, x: Tensor, answers: int) -> Tensor:
        """(B, T, W) -> (B, A, TOKENS) logits of the answer's symbols."""
        if self.kind == "encdec":
            return self.head(self.body(x[:, -answers:], self.encoder(x[:, :-answers])))
        read = self.body(x, True) if self.kind == "transformer" else self.body(x)[0]
        return self.head(read[:, -answers:])

    def forward(self, tokens: Tensor, answers: int) -> Tensor:
        return self.read(self.embed(tokens, answers), answers)


def parameters(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


def equal_width(kind: str, size: int = SIZE) -> int:
    """The largest width, a multiple of HEADS, with at most so many parameters."""
    width = HEADS
    while parameters(Reader(kind, width + HEADS)) <= size:
        width += HEADS
    return width


@dataclass
class Course:
    """One network's way so far. steps, losses, accuracies: of 200 examples drawn apart from those of the training,
    which may hold the same ones where a task is short; distance: see `gradients`."""

    kind: str
    size: int
    seconds: float = 0.0
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    distance: np.ndarray | None = None


def train(
    kinds: Sequence[str], task: str, length: int, steps: int, seed: int = 0, every: int = 20
) -> Iterator[list[Course]]:  # fmt: skip
    """Train one network of each kind on the same examples; after each `every` steps of all, their courses so far. The
    last report has the gradients too."""
    networks = []
    for kind in kinds:  # each from the seed, so that the others have no part in its first weights
        with one_core.seeded(seed):
            networks.append(Reader(kind, equal_width(kind)))
    optimizers = [torch.optim.Adam(network.parameters(), RATE) for network in networks]
    courses = [Course(network.kind, parameters(network)) for network in networks]
    rng, fresh = np.random.default_rng(seed), draw(task, length, 200, np.random.default_rng(seed + 1))
    for step in range(1, steps + 1):
        batch = draw(task, length, BATCH, rng)
        for network, optimizer, course in zip(networks, optimizers, courses, strict=True):
            with one_core.step():
                start = time.thread_time()
                update(network, optimizer, batch)
                course.seconds += time.thread_time() - start
        if step % every == 0 or step in (1, steps):
            for network, course in zip(networks, courses, strict=True):
                with one_core.step():
                    loss, accuracy = judge(network, fresh)
                    course.distance = gradients(network, fresh) if step == steps else None
                course.steps.append(step)
                course.losses.append(loss)
                course.accuracies.append(accuracy)
            yield courses


def update(network: Reader, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """One step of training, its gradient no longer than 1."""
    optimizer.zero_grad()
    answer_loss(network, batch).backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


def answer_loss(network: Reader, batch: Batch) -> Tensor:
    """Mean nats of a symbol of the answer."""
    logits = network(torch.from_numpy(batch.inputs), batch.answer.shape[1])
    return F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.answer).flatten())


@torch.no_grad()
def judge(network: Reader, batch: Batch) -> tuple[float, float]:
    """(nats, share of right symbols) of the answers."""
    logits = network(torch.from_numpy(batch.inputs), batch.answer.shape[1])
    wanted = torch.from_numpy(batch.answer)
    loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten())
    return float(loss), float((logits.argmax(-1) == wanted).float().mean())


def gradients(network: Reader, batch: Batch) -> np.ndarray:
    """(T,) mean norm of the gradient of the answer's last symbol with respect to what was read 0, 1, 2 ... steps before
    it: how loudly a change that far back is heard."""
    answers = batch.answer.shape[1]
    x = network.embed(torch.from_numpy(batch.inputs), answers).detach().requires_grad_()
    last = network.read(x, answers)[:, -1]
    loss = F.cross_entropy(last, torch.from_numpy(batch.answer[:, -1]), reduction="sum")
    (found,) = torch.autograd.grad(loss, x)
    return found.norm(dim=-1).mean(dim=0).flip(0).double().numpy()
