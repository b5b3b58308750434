"""Tokens one after another, as text. The network is an argument; what a visitor's text needs lives in this generator.

Closing the generator stops the work before the next token, or before the next part of a long prompt. Each step waits
for its turn on the device, so that visitors who write at the same time take turns token by token.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from pipelines.common import backends, device
from pipelines.common.stream import TextStream

from .config import MoeConfig
from .contract import Finish
from .sampling import Sampling, choose
from .tokenizer import TextTokenizer

# A part of a prompt should take well under a second of two cores, at some 1e11 operations a second.
PART_OPERATIONS = 6e10
PARTS = (32, 512)  # least and most tokens: smaller parts read all weights for too little, larger ones gain nothing


class Stepper(Protocol):
    """A visitor's place in a text: what `open` of a backend returns."""

    def feed(self, tokens: Sequence[int]) -> Tensor:
        """(V,) logits of the token after these, which stand behind all that were fed before."""
        ...

    def trace(self) -> tuple[Any, Any, Any]:
        """Logits (L, N, E), experts (L, N, k) and weights (L, N, k) of all tokens fed so far."""
        ...


@dataclass(frozen=True)
class Job:
    """What is to be written.

    prompt: ids, at least one. most: new tokens. room: positions of the context, prompt included. stops: none of them
    empty. answer: the text begins here (a chat), it does not go on with the prompt. last: whether the last token is fed
    too, so that a trace has it. device: whose turn is waited for.
    """

    prompt: tuple[int, ...]
    most: int
    room: int
    sampling: Sampling
    stops: tuple[str, ...] = ()
    seed: int = 0
    answer: bool = False
    last: bool = False
    device: str = "cpu"


@dataclass
class Clock:
    """Seconds of work, waiting for a turn or for the reader left out, and decoding steps through the network."""

    prefill: float = 0.0
    decode: float = 0.0
    steps: int = 0

    @property
    def rate(self) -> float:
        """Tokens a second of decoding, 0 where nothing was decoded."""
        return self.steps / self.decode if self.steps else 0.0


@dataclass(frozen=True)
class Written:
    """The text so far. tokens: those that it is made of, those of a text that a stop string cut included as far as they
    are in it; the mark that ends a text is not one. finish: set in the last only."""

    text: str
    tokens: tuple[int, ...]
    finish: Finish | None = None


@dataclass
class _Text:
    """The new tokens and what they read as."""

    stream: TextStream
    tokenizer: TextTokenizer
    strip: bool
    tokens: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)  # characters there were with each token

    def add(self, token: int) -> None:
        data = self.tokenizer.written(token)
        if self.strip:
            data, self.strip = data.removeprefix(b" "), False
        self.stream.push(data)
        self.tokens.append(token)
        self.ends.append(self.stream.length)

    def over(self, job: Job) -> Finish | None:
        """Why no further token may come."""
        if self.stream.stopped:
            return "stop"
        if len(self.tokens) >= job.most:
            return "length"
        return "context" if len(job.prompt) + len(self.tokens) >= job.room else None

    def so_far(self) -> Written:
        return Written(self.stream.shown, tuple(self.tokens))

    def whole(self, finish: Finish) -> Written:
        text = self.stream.finish()
        if not self.stream.stopped:
            return Written(text, tuple(self.tokens), finish)
        # The last token brought the stop string; some before it may be parts of it too.
        kept = bisect_left(self.ends, len(text), hi=len(self.ends) - 1) + 1 if text else 0
        return Written(text, tuple(self.tokens[:kept]), "stop")


def generate(
    stepper: Stepper, tokenizer: TextTokenizer, job: Job, part: int = PARTS[1], clock: Clock | None = None
) -> Generator[Written, None, None]:  # fmt: skip
    """The text after each token, and once for each part of the prompt before them.

    part: tokens of a prompt that are read at once (`part_of`). clock: gets the times.
    """
    clock = Clock() if clock is None else clock
    text = _Text(TextStream(job.stops), tokenizer, job.answer and tokenizer.strips)
    for start in range(0, len(job.prompt), part):
        logits = _fed(stepper, job.prompt[start : start + part], job.device, clock, "prefill")
        yield text.so_far()
    seen = torch.zeros(logits.shape[0], dtype=torch.bool)
    seen[list(job.prompt)] = True
    draws = device.generator(job.seed)
    while (finish := text.over(job)) is None:
        start_time = time.perf_counter()
        token = choose(logits, seen, job.sampling, draws)
        if token in tokenizer.ends:
            finish = "end"
            break
        seen[token] = True
        text.add(token)
        clock.decode += time.perf_counter() - start_time
        yield text.so_far()
        if job.last or text.over(job) is None:
            logits = _fed(stepper, [token], job.device, clock, "decode")
    yield text.whole(finish)


def part_of(config: MoeConfig) -> int:
    """Tokens of a prompt to read at once: so many that a visitor who leaves is noticed within a second. A power of two
    that the configuration alone decides, since the cut of a prompt shows in the last digits of its logits."""
    fitting = PART_OPERATIONS / (2 * config.parameters[1])
    part = PARTS[0]
    while part * 2 <= min(fitting, PARTS[1]):
        part *= 2
    return part


def _fed(stepper: Stepper, tokens: Sequence[int], where: str, clock: Clock, stage: str) -> Tensor:
    with backends.step(where):
        start = time.perf_counter()
        logits = stepper.feed(tokens).float().cpu()
        seconds = time.perf_counter() - start
    setattr(clock, stage, getattr(clock, stage) + seconds)
    clock.steps += stage == "decode"
    return logits
