"""What goes in and what comes out. numpy and Python types only, the same for every implementation.

Letters: N tokens, L layers, E experts, k of them active, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pipelines.common.backends import Backend

Finish = Literal["end", "stop", "length", "context"]
Control = Literal["none", "random", "hash"]


@dataclass(frozen=True)
class Message:
    """One turn of a chat with an instruct model. role: "system", "user" or "assistant"."""

    role: str
    text: str


@dataclass(frozen=True)
class RouterChange:
    """What is done to the routers for one run. The default does nothing.

    banned: (layer, expert) pairs that may not work. forced: pairs that work for every token, with the weight that the
    router gives them. active: how many experts work for a token; None is the model's own number. temperature: divides
    the router's logits. control: "random" puts noise that knows only the position in the router's place, "hash" a fixed
    table from the token's id to its experts (Roller et al. 2021). seed: of the controls.
    """

    banned: frozenset[tuple[int, int]] = frozenset()
    forced: frozenset[tuple[int, int]] = frozenset()
    active: int | None = None
    temperature: float = 1.0
    control: Control = "none"
    seed: int = 0

    @property
    def nothing(self) -> bool:
        return self == RouterChange(seed=self.seed)


@dataclass(frozen=True)
class TextRequest:
    """A text to go on with, or a chat to answer.

    prompt: where the text begins; an empty one starts a story of the model's own. messages: of a chat, in place of the
    prompt, for weights that come with a chat template. max_new_tokens: 0 returns the prompt's reading alone.
    temperature: divides the logits, 0 takes the likeliest token. top_k: the likeliest that stay, 0 all. top_p: the
    likeliest that together reach this probability stay (nucleus, Holtzman et al. 2019), 1 all. min_p: tokens less
    likely than this times the likeliest go, 0 none. repetition_penalty: divides positive logits of tokens that were
    there already and multiplies negative ones (Keskar et al. 2019), 1 none. stop: the text ends before the first of
    these. seed: of the sampling. change: what is done to the routers (local only). trace: whether the result says which
    experts worked (local only).
    """

    prompt: str = ""
    weights: str = "auto"
    backend: Backend = "local"
    messages: tuple[Message, ...] = ()
    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    change: RouterChange = field(default_factory=RouterChange)
    trace: bool = False


@dataclass(frozen=True)
class RoutingTrace:
    """Which experts worked for which token.

    tokens (N,) int64: those that went through the network, in order. pieces: the text of each, `�` where a token is
    half a character. logits (L, N, E) float32: the routers', after any change. experts (L, N, k) int64, the strongest
    first. weights (L, N, k) float32. prompt: how many of the tokens were given.
    """

    tokens: np.ndarray
    pieces: tuple[str, ...]
    logits: np.ndarray
    experts: np.ndarray
    weights: np.ndarray
    prompt: int

    @property
    def probabilities(self) -> np.ndarray:
        """(L, N, E) float32: softmax of the logits."""
        shifted = np.exp(self.logits - self.logits.max(axis=-1, keepdims=True))
        return shifted / shifted.sum(axis=-1, keepdims=True)


@dataclass(frozen=True)
class TextResult:
    """What was written.

    text: prompt and continuation of a text; the answer alone of a chat. continuation: what is new. tokens: ids of what
    is new. finish: "end" the model ended the text, "stop" a stop string came, "length" max_new_tokens, "context" the
    model's context is full. prompt_tokens: how many were given. seconds: "load", "prefill", "decode".
    tokens_per_second: of decoding, 0 where nothing was decoded.
    """

    text: str
    continuation: str
    tokens: tuple[int, ...]
    finish: Finish
    prompt_tokens: int
    seconds: dict[str, float]
    tokens_per_second: float
    weights: str
    backend: Backend
    trace: RoutingTrace | None = None


@dataclass(frozen=True)
class TextEvent:
    """Progress of one text. continuation: new text so far, whole characters only, never a part of a stop string that
    may yet come. tokens: how many so far. result: set in the last event only."""

    continuation: str
    tokens: int
    result: TextResult | None = None


@dataclass(frozen=True)
class Reading:
    """A given text under the model.

    tokens (N,) int64 and pieces: of the text. bits (N,) float32: how much each token surprised the model that had read
    those before it. bytes: of the text in UTF-8. trace: of the same tokens.
    """

    tokens: np.ndarray
    pieces: tuple[str, ...]
    bits: np.ndarray
    bytes: int
    weights: str
    trace: RoutingTrace | None = None

    @property
    def bits_per_byte(self) -> float:
        return float(self.bits.sum(dtype=np.float64)) / self.bytes


@dataclass(frozen=True)
class Effect:
    """What a change of the routers does to the reading of one text.

    plain, changed: the readings. divergence (N,) float32: Kullback-Leibler divergence from the plain to the changed
    distribution of the next token, in bits, before each token. moved (L,) float32: share of each layer's choices of
    experts that fell elsewhere.
    """

    plain: Reading
    changed: Reading
    divergence: np.ndarray
    moved: np.ndarray


@dataclass(frozen=True)
class Ledger:
    """The books of a trace, layer by layer.

    load (L, E) float32: each expert's share of the choices, 1 / E being even. entropy (L,): mean entropy of a token's
    routing, in bits. load_entropy (L,): entropy of the load, in bits; log2 E at an even load. balance (L,): load
    balancing loss, 1 at an even load. pooled: the transformers library's formula over all layers. z (L,): router
    z-loss. dropped (L, N, k) bool: choices that a capacity would have refused. identity (L,): share of repeated tokens'
    first choices that a vote of the same token's other places foretells. chance (L,): the same when the vote is of any
    other tokens' places, as many.
    """

    load: np.ndarray
    entropy: np.ndarray
    load_entropy: np.ndarray
    balance: np.ndarray
    pooled: float
    z: np.ndarray
    dropped: np.ndarray
    identity: np.ndarray
    chance: np.ndarray


@dataclass(frozen=True)
class Taste:
    """A token that an expert of a layer gets. count: places of it in the text. share: of those that the expert got, in
    [0, 1]. lift: that share over the expert's share of all places. chance: probability that as many of these places or
    more would be the expert's if it took as many places blindly. verdict: "liked" where that is too small for luck,
    "chance" where it is not, "few" where the token has too few places for any outcome to say something."""

    piece: str
    count: int
    share: float
    lift: float
    chance: float = 1.0
    verdict: Literal["liked", "chance", "few"] = "few"


@dataclass(frozen=True)
class Simulation:
    """Experts of a trace, kept in a cache of `slots` experts under one policy.

    hits (N,) and misses (N,) int64: experts that were there and that had to be fetched, for each token. hit_rate: of
    all. tokens_per_second: predicted from the bytes that a token reads from memory and fetches from storage.
    """

    policy: str
    slots: int
    hits: np.ndarray
    misses: np.ndarray
    hit_rate: float
    tokens_per_second: float
