"""Measures the bundled story model, by itself and by what it writes.

    python -m pipelines.moe.evaluate --stories DIR [--weights ID] [--samples 50]

DIR holds the stories of the training. Bits per byte and the load of the experts come from the documents that were kept
out of it (train_data.held_out); how much the model repeats its training text comes from samples that nobody picked.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .contract import TextRequest
from .pipeline import read, run
from .train_data import SOURCES, documents, held_out

RUNS = (6, 10, 16)  # words in a row


@dataclass(frozen=True)
class Copied:
    """How much of texts stands word for word in others. share: by length of the run, the part of the words that lie in
    a run of so many words that stands there too. longest: the longest run of each text, in words."""

    share: dict[int, float]
    longest: list[int]


def copied(texts: Iterable[str], sources: Iterable[str], runs: tuple[int, ...] = RUNS) -> Copied:
    """What of `texts` stands in `sources`; runs do not cross from one source to the next."""
    kept = [words.split() for words in texts]
    known = {n: set[tuple[str, ...]]() for n in runs}
    for source in sources:
        words = source.split()
        for n in runs:
            known[n].update(zip(*(words[i:] for i in range(n)), strict=False))
    share = {}
    for n in runs:
        covered = [_covered(words, n, known[n]) for words in kept]
        share[n] = sum(int(each.sum()) for each in covered) / max(1, sum(map(len, kept)))
    shortest = min(runs)
    longest = [_longest(_covered(words, shortest, known[shortest]), shortest) for words in kept]
    return Copied(share, longest)


def _covered(words: list[str], n: int, known: set[tuple[str, ...]]) -> np.ndarray:
    """Which words lie in a run of n that is known."""
    covered = np.zeros(len(words), bool)
    for at in range(len(words) - n + 1):
        if tuple(words[at : at + n]) in known:
            covered[at : at + n] = True
    return covered


def _longest(covered: np.ndarray, shortest: int) -> int:
    """The longest stretch of covered words: an upper bound of the longest run, as runs of several sources may meet."""
    best = run_length = 0
    for each in covered:
        run_length = run_length + 1 if each else 0
        best = max(best, run_length)
    return best if best >= shortest else 0


@dataclass(frozen=True)
class Books:
    """bits_per_byte of all documents together, and load (L, E): each expert's share of the choices times E."""

    bits_per_byte: float
    load: np.ndarray


def books(texts: Iterable[str], weights: str) -> Books:
    """Reads every document from its own beginning."""
    bits = size = 0.0
    counts: np.ndarray | None = None
    for text in texts:
        reading = read(text, weights=weights, trace=True)
        assert reading.trace is not None
        bits, size = bits + float(reading.bits.sum(dtype=np.float64)), size + reading.bytes
        experts = reading.trace.logits.shape[-1]
        found = np.stack([np.bincount(layer.ravel(), minlength=experts) for layer in reading.trace.experts])
        counts = found if counts is None else counts + found
    assert counts is not None, "there is nothing to read"
    return Books(bits / size, counts / counts.mean(axis=1, keepdims=True))


def samples(count: int, weights: str, prompt: str = "") -> list[str]:
    """Texts of seeds 0 ... count - 1, at the settings that a visitor finds."""
    return [run(TextRequest(prompt, weights, seed=seed, max_new_tokens=400)).text for seed in range(count)]


def main(arguments: list[str] | None = None) -> None:
    """Prints what the card states."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=Path, required=True)
    parser.add_argument("--weights", default="stories")
    parser.add_argument("--samples", type=int, default=50, help="texts that the copying is measured on")
    parser.add_argument("--shown", type=int, default=10, help="samples that are printed")
    asked = parser.parse_args(arguments)
    texts = {source: documents(asked.stories / f"{source}.txt") for source in SOURCES}
    for source in SOURCES:
        kept = [text for text in texts[source] if held_out(text)]
        found = books(kept, asked.weights)
        print(f"{source}: {found.bits_per_byte:.4f} bits per byte on {len(kept)} documents that were kept out")
        print(f"  load of an expert, 1 being even: {found.load.min():.2f} to {found.load.max():.2f}")
    written = samples(asked.samples, asked.weights)
    trained = [text for source in SOURCES for text in texts[source] if not held_out(text)]
    human = [text for text in texts["tinystories"] if held_out(text)]
    for name, group in ((f"{len(written)} samples", written), (f"{len(human)} stories kept out", human)):
        same = copied(group, trained)
        parts = ", ".join(f"{share:.1%} in runs of {n}" for n, share in same.share.items())
        print(f"{name}: words that stand in the training text: {parts}; longest run, median of the texts: "
              f"{np.median(same.longest):.0f} words")  # fmt: skip
    for seed, text in enumerate(written[: asked.shown]):
        print(f"\n--- seed {seed}\n{text}")


if __name__ == "__main__":
    main()
