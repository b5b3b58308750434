"""A step of work on one core. What this tab trains is so small that threads would wait for each other longer than they
work: on a machine where others are at work too, a step with two threads takes many times as long as with one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.common import backends
from pipelines.common.bench import torch_threads


@contextmanager
def step() -> Iterator[None]:
    """`backends.step` of the CPU, with one thread."""
    with backends.step("cpu"), torch_threads(1):
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A `step` in which torch draws from the seed: for first weights. All threads share torch's own generator, so that
    two at once would mix theirs; afterwards it goes on as if nothing had been drawn."""
    import torch

    with step(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
