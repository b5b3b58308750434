"""Three tasks of any length that ask a network for its memory: copy, recall and sort. numpy only.

A sequence is what is given, then a mark, then the answer; only the answer is judged. Letters: B sequences, N symbols
given, V kinds of symbols.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TASKS = ("copy", "recall", "sort")
VALUES = 8  # V: symbols 0 to V - 1
MARK = VALUES  # "now answer"
KEYS = VALUES + 1  # recall: the first of V keys
TOKENS = 2 * VALUES + 1


@dataclass(frozen=True)
class Batch:
    """given (B, S) int64 ends with what asks for the answer; answer (B, A) int64. A language model reads both."""

    given: np.ndarray
    answer: np.ndarray

    @property
    def inputs(self) -> np.ndarray:
        """(B, S + A - 1): what is read, all but the last symbol of the answer."""
        return np.concatenate([self.given, self.answer[:, :-1]], axis=1)


def draw(task: str, length: int, count: int, rng: np.random.Generator) -> Batch:
    """`count` examples of `length` symbols.

    copy: say them again (Graves et al. 2014). sort: say them in order. recall: key and value in turn, then one of the
    keys: say its value (Ba et al. 2016); `length` pairs, at most VALUES. ValueError: no such task or length.
    """
    if task not in TASKS or length < 1 or (task == "recall" and length > VALUES):
        raise ValueError(f"no task {task!r} of length {length}")
    if task == "recall":
        keys = np.argsort(rng.random((count, VALUES)), axis=1)[:, :length]
        values = rng.integers(0, VALUES, (count, length))
        pairs = np.stack([keys + KEYS, values], axis=2).reshape(count, 2 * length)
        asked = rng.integers(0, length, (count, 1))
        mark = np.full((count, 1), MARK)
        given = np.concatenate([pairs, mark, np.take_along_axis(keys, asked, 1) + KEYS], axis=1)
        return Batch(given, np.take_along_axis(values, asked, 1))
    symbols = rng.integers(0, VALUES, (count, length))
    given = np.concatenate([symbols, np.full((count, 1), MARK)], axis=1)
    return Batch(given, symbols if task == "copy" else np.sort(symbols, axis=1))


def steps_in_a_row(kind: str, length: int) -> int:
    """How many steps must run one after another to read a sequence, each waiting for the one before: a layer of a
    Transformer reads all at once, and of either Transformer there are two; a recurrent layer reads symbol by symbol.
    """
    return 2 if kind in ("transformer", "encdec") else length
