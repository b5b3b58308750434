"""The small language models that differ in their attention only."""

from __future__ import annotations

from dataclasses import dataclass

ROW = 256  # bytes of a row that a model reads, in training and when it is judged
# kind -> what it is called
KINDS = {
    "softmax": "Softmax",
    "elu": "Linear, elu + 1",
    "normalised": "Linear, softmax-normalised",
    "gau": "GAU (FLASH-Quad)",
    "flash": "FLASH",
}


@dataclass(frozen=True)
class LanguageConfig:
    """kind: one of KINDS. layers: pairs of attention and feed-forward layer; a gated attention unit is both in one, and
    two of them have about as many parameters as such a pair, so there are twice as many."""

    kind: str
    width: int = 96
    layers: int = 3
    heads: int = 4
    shared: int = 32
    chunk: int = 64


MODELS = {kind: LanguageConfig(kind) for kind in KINDS}
