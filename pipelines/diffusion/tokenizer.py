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
from itertools import pairwise
from pathlib import Path

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


@dataclass(frozen=True)
class Token:
    """One token of a prompt: its id, its text as the visitor may read it, and whether a word ends with it."""

    id: int
    text: str
    ends_word: bool


class CLIPTokenizer:
    """Encodes; one instance may be shared, since the only state it gathers is a cache of finished words."""

    def __init__(
        self, vocab: dict[str, int], merges: list[tuple[str, str]], max_length: int = 77, pad: str = END
    ) -> None:
        self.vocab = vocab
        self.max_length = max_length
        self.pad_id = vocab[pad]
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._words: dict[str, tuple[str, ...]] = {}

    @classmethod
    def read(cls, folder: Path) -> CLIPTokenizer:
        """From a folder with vocab.json and merges.txt, and, if there, tokenizer_config.json."""
        vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges = [(a, b) for a, b in (line.split() for line in lines if line and not line.startswith("#version"))]
        settings_path = folder / "tokenizer_config.json"
        settings = json.loads(settings_path.read_text(encoding="utf-8")) if settings_path.exists() else {}
        pad = settings.get("pad_token", END)
        return cls(
            vocab, merges, int(settings.get("model_max_length", 77)), pad if isinstance(pad, str) else pad["content"]
        )

    def tokens(self, text: str) -> list[Token]:
        """All tokens of a text, of any number, without the start and end marks."""
        return [
            Token(self.vocab[piece], self._readable(piece), piece.endswith(WORD_END))
            for word in split_words(text)
            for piece in self._merge(word)
        ]

    def encode(self, text: str) -> list[int]:
        """Exactly `max_length` ids: start, the text as far as it fits, end, padding."""
        ids = [token.id for token in self.tokens(text)][: self.max_length - 2]
        ids = [self.vocab[START], *ids, self.vocab[END]]
        return ids + [self.pad_id] * (self.max_length - len(ids))

    @cached_property
    def _bytes(self) -> dict[str, int]:
        return {char: byte for byte, char in byte_alphabet().items()}

    def _readable(self, piece: str) -> str:
        return bytes(self._bytes[char] for char in piece.removesuffix(WORD_END)).decode("utf-8", errors="replace")

    def _merge(self, word: str) -> tuple[str, ...]:
        if word in self._words:
            return self._words[word]
        alphabet = byte_alphabet()
        pieces = [alphabet[byte] for byte in word.encode("utf-8")]
        pieces[-1] += WORD_END
        while len(pieces) > 1:
            rank, at = min((self._ranks.get(pair, len(self._ranks)), i) for i, pair in enumerate(pairwise(pieces)))
            if rank == len(self._ranks):
                break
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        if len(self._words) < 10_000:
            self._words[word] = tuple(pieces)
        return tuple(pieces)


def byte_alphabet() -> dict[int, str]:
    """A visible character for every byte: itself where it prints, else one from 256 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {byte: chr(byte) for byte in visible}
    for byte in range(256):
        alphabet.setdefault(byte, chr(256 + len(alphabet) - len(visible)))
    return alphabet


def split_words(text: str) -> Iterator[str]:
    """Words of letters, single digits, runs of other signs, the English contractions; lower-cased, without spaces."""
    text = unicodedata.normalize("NFC", text).lower()
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
