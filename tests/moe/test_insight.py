"""What a change does to a text, the books of a trace, and tastes that are not imagined."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines.common.errors import UserError
from pipelines.moe import insight, pipeline
from pipelines.moe.config import PRESETS
from pipelines.moe.contract import RouterChange, RoutingTrace
from pipelines.moe.decoder import Decoder
from pipelines.moe.insight import divergence, effect, effects, ledger, moved, over_capacity, surprise, tastes, votes
from pipelines.moe.local import LocalText
from pipelines.moe.router import balance_loss, pooled_balance_loss

TINY = PRESETS["tiny"]
TEXT = "The cat saw the cat, and the dog saw the dog. 狗"


class Bytes:
    """A tokenizer whose tokens are bytes, behind a mark that begins a text."""

    vocabulary = 257

    def __init__(self, begin=(256,)):
        self.begin, self.ends = begin, frozenset({256})

    def encode(self, text):
        return list(text.encode())

    def pieces(self, ids):
        return tuple(bytes([i]).decode(errors="replace") for i in ids)


@pytest.fixture
def tiny(monkeypatch):
    """The story model's place is taken by a random network; returns its backend."""
    network = Decoder(TINY)
    network.initialise(torch.Generator().manual_seed(1), spread=0.3)
    backend = LocalText(network.eval(), Bytes())
    monkeypatch.setattr(pipeline, "entry", lambda weights: SimpleNamespace(id="tiny"))
    monkeypatch.setattr(pipeline, "load", lambda entry, implementation: backend)
    return backend


# --- effects ---------------------------------------------------------------------------------------------------------


def test_nothing_changed_is_exactly_nothing(tiny):
    found = effect(TEXT, RouterChange())
    assert found.divergence.shape == (len(TEXT.encode()),) and (found.divergence == 0).all()
    assert (found.moved == 0).all() and found.plain.bits_per_byte == found.changed.bits_per_byte
    assert found.plain.weights == "tiny" and found.plain.bytes == len(TEXT) + 2


def test_bits_are_those_of_the_pipeline(tiny_catalogue):
    # the same reading, made by others, over a real tokenizer
    found = effect(TEXT, RouterChange(active=1)).plain
    read = pipeline.read(TEXT, trace=True)
    assert np.allclose(found.bits, read.bits, atol=1e-5) and found.bits_per_byte == pytest.approx(pipeline.score(TEXT))
    assert np.array_equal(found.trace.experts, read.trace.experts) and found.pieces == read.pieces
    changed = pipeline.read(TEXT, change=RouterChange(active=1))
    assert np.allclose(effect(TEXT, RouterChange(active=1)).changed.bits, changed.bits, atol=1e-5)


def test_bits_are_those_of_the_network(tiny):
    plain = effect(TEXT, RouterChange()).plain
    tokens = [256, *TEXT.encode()]
    with torch.inference_mode():
        chances = tiny.decoder(torch.tensor([tokens]))[0].double().softmax(-1)
    expected = [-np.log2(float(chances[i, tokens[i + 1]])) for i in range(len(tokens) - 1)]
    assert np.allclose(plain.bits, expected, atol=1e-5)
    assert plain.bits_per_byte == pytest.approx(sum(expected) / len(TEXT.encode()))
    # the trace is of the text's own tokens: the mark before it is not one
    assert plain.trace.experts.shape == (2, len(TEXT.encode()), 2) and len(plain.pieces) == len(plain.tokens)
    assert plain.trace.prompt == len(plain.tokens)


def test_a_change_is_measured_and_the_first_token_counts(tiny):
    ban = RouterChange(banned=frozenset({(0, 0)}))
    one, other = effects(TEXT, [ban, RouterChange(control="random", seed=1)])
    assert one.plain is other.plain
    assert (one.divergence >= 0).all() and one.divergence.max() > 1e-4
    assert (other.divergence > 0).all()
    went = (one.plain.trace.experts[0] == 0).sum() / one.plain.trace.experts[0].size
    assert one.moved[0] == pytest.approx(went) and 0 < went < 1
    assert one.plain.bits_per_byte != one.changed.bits_per_byte
    # before a token that the ban did not reach, at a text's beginning, nothing moved
    assert len(one.divergence) == len(one.plain.tokens)


def test_without_a_mark_nothing_is_said_of_the_first_token(tiny):
    tiny.tokenizer = Bytes(begin=())
    found = effect("abc", RouterChange(control="hash"))
    assert found.plain.bits[0] == 0 and found.divergence[0] == 0 and (found.plain.bits[1:] > 0).all()
    assert found.plain.trace.experts.shape == (2, 3, 2)
    with pytest.raises(UserError, match="two tokens"):
        effect("a", RouterChange())


@pytest.mark.parametrize(
    ("text", "change", "sentence"),
    [
        ("", RouterChange(), "write a text"),
        ("a" * 1025, RouterChange(), "1,025 tokens, and there is room for 1,024: shorten it to about 1,024 char"),
        ("a\ud800b", RouterChange(), "lone surrogate"),
        ("abc", RouterChange(active="2"), "whole number"),
        ("abc", RouterChange(banned=frozenset((1, e) for e in range(4))), "Every expert of layer 2"),
    ],
)
def test_what_cannot_be_measured_is_said(tiny, text, change, sentence):
    with pytest.raises(UserError, match=sentence):
        effect(text, change)


def test_divergence_by_hand():
    half, quarter = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    expected = 0.5 * np.log2(0.5 / 0.25) + 0.5 * np.log2(0.5 / 0.75)
    assert divergence(half, quarter) == pytest.approx(expected, abs=1e-7)
    assert divergence(quarter, half) == pytest.approx(0.25 * np.log2(0.5) + 0.75 * np.log2(1.5), abs=1e-7)
    assert surprise(quarter, np.array([0])) == pytest.approx(2.0)
    # a shift of all logits is no change, and one in 2**40 is seen
    assert divergence(half, half + 100.0) == 0
    tiny = divergence(half.double(), half.double() + torch.tensor([[1e-6, 0.0]], dtype=torch.float64))
    assert 1e-13 < tiny[0] < 1e-12


def test_divergence_needs_little_memory_and_cuts_nowhere(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(37, 11, generator=generator), torch.randn(37, 11, generator=generator)
    whole = divergence(a, b)
    seen = []
    original = insight._blocks
    monkeypatch.setattr(insight, "AT_ONCE", 55)
    monkeypatch.setattr(
        insight, "_blocks", lambda x: (seen.append(rows.shape) or (at, rows) for at, rows in original(x))
    )
    assert np.array_equal(divergence(a, b), whole)
    assert max(seen) == (5, 11) and len(seen) == 8
    assert np.array_equal(surprise(a, np.arange(37) % 11), surprise(a.clone(), np.arange(37) % 11))


def test_moved_by_hand():
    plain = np.array([[[0, 1], [2, 3]], [[0, 1], [0, 1]]])
    assert moved(plain, plain[..., ::-1]).tolist() == [0, 0]  # the order is no choice
    assert moved(plain, np.array([[[1, 2], [0, 1]], [[0, 1], [0, 3]]])).tolist() == [0.75, 0.25]
    assert moved(plain, np.array([[[0], [2]], [[3], [1]]])).tolist() == [0.5, 0.75]  # one works instead of two


# --- the ledger ------------------------------------------------------------------------------------------------------


def traced(tokens, logits, k=2):
    """A trace of given logits (L, N, E); pieces are the tokens' numbers."""
    logits = np.asarray(logits, np.float32)
    experts = np.argsort(-logits, axis=-1, kind="stable")[..., :k]
    weights = np.full(experts.shape, 1 / k, np.float32)
    return RoutingTrace(np.asarray(tokens), tuple(map(str, tokens)), logits, experts, weights, len(tokens))


def random_trace(layers=3, count=40, experts=4, kinds=6, seed=0):
    generator = np.random.default_rng(seed)
    return traced(generator.integers(0, kinds, count), generator.normal(size=(layers, count, experts)))


def test_the_books_by_hand():
    # Layer 1 gives all tokens to experts 0 and 1 and is sure of it, layer 2 deals them out evenly and is not.
    logits = [[[30, 20, 0, 0]] * 4, [[1e-3, 1e-4, 0, -1e-4], [0, 0, 1e-3, 1e-4]] * 2]
    found = ledger(traced([5, 6, 5, 6], logits))
    assert found.load[0].tolist() == [0.5, 0.5, 0, 0] and found.load[1].tolist() == [0.25] * 4
    assert found.load_entropy.tolist() == pytest.approx([1, 2])
    assert found.entropy[0] == pytest.approx(0, abs=1e-3) and found.entropy[1] == pytest.approx(2, abs=1e-3)
    assert found.balance[0] == pytest.approx(4 * 0.5, abs=1e-3) and found.balance[1] == pytest.approx(1, abs=1e-3)
    assert found.z[0] == pytest.approx(900, rel=1e-4) and found.z[1] == pytest.approx(np.log(4) ** 2, rel=1e-3)
    assert found.load.dtype == np.float32 and found.dropped.shape == (2, 4, 2)


def test_losses_are_those_of_training():
    trace = random_trace()
    found = ledger(trace)
    logits, experts = torch.from_numpy(trace.logits), torch.from_numpy(trace.experts)
    for layer in range(3):
        assert found.balance[layer] == pytest.approx(float(balance_loss(logits[layer], experts[layer])), abs=1e-6)
    assert found.pooled == pytest.approx(float(pooled_balance_loss(list(logits), list(experts))), abs=1e-6)
    chances = trace.probabilities
    assert np.allclose(found.entropy, -(chances * np.log2(chances)).sum(-1).mean(-1), atol=1e-5)


def test_the_pooled_loss_forgives_what_the_layers_do_not():
    # in each layer one pair does everything, another in each: pooled they look even
    logits = np.zeros((2, 6, 4))
    logits[0, :, :2], logits[1, :, 2:] = 9, 9
    found = ledger(traced(range(6), logits))
    assert found.balance.tolist() == pytest.approx([2, 2], abs=1e-2) and found.pooled == pytest.approx(2, abs=1e-2)


def test_capacity_by_hand():
    # all four tokens choose experts 0 and then 1 of four: an even share is 2 of the 8 choices
    trace = traced(range(4), [[[3, 2, 1, 0]] * 4])
    dropped = over_capacity(trace, 1.0)[0]
    assert dropped.tolist() == [[False, False], [False, False], [True, True], [True, True]]
    assert over_capacity(trace, 1.5)[0].sum() == 2 and over_capacity(trace, 2.0).sum() == 0
    assert over_capacity(trace, 1.01)[0].sum() == 2  # an expert takes whole tokens: 2.02 are rounded up to 3
    for factor in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="capacity"):
            over_capacity(trace, factor)


def test_books_of_no_token_are_refused():
    with pytest.raises(UserError, match="no token"):
        ledger(traced([], np.zeros((2, 0, 4))))


def test_the_vote_of_identity_by_hand():
    tokens = np.array([7, 7, 7, 8, 8, 9])
    first = np.array([[0, 0, 1, 2, 2, 3]])
    identity, _ = votes(tokens, first, 4)
    # 7: places 1 and 2 see one vote each for 0 and 1 (half right), place 3 sees two for 0 (wrong); 8: both right
    assert identity[0] == pytest.approx((0.5 + 0.5 + 0 + 1 + 1) / 5)
    alone, chance = votes(np.arange(4), np.array([[0, 1, 2, 3]]), 4)
    assert np.isnan(alone).all() and np.isnan(chance).all()
    same, chance = votes(np.zeros(4, int), np.array([[1, 1, 1, 1]]), 4)
    assert same[0] == 1 and np.isnan(chance[0])


def test_a_router_by_identity_is_told_from_one_that_knows_nothing():
    generator = np.random.default_rng(1)
    tokens = generator.integers(0, 20, 400)
    table = generator.permutation(20) % 4
    first = np.stack([table[tokens], generator.integers(0, 4, 400), np.zeros(400, int)])
    identity, chance = votes(tokens, first, 4)
    assert identity[0] == 1 and chance[0] < 0.4
    assert abs(identity[1] - chance[1]) < 0.06 and identity[1] < 0.35
    assert identity[2] == chance[2] == 1  # one expert for all: identity foretells it, and so does anything
    again = votes(tokens, first, 4)
    assert np.array_equal(again[1], chance)
    assert not np.array_equal(votes(tokens, first, 4, seed=5)[1], chance)


# --- tastes ----------------------------------------------------------------------------------------------------------


def liking(places, total, count, kinds):
    """An expert 0 that gets `places` of token 1's 8 places, and others of the text up to `total` of `count`."""
    tokens = np.array([1] * 8 + [2 + i % kinds for i in range(count - 8)])
    got = np.zeros(count, bool)
    got[:places] = True
    got[8 : 8 + total - places] = True
    logits = np.zeros((1, count, 4))
    logits[0, :, 0] = np.where(got, 5, -5)
    return traced(tokens, logits, k=1)


def test_a_taste_by_hand():
    found = {taste.piece: taste for taste in tastes(liking(8, 12, 60, 13), 0, 0)}
    one = found["1"]
    assert one.count == 8 and one.share == 1 and one.lift == pytest.approx(60 / 12)
    # all 8 of 8 among 12 of 60: C(52, 4) / C(60, 12)
    assert one.chance == pytest.approx(270_725 / 1_399_358_844_975, rel=1e-9)
    assert one.verdict == "liked"
    assert found["2"].count == 4 and found["2"].share == 0.25 and found["2"].verdict in ("few", "chance")


def test_luck_is_not_called_a_taste():
    one = next(t for t in tastes(liking(2, 12, 60, 13), 0, 0) if t.piece == "1")
    assert one.share == 0.25 and one.lift > 1 and one.verdict == "chance" and one.chance > 0.3


def test_few_places_say_nothing():
    # a token twice, both its places the expert's, 12 of 60: 3.7 % by luck, and another token could have had that luck
    logits = np.full((1, 60, 4), 0.0)
    logits[0, :, 0] = -5
    logits[0, :12, 0] = 5
    tokens = np.concatenate([[50, 50], np.arange(10), 100 + np.arange(46), [60, 60]])
    found = tastes(traced(tokens, logits, k=1), 0, 0)
    twice = next(t for t in found if t.piece == "50")
    assert twice.share == 1 and twice.verdict == "few"
    assert twice.chance == pytest.approx(12 * 11 / (60 * 59))
    assert all(t.verdict == "few" for t in found)


def test_blind_routers_are_rarely_called_specialists():
    generator = np.random.default_rng(3)
    lucky = 0
    for _ in range(60):
        tokens = generator.zipf(1.6, 200).clip(max=60)
        trace = traced(tokens, generator.normal(size=(1, 200, 8)))
        lucky += any(taste.verdict == "liked" for taste in tastes(trace, 0, 0))
    assert lucky <= 7  # at most one in twenty by design, exactness makes it fewer


def test_tastes_come_surest_first_and_cover_the_text():
    trace = liking(8, 20, 80, 9)
    found = tastes(trace, 0, 0)
    assert sum(taste.count for taste in found) == 80 and len(found) == 10
    assert found[0].piece == "1" and [t.verdict for t in found] == sorted(
        (t.verdict for t in found), key=["liked", "chance", "few"].index
    )
    idle = tastes(trace, 0, 3)  # an expert without a token
    assert all(t.share == 0 and t.lift == 0 and t.chance == 1 for t in idle)
    for layer, expert in ((1, 0), (0, 4), (-1, 0)):
        with pytest.raises(UserError, match="1 layers of 4 experts"):
            tastes(trace, layer, expert)
