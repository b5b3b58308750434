"""The stories as one compact file: split, tokenizer and tokens.

A document is one story. It stands in a row of training as `<|endoftext|>` and then its tokens: the mark begins a story,
and to predict the next mark is to end one. Every fiftieth document, by a hash of its text, is kept for validation.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

MARK = "<|endoftext|>"
VALIDATION_SHARE = 50  # one document in so many
SOURCES = ("tinystories", "tales")


def documents(path: Path) -> list[str]:
    """The stories of a file in which lines `<|endoftext|>` separate them."""
    return [text for part in path.read_text(encoding="utf-8").split(MARK) if (text := part.strip())]


def held_out(text: str) -> bool:
    """Whether a document is for validation; a text decides for itself, whatever stands around it."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % VALIDATION_SHARE == 0


def prepare(stories: Path, folder: Path, vocabulary: int) -> None:
    """Writes tokenizer.json and tokens.npz into `folder`, and the validation documents as validation-<source>.txt."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir(parents=True, exist_ok=True)
    texts = {source: documents(stories / f"{source}.txt") for source in SOURCES}
    split = {(source, held): [t for t in texts[source] if held_out(t) == held] for source in SOURCES for held in (0, 1)}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        (text for source in SOURCES for text in split[source, 0]),
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=[MARK], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )  # fmt: skip
    tokenizer.save(str(folder / "tokenizer.json"))
    arrays: dict[str, Any] = {}
    for (source, held), group in split.items():
        name = f"{source}_{'validation' if held else 'train'}"
        coded = [np.array([0, *each.ids], np.uint16) for each in tokenizer.encode_batch(group)]
        arrays[name] = np.concatenate(coded)
        arrays[f"{name}_ends"] = np.cumsum([len(each) for each in coded])
        arrays[f"{name}_bytes"] = np.array([len(text.encode()) for text in group])
        if held:
            (folder / f"validation-{source}.txt").write_text(f"\n{MARK}\n".join(group), encoding="utf-8")
        print(f"{name}: {len(group)} documents, {sum(map(len, coded))} tokens, {arrays[f'{name}_bytes'].sum()} bytes")
    np.savez_compressed(folder / "tokens.npz", **arrays)


@dataclass(frozen=True)
class Part:
    """Documents one after another. tokens (n,) uint16; ends (documents,) where each ends; bytes (documents,)."""

    tokens: np.ndarray
    ends: np.ndarray
    bytes: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def document(self, number: int) -> np.ndarray:
        """The mark and the tokens of one document."""
        return self.tokens[self.ends[number - 1] if number else 0 : self.ends[number]]


class Stories:
    """What `prepare` wrote, and rows of it to train on."""

    def __init__(self, folder: Path, tales_share: float) -> None:
        """tales_share: how much of the tales' text an epoch holds beside all of tinystories."""
        with np.load(folder / "tokens.npz") as file:
            self.parts = {
                name: Part(file[name].astype(np.int64), file[f"{name}_ends"], file[f"{name}_bytes"])
                for name in (f"{source}_{kind}" for source in SOURCES for kind in ("train", "validation"))
            }
        self.tales_share = tales_share
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    def _epoch(self, number: int, length: int, seed: int) -> np.ndarray:
        """(rows, length + 1): an epoch's documents in an order of their own, one after another, cut into rows. The last
        token of a row is the first of the next: nothing to predict is lost."""
        rng = np.random.default_rng((seed, number))
        tiny, tales = self.parts["tinystories_train"], self.parts["tales_train"]
        pieces = [tiny.document(k) for k in range(len(tiny))]
        for k in range(len(tales)):
            whole = tales.document(k)
            count = round(len(whole) * self.tales_share)
            first = int(rng.integers(0, len(whole) - count + 1))
            pieces.append(whole[first : first + count])
        stream = np.concatenate([pieces[k] for k in rng.permutation(len(pieces))])
        stream = stream[int(rng.integers(0, length)) :]  # or the same cuts would fall at the same places
        rows = (len(stream) - 1) // length
        return np.lib.stride_tricks.sliding_window_view(stream, length + 1)[::length][:rows]

    def rows(self, first: int, count: int, length: int, seed: int) -> np.ndarray:
        """(count, length + 1): rows number first... of the endless sequence of epochs."""
        per_epoch = len(self.epoch(0, length, seed)) - 1  # epochs differ by a row
        return np.stack([
            self.epoch(number // per_epoch, length, seed)[number % per_epoch] for number in range(first, first + count)
        ])  # fmt: skip
