"""Sizes of the networks that detect actions online. No torch here: the page reads this before any model library.

Letters: T past chunks, F future queries, C classes, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Attention = Literal["softmax", "linear"]
Brain = Literal["oadtr", "gru", "linear", "none"]
BRAINS: tuple[Brain, ...] = ("oadtr", "gru", "linear", "none")

# A chunk is the step of every brain: one pose, one answer.
CHUNKS_PER_SECOND = 10
CLASSES = (
    "background", "swipe left", "swipe right", "wave", "clap", "throw", "arm cross", "draw circle", "punch", "arm curl",
    "push", "knock", "sit down", "stand up", "squat", "jog in place",
)  # fmt: skip
BACKGROUND = 0
# As the authors number them: background first, chunks that are not judged last.
THUMOS14_CLASSES = (
    "Background", "BaseballPitch", "BasketballDunk", "Billiards", "CleanAndJerk", "CliffDiving", "CricketBowling",
    "CricketShot", "Diving", "FrisbeeCatch", "GolfSwing", "HammerThrow", "HighJump", "JavelinThrow", "LongJump",
    "PoleVault", "Shotput", "SoccerPenalty", "TennisSwing", "ThrowDiscus", "VolleyballSpiking", "Ambiguous",
)  # fmt: skip
JOINTS = 13
# Of one chunk, see features.py: for each joint its position, its displacements over 1, 2, 4 and 8 chunks (two numbers
# each), and its visibility; the body's displacements over the same; the way that elbows and wrists went within the
# chunk; the change of size, and whether somebody is there; the distance between any two joints.
FEATURES = JOINTS * (2 + 4 * 2 + 1) + 4 * 2 + 4 + 2 + JOINTS * (JOINTS - 1) // 2


@dataclass(frozen=True)
class OadTRConfig:
    """OadTR (Wang et al., ICCV 2021).

    in_features: numbers of one chunk. chunks: T, the past that it sees, the newest included. future: F, chunks ahead
    that it foretells. width: D, of encoder and decoder. layers, heads, hidden: of the encoder; hidden units of its
    feed-forward part. decoder_layers, decoder_heads, decoder_hidden: the same of the decoder. classes: C, background
    first. attention: "linear" takes the kernel of Katharopoulos et al. (2020) in place of the softmax, everywhere.
    dropout: in training, everywhere that the authors have it.
    """

    in_features: int = FEATURES
    chunks: int = 32
    future: int = 8
    width: int = 128
    layers: int = 2
    heads: int = 4
    hidden: int = 256
    decoder_layers: int = 2
    decoder_heads: int = 4
    decoder_hidden: int = 256
    classes: int = len(CLASSES)
    attention: Attention = "softmax"
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for heads in (self.heads, self.decoder_heads):
            if self.width % heads:
                raise ValueError(f"{heads} heads do not share a width of {self.width} evenly")


@dataclass(frozen=True)
class GRUConfig:
    """A recurrent network for the same stream, after MiniROAD (An et al., ICCV 2023): embedding, one GRU, two heads.

    in_features, future, classes, dropout: as of OadTR. chunks: the past that it is trained on; a stream's state goes
    further back. embedding: width of the GRU's input. width: of its state.
    """

    in_features: int = FEATURES
    chunks: int = 32
    future: int = 8
    embedding: int = 256
    width: int = 336
    classes: int = len(CLASSES)
    dropout: float = 0.1


@dataclass(frozen=True)
class NoMemoryConfig:
    """The newest chunk alone through hidden layers: what the others are worth is told by how far they are above it.

    in_features, future, classes, dropout: as of OadTR. chunks: always 1. width, layers: of the hidden layers.
    """

    in_features: int = FEATURES
    chunks: int = 1
    future: int = 8
    width: int = 512
    layers: int = 3
    classes: int = len(CLASSES)
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.chunks != 1:
            raise ValueError("no memory means one chunk")


BrainConfig = OadTRConfig | GRUConfig | NoMemoryConfig

TINY = OadTRConfig(
    in_features=12, chunks=8, future=3, width=16, heads=4, hidden=24, decoder_heads=2, decoder_hidden=20, classes=5
)

# A brain other than OadTR has its preset under "<preset>-<brain>".
PRESETS: dict[str, BrainConfig] = {
    "bundled": OadTRConfig(),
    "bundled-linear": OadTRConfig(attention="linear"),
    "bundled-gru": GRUConfig(),
    "bundled-none": NoMemoryConfig(),
    "tiny": TINY,
    "tiny-linear": replace(TINY, attention="linear"),
    "tiny-gru": GRUConfig(in_features=12, chunks=8, future=3, embedding=14, width=18, classes=5),
    "tiny-none": NoMemoryConfig(in_features=12, future=3, width=16, layers=2, classes=5),
    # The sizes at which the authors' own network was run once, for the parity test.
    "tiny-authors": OadTRConfig(
        in_features=40, chunks=16, future=4, width=64, heads=8, hidden=80, decoder_heads=4, decoder_hidden=96, classes=7
    ),
    # A checkpoint of the authors': 2048 RGB and 1024 optical flow features, four chunks a second.
    "thumos14": OadTRConfig(
        in_features=3072, chunks=64, width=1024, layers=3, heads=8, hidden=1024, decoder_layers=5, decoder_heads=4,
        decoder_hidden=1024, classes=22,
    ),
}  # fmt: skip


def preset(name: str, brain: Brain = "oadtr") -> BrainConfig:
    """The configuration of one brain of a family. KeyError: there is none."""
    return PRESETS[name if brain == "oadtr" else f"{name}-{brain}"]
