"""What happens inside: what a change of the routers does to a text, the books of a trace, the tastes of an expert.

Letters: N tokens, L layers, E experts, k of them active, V vocabulary. torch only when asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.common import backends
from pipelines.common.errors import UserError

from . import pipeline
from .checks import check_text, checked_change, too_long
from .contract import Effect, Ledger, Reading, RouterChange, RoutingTrace, Taste

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 1024  # tokens of a text that is read twice, so that the logits of two readings fit a small machine
TRACED = 2000  # tokens of a text whose every token is shown
AT_ONCE = 4_000_000  # numbers of a row block in float64, 32 MB
ROUNDS = 8  # random votes for each place
ALPHA = 0.05  # how often a text without any taste may show one, over all its tokens together


# --- what a change does ----------------------------------------------------------------------------------------------


def effect(text: str, change: RouterChange, weights: str = "auto") -> Effect:
    """Read one text with the routers as they are and as changed. UserError: the text is empty or longer than `LONGEST`
    tokens, the weights are not here, or the routers cannot be changed so."""
    return next(effects(text, [change], weights))


def effects(text: str, changes: Sequence[RouterChange], weights: str = "auto") -> Iterator[Effect]:
    """One after another for several changes; the plain reading is done once. UserError: as `effect`."""
    from .steer import check

    check_text(text, "text")
    changes = [checked_change(change) for change in changes]
    entry = pipeline.entry(weights)
    backend = pipeline.load(entry, "local")
    for change in changes:
        check(change, backend.config)
    begin, tokens = _tokens(text, backend)
    if len(begin) + len(tokens) < 2:
        raise UserError("The text must have two tokens at least.")
    plain = _read(backend, begin, tokens, RouterChange())
    before = _reading(text, backend, begin, tokens, plain, entry.id)
    for change in changes:
        changed = _read(backend, begin, tokens, change)
        after = _reading(text, backend, begin, tokens, changed, entry.id)
        assert before.trace is not None and after.trace is not None
        apart = np.zeros(len(tokens), np.float32)
        apart[-(len(plain[0]) - 1) :] = divergence(plain[0][:-1], changed[0][:-1])
        yield Effect(before, after, apart, moved(before.trace.experts, after.trace.experts))


def _tokens(text: str, backend: Any, most: int = LONGEST) -> tuple[list[int], list[int]]:
    """What is put before a text, and the text. UserError: it is empty or has more than `most` tokens."""
    if not text:
        raise UserError("There is nothing to read yet; write a text.")
    begin, tokens = list(backend.tokenizer.begin), list(backend.tokenizer.encode(text))
    longest = min(most, backend.config.context - len(begin))
    if len(tokens) > longest:
        raise UserError(too_long("text", len(text), len(tokens), longest))
    return begin, tokens


def _read(backend: Any, begin: list[int], tokens: list[int], change: RouterChange) -> tuple[Tensor, Any]:
    """Logits (1 + tokens that are foretold, V) from the last before the first of these on, and the routers' arrays."""
    with backends.step(backend.device):
        logits, arrays = backend.logits(begin + tokens, change, trace=True)
    return logits[max(len(begin) - 1, 0) :], arrays


def _reading(
    text: str, backend: Any, begin: list[int], tokens: list[int], found: tuple[Tensor, Any], weights: str
) -> Reading:
    ids, pieces = np.asarray(tokens, np.int64), backend.tokenizer.pieces(tokens)
    logits, experts, shares = (each[:, len(begin) :] for each in found[1])
    trace = RoutingTrace(ids, pieces, logits, experts, shares, len(ids))
    bits = np.zeros(len(ids), np.float32)  # of a first token with nothing before it there is no saying
    foretold = len(found[0]) - 1
    bits[-foretold:] = surprise(found[0][:-1], ids[-foretold:])
    return Reading(ids, pieces, bits, len(text.encode()), weights, trace)


def surprise(logits: Tensor, tokens: np.ndarray) -> np.ndarray:
    """Bits of each token (N,) under the logits before it (N, V): (N,) float32."""
    import torch

    parts = []
    for at, rows in _blocks(logits):
        chosen = torch.from_numpy(tokens[at : at + len(rows)])[:, None].to(rows.device)
        parts.append(-rows.double().log_softmax(-1).gather(-1, chosen)[:, 0])
    return (torch.cat(parts) / math.log(2)).float().cpu().numpy()


def divergence(plain: Tensor, changed: Tensor) -> np.ndarray:
    """Kullback-Leibler divergence from the plain to the changed distribution in bits: logits (N, V) twice -> (N,).

    In float64 and a block of rows at a time, so that a large vocabulary needs no third and fourth copy of everything.
    0 exactly where the logits are equal.
    """
    import torch

    parts = []
    for at, rows in _blocks(plain):
        before = rows.double().log_softmax(-1)
        after = changed[at : at + len(rows)].double().log_softmax(-1)
        parts.append((before.exp() * (before - after)).sum(-1).clamp(min=0))
    return (torch.cat(parts) / math.log(2)).float().cpu().numpy()


def _blocks(logits: Tensor) -> Iterator[tuple[int, Tensor]]:
    size = max(1, AT_ONCE // logits.shape[-1])
    for at in range(0, len(logits), size):
        yield at, logits[at : at + size]


def moved(plain: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """(L,) float32: share of the plain choices (L, N, k) that are not among the changed ones (L, N, j)."""
    stayed = (plain[..., :, None] == changed[..., None, :]).any(-1)
    return (1 - stayed.mean(axis=(1, 2))).astype(np.float32)


# --- a trace ---------------------------------------------------------------------------------------------------------


def traced(text: str, weights: str = "auto") -> Iterator[tuple[float, RoutingTrace | None]]:
    """The routers' decisions over a text: (share that is read, None) after each part of it, at last (1, the trace).

    Leaving the iteration stops the work. UserError: the text is empty or longer than `TRACED` tokens, or the weights
    are not here.
    """
    from .generate import part_of

    check_text(text, "text")
    backend = pipeline.load(pipeline.entry(weights), "local")
    begin, tokens = _tokens(text, backend, TRACED)
    given, part = begin + tokens, part_of(backend.config)
    stepper = backend.open(len(given), trace=True)
    for start in range(0, len(given), part):
        with backends.step(backend.device):
            stepper.feed(given[start : start + part])
        yield min(start + part, len(given)) / len(given), None
    logits, experts, shares = (each[:, len(begin) :] for each in stepper.trace())
    pieces = backend.tokenizer.pieces(tokens)
    yield 1.0, RoutingTrace(np.asarray(tokens, np.int64), pieces, logits, experts, shares, len(tokens))


# --- the books -------------------------------------------------------------------------------------------------------


def ledger(trace: RoutingTrace, capacity_factor: float = 1.25, seed: int = 0) -> Ledger:
    """The books of a trace of one token or more. seed: of the votes that identity is held against.

    UserError: there is no token, or the capacity is not a number above zero.
    """
    import torch

    from .router import balance_loss, pooled_balance_loss, z_loss

    layers, count, experts = trace.logits.shape
    if not count:
        raise UserError("There is no token whose routing could be booked.")
    logits, chosen = torch.from_numpy(trace.logits), torch.from_numpy(trace.experts)
    load = np.stack([np.bincount(row.ravel(), minlength=experts) for row in trace.experts]) / trace.experts[0].size
    chances = logits.double().softmax(-1).numpy()
    identity, chance = votes(trace.tokens, trace.experts[:, :, 0], experts, seed)
    return Ledger(
        load=load.astype(np.float32),
        entropy=_entropy(chances).mean(axis=1).astype(np.float32),
        load_entropy=_entropy(load).astype(np.float32),
        balance=np.array([balance_loss(logits[i], chosen[i]) for i in range(layers)], np.float32),
        pooled=float(pooled_balance_loss(list(logits), list(chosen))),
        z=np.array([z_loss(logits[i]) for i in range(layers)], np.float32),
        dropped=over_capacity(trace, capacity_factor),
        identity=identity,
        chance=chance,
    )  # fmt: skip


def over_capacity(trace: RoutingTrace, factor: float) -> np.ndarray:
    """(L, N, k) bool: the choices that a capacity of `factor` even shares would have refused. UserError: as `ledger`.

    A what-if: the choices of later layers are those that were made with nothing refused.
    """
    import torch

    from .router import within_capacity

    if not 0 < factor <= 1000:
        raise UserError("The capacity must be between 0 and 1,000 even shares.")
    experts = trace.logits.shape[-1]
    return np.stack([~within_capacity(torch.from_numpy(row), experts, factor).numpy() for row in trace.experts])


def _entropy(shares: np.ndarray) -> np.ndarray:
    """In bits, over the last axis."""
    return -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=-1)


def votes(tokens: np.ndarray, first: np.ndarray, experts: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """How well a token's other places foretell its expert, and how well as many places of other tokens do: (L,) twice.

    tokens (N,); first (L, N): the strongest expert. Each place of a token that stands there more than once is guessed
    by the majority of the token's other places, itself left out; of experts with equally many votes each is guessed as
    often. For the chance, every place draws as many places of other tokens, `ROUNDS` times. NaN where no token stands
    there twice, or where there is only one token.
    """
    generator = np.random.default_rng(seed)
    layers = len(first)
    right, lucky = np.zeros(layers), np.zeros(layers)
    asked = drawn = 0
    for token, count in zip(*np.unique(tokens, return_counts=True), strict=True):
        if count < 2:
            continue
        own = first[:, tokens == token]  # (L, c)
        chosen = np.eye(experts, dtype=np.int64)[own]  # (L, c, E)
        right += _guessed(chosen.sum(axis=1, keepdims=True) - chosen, own).sum(axis=1)
        asked += count
        others = first[:, tokens != token]
        if not others.shape[1]:
            continue
        for _ in range(ROUNDS):
            picks = generator.random((count, others.shape[1])).argsort(axis=1)[:, : count - 1]
            ballots = np.stack([(others[:, picks] == e).sum(axis=-1) for e in range(experts)], axis=-1)  # (L, c, E)
            lucky += _guessed(ballots, own).sum(axis=1)
            drawn += count
    nothing = np.full(layers, np.nan)
    shares = (right / asked if asked else nothing), (lucky / drawn if drawn else nothing)
    return shares[0].astype(np.float32), shares[1].astype(np.float32)


def _guessed(ballots: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """(L, c): how often the winner of (L, c, E) votes is the actual expert, ties shared."""
    winners = ballots == ballots.max(axis=-1, keepdims=True)
    hit = np.take_along_axis(winners, actual[..., None], axis=-1)[..., 0]
    return hit / winners.sum(axis=-1)


# --- tastes ----------------------------------------------------------------------------------------------------------


def tastes(trace: RoutingTrace, layer: int, expert: int) -> list[Taste]:
    """Every different token of a text as this expert sees it, those that it certainly likes first.

    The chance of a token is exact: if the expert's places were dealt out over the text blindly, the number that falls
    on the token's places would be hypergeometric. A text has many tokens, and some are lucky: the limit is `ALPHA` over
    the number of tokens that could pass it at all (Tarone 1990); the others have too few places to say anything.
    UserError: there is no such layer or expert.
    """
    layers, count, experts = trace.logits.shape
    if not (0 <= layer < layers and 0 <= expert < experts):
        raise UserError(f"This model has {layers} layers of {experts} experts; choose among those.")
    got = (trace.experts[layer] == expert).any(axis=-1)
    total = int(got.sum())
    ids, first, inverse, counts = np.unique(trace.tokens, return_index=True, return_inverse=True, return_counts=True)
    had = np.bincount(inverse, weights=got, minlength=len(ids)).astype(int)
    least = np.array([_tail(int(c), min(int(c), total), total, count) for c in counts])  # the best that could come out
    limit = _limit(least)
    found = []
    for i in range(len(ids)):
        chance = _tail(int(counts[i]), int(had[i]), total, count)
        share = had[i] / counts[i]
        verdict = "few" if least[i] > limit else "liked" if chance <= limit else "chance"
        lift = float(share * count / total) if total else 0.0
        found.append(Taste(trace.pieces[first[i]], int(counts[i]), float(share), lift, chance, verdict))  # type: ignore[arg-type]
    order = {"liked": 0, "chance": 1, "few": 2}
    return sorted(found, key=lambda taste: (order[taste.verdict], taste.chance, -taste.count, taste.piece))


def _limit(least: np.ndarray) -> float:
    """ALPHA over the smallest number of tests that as many tokens can pass at most."""
    for tests in range(1, len(least) + 1):
        if (least <= ALPHA / tests).sum() <= tests:
            return ALPHA / tests
    return ALPHA / max(1, len(least))


def _tail(places: int, hits: int, total: int, count: int) -> float:
    """Probability that of `total` places, dealt out over `count`, `hits` or more fall on these `places`."""
    ways = sum(math.comb(places, h) * math.comb(count - places, total - h)
               for h in range(hits, min(places, total) + 1) if total - h <= count - places)  # fmt: skip
    return ways / math.comb(count, total)
