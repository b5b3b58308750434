"""CLIP's byte-pair tokenizer: text to token ids (Sennrich et al. 2016; the byte alphabet is Radford et al. 2019's).

Text is lower-cased and cut into words; a word is spelled in bytes, the last of which carries "</w>"; then neighbours
are merged, the earliest-learned pair first. Reads the published `vocab.json` and `merges.txt`. Standard library only.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path
from typing import Any

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
LONGEST_KEPT = 100  # letters of a word whose pieces are remembered
MARKS = 30  # as in Unicode's stream-safe format (UAX 15, section 13); written languages use a few
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


@dataclass(frozen=True)
class Token:
    """One token of a prompt: its id, its text as the visitor may read it, and whether a word ends with it."""

    id: int
    text: str
    ends_word: bool


class CLIPTokenizer:
    """Encodes; one instance may be shared, since the only state it gathers are finished words and tokens."""

    def __init__(
        self, vocab: dict[str, int], merges: list[tuple[str, str]], max_length: int = 77, pad: str = END
    ) -> None:
        self.vocab = vocab
        self.max_length = max_length
        self.pad_id = vocab[pad]
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._words: dict[str, tuple[str, ...]] = {}
        self._tokens: dict[str, Token] = {}  # by piece, so no more than the vocabulary

    @classmethod
    def read(cls, folder: Path) -> CLIPTokenizer:
        """From a folder with vocab.json and merges.txt, and, if there, the two files of settings.

        In the oldest folders special_tokens_map.json overrules tokenizer_config.json: Stable Diffusion 2 pads with "!"
        by the one and with the end mark by the other, and was trained on the first.
        """
        vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges = [(a, b) for a, b in (line.split() for line in lines if line and not line.startswith("#version"))]
        settings, marks = (_settings(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json"))
        if "added_tokens_decoder" not in settings:
            settings |= marks
        pad = settings.get("pad_token", END)
        return cls(
            vocab, merges, int(settings.get("model_max_length", 77)), pad if isinstance(pad, str) else pad["content"]
        )

    def tokens(self, text: str) -> list[Token]:
        """All tokens of a text, of any number, without the start and end marks."""
        return [self._token(piece) for word in split_words(text) for piece in self._merge(word)]

    def encode(self, text: str) -> list[int]:
        """Exactly `max_length` ids: start, the text as far as it fits, end, padding."""
        ids = [token.id for token in self.tokens(text)][: self.max_length - 2]
        ids = [self.vocab[START], *ids, self.vocab[END]]
        return ids + [self.pad_id] * (self.max_length - len(ids))

    @cached_property
    def _alphabet(self) -> dict[int, str]:
        return byte_alphabet()

    @cached_property
    def _bytes(self) -> dict[str, int]:
        return {char: byte for byte, char in self._alphabet.items()}

    def _token(self, piece: str) -> Token:
        if piece not in self._tokens:
            self._tokens[piece] = Token(self.vocab[piece], self._readable(piece), piece.endswith(WORD_END))
        return self._tokens[piece]

    def _readable(self, piece: str) -> str:
        return bytes(self._bytes[char] for char in piece.removesuffix(WORD_END)).decode("utf-8", errors="replace")

    def _merge(self, word: str) -> tuple[str, ...]:
        if word in self._words:
            return self._words[word]
        spelled = [self._alphabet[byte] for byte in word.encode("utf-8")]
        spelled[-1] += WORD_END
        merged = merge(spelled, self._ranks)
        if len(self._words) < 10_000 and len(word) <= LONGEST_KEPT:
            self._words[word] = merged
        return merged


def merge(spelled: list[str], ranks: dict[tuple[str, str], int]) -> tuple[str, ...]:
    """Joins neighbours, those of the lowest rank first and of these the leftmost, until no pair of them has a rank.

    A queue of the pairs by rank, in which those that are gone are passed over when their turn comes: a text without
    blanks is one word, and looking through all of its pairs for each join would take hours.
    """
    pieces: list[str | None] = [*spelled]
    before, after = [*range(-1, len(spelled) - 1)], [*range(1, len(spelled) + 1)]
    waiting = [(ranks[pair], at, pair) for at, pair in enumerate(pairwise(spelled)) if pair in ranks]
    heapify(waiting)
    while waiting:
        _, at, pair = heappop(waiting)
        end = after[at]
        if pieces[at] != pair[0] or end == len(pieces) or pieces[end] != pair[1]:
            continue
        pieces[at], pieces[end] = pair[0] + pair[1], None
        after[at] = after[end]
        if after[at] < len(pieces):
            before[after[at]] = at
        for left, right in ((before[at], at), (at, after[at])):
            if left >= 0 and right < len(pieces):
                joined = (str(pieces[left]), str(pieces[right]))
                if joined in ranks:
                    heappush(waiting, (ranks[joined], left, joined))
    return tuple(piece for piece in pieces if piece is not None)


def _settings(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def byte_alphabet() -> dict[int, str]:
    """A visible character for every byte: itself where it prints, else one from 256 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {byte: chr(byte) for byte in visible}
    for byte in range(256):
        alphabet.setdefault(byte, chr(256 + len(alphabet) - len(visible)))
    return alphabet


def split_words(text: str) -> Iterator[str]:
    """Words of letters, single digits, runs of other signs, the English contractions; lower-cased, without spaces."""
    text = composed(text).lower()
    at = 0
    while at < len(text):
        contraction = next((c for c in CONTRACTIONS if text.startswith(c, at)), None)
        if contraction:
            yield contraction
            at += len(contraction)
            continue
        kind, end = _kind(text[at]), at + 1
        while kind in "LS" and end < len(text) and _kind(text[end]) == kind:
            end += 1
        if kind != " ":
            yield text[at:end]
        at = end


def composed(text: str) -> str:
    """In Unicode's composed form (NFC). More than `MARKS` combining marks in a row are composed in parts: they are put
    in order in a time that grows with the square of their number, some 20 seconds for the longest prompt of them."""
    if text.isascii():
        return text
    starts, run = [0], 0
    for at, char in enumerate(text):
        run = run + 1 if unicodedata.combining(char) else 0
        if run > MARKS:
            starts.append(at)
            run = 1
    return "".join(unicodedata.normalize("NFC", text[a:b]) for a, b in pairwise([*starts, len(text)]))


def _kind(char: str) -> str:
    """L letter, N digit or other number, " " space, S any other sign."""
    if char.isspace():
        return " "
    category = unicodedata.category(char)[0]
    return category if category in "LN" else "S"


def train(captions: list[str], vocab_size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Learns vocabulary and merges from captions; the two marks are the last two ids, as in CLIP's own vocabulary."""
    counts: dict[tuple[str, ...], int] = {}
    alphabet = byte_alphabet()
    for caption in captions:
        for word in split_words(caption):
            spelled = [alphabet[byte] for byte in word.encode("utf-8")]
            spelled[-1] += WORD_END
            counts[tuple(spelled)] = counts.get(tuple(spelled), 0) + 1
    letters = list(alphabet.values())
    vocab = letters + [letter + WORD_END for letter in letters]
    merges: list[tuple[str, str]] = []
    while len(vocab) < vocab_size - 2:
        pairs: dict[tuple[str, str], int] = {}
        for pieces, count in counts.items():
            for pair in pairwise(pieces):
                pairs[pair] = pairs.get(pair, 0) + count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        vocab.append(best[0] + best[1])
        counts = _replace(counts, best)
    return {piece: i for i, piece in enumerate([*vocab, START, END])}, merges


def _replace(counts: dict[tuple[str, ...], int], pair: tuple[str, str]) -> dict[tuple[str, ...], int]:
    """Every word with the pair joined."""
    joined: dict[tuple[str, ...], int] = {}
    for pieces, count in counts.items():
        out: list[str] = []
        for piece in pieces:
            if out and (out[-1], piece) == pair:
                out[-1] += piece
            else:
                out.append(piece)
        joined[tuple(out)] = joined.get(tuple(out), 0) + count
    return joined


def write(folder: Path, vocab: dict[str, int], merges: list[tuple[str, str]], max_length: int) -> None:
    """The files that `transformers.CLIPTokenizer.from_pretrained` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": max_length,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    marks = {key: settings[key] for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(marks, indent=2) + "\n", encoding="utf-8")
