"""Each step of sampling on numbers that can be checked by hand, and all of them against the library's processors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.moe import sampling
from pipelines.moe.sampling import (
    Sampling,
    choose,
    draw,
    penalised,
    tempered,
    warped,
    within_min_p,
    within_top_k,
    within_top_p,
)

# Probabilities 0.5, 0.25, 0.15, 0.1 in an order that is not theirs.
FOUR = torch.tensor([0.15, 0.5, 0.1, 0.25]).log()
NONE = torch.zeros(4, dtype=torch.bool)


def left(logits):
    return logits.isfinite().nonzero()[:, 0].tolist()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_penalty_moves_what_was_there_away():
    logits, seen = torch.tensor([2.0, -1.0, 3.0, -4.0]), torch.tensor([True, True, False, False])
    assert penalised(logits, seen, 2.0).tolist() == [1.0, -2.0, 3.0, -4.0]
    assert penalised(logits, seen, 1.0) is logits and logits.tolist() == [2.0, -1.0, 3.0, -4.0]


def test_temperature():
    assert torch.allclose(tempered(FOUR, 0.5).softmax(0), torch.tensor([9, 100, 4, 25]) / 138)
    assert torch.allclose(tempered(FOUR, 100.0).softmax(0), torch.full((4,), 0.25), atol=0.003)
    assert tempered(FOUR, 1e-5).softmax(0).tolist() == [0, 1, 0, 0]  # and no nan


def test_top_k():
    assert left(within_top_k(FOUR, 2)) == [1, 3] and left(within_top_k(FOUR, 1)) == [1]
    assert within_top_k(FOUR, 0) is FOUR and within_top_k(FOUR, 4) is FOUR and within_top_k(FOUR, 10**30) is FOUR
    assert left(within_top_k(torch.tensor([1.0, 2.0, 1.0, 0.0]), 2)) == [0, 1, 2]  # as likely as the last


def test_top_p_keeps_the_token_that_reaches_it():
    for p, kept in ((0.0, [1]), (0.49, [1]), (0.51, [1, 3]), (0.76, [0, 1, 3]), (0.91, [0, 1, 2, 3])):
        assert left(within_top_p(FOUR, p)) == kept, p
    assert within_top_p(FOUR, 1.0) is FOUR
    assert left(within_top_p(torch.zeros(4), 0.3)) == [0, 1, 2, 3]  # none is likelier than another


def test_min_p():
    assert left(within_min_p(FOUR, 0.29)) == [0, 1, 3] and left(within_min_p(FOUR, 0.49)) == [1, 3]
    assert left(within_min_p(FOUR, 1.0)) == [1] and within_min_p(FOUR, 0.0) is FOUR


def test_the_steps_see_what_those_before_them_left():
    # top-k leaves 0.5 and 0.25, of which the first then has two thirds: top-p 0.6 is content with it.
    assert left(warped(FOUR, NONE, Sampling(1.0, top_k=2, top_p=0.6))) == [1]
    assert left(warped(FOUR, NONE, Sampling(1.0, top_k=0, top_p=0.6))) == [1, 3]


def library(logits, given, how):
    """The same by the library's processors, in its own order."""
    from transformers import LogitsProcessorList
    from transformers.generation import logits_process as theirs

    steps = LogitsProcessorList()
    if how.repetition_penalty != 1:
        steps.append(theirs.RepetitionPenaltyLogitsProcessor(how.repetition_penalty))
    steps.append(theirs.TemperatureLogitsWarper(how.temperature))
    if how.top_k:
        steps.append(theirs.TopKLogitsWarper(how.top_k))
    if how.top_p < 1:
        steps.append(theirs.TopPLogitsWarper(how.top_p))
    if how.min_p:
        steps.append(theirs.MinPLogitsWarper(how.min_p))
    return steps(torch.tensor([given]), logits[None])[0].softmax(-1)


WAYS = [
    Sampling(0.8, 0, 0.95), Sampling(1.0, 0, 1.0), Sampling(0.7, 40, 1.0), Sampling(1.5, 0, 0.3),
    Sampling(1.0, 0, 0.999), Sampling(1.0, 0, 1.0, 0.05), Sampling(0.6, 50, 0.9, 0.02, 1.3),
    Sampling(2.0, 3, 0.5, 0.5, 0.7), Sampling(100.0, 9, 0.5),
]  # fmt: skip


def matches_the_library(ways=WAYS):
    for seed in range(12):
        logits = torch.randn(700, generator=generator(seed)) * (1 + seed % 4)
        given = torch.randint(0, 700, (60,), generator=generator(seed + 99)).tolist()
        seen = torch.zeros(700, dtype=torch.bool)
        seen[given] = True
        for how in ways:
            ours, wanted = warped(logits, seen, how).softmax(0), library(logits, given, how)
            assert torch.equal(ours > 0, wanted > 0), (seed, how)
            assert torch.allclose(ours, wanted, atol=1e-6), (seed, how)


def test_equal_to_the_library():
    matches_the_library()


def test_the_order_is_the_librarys():
    """Planted fault: the temperature after the nucleus, as other programs have it, is not the same."""

    def other(logits, seen, how):
        cut = within_top_p(within_top_k(penalised(logits, seen, how.repetition_penalty), how.top_k), how.top_p)
        return within_min_p(tempered(cut, how.temperature), how.min_p)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "warped", other)
        with pytest.raises(AssertionError):
            matches_the_library()


def test_a_tail_cut_too_high_is_noticed(monkeypatch):
    plain = np.float32
    monkeypatch.setattr(sampling.np, "float32", lambda value: plain(value * 40))
    with pytest.raises(AssertionError):
        matches_the_library([Sampling(1.0, 0, 0.999)])


def test_draws_follow_the_probabilities():
    draws = generator(7)
    counts = np.bincount([draw(FOUR, draws) for _ in range(8000)], minlength=4) / 8000
    assert np.abs(counts - [0.15, 0.5, 0.1, 0.25]).max() < 0.02
    cut = within_top_k(FOUR, 2)
    assert {draw(cut, draws) for _ in range(500)} == {1, 3}


def test_a_seed_is_a_text():
    def text(seed):
        draws = generator(seed)
        return [choose(FOUR, NONE, Sampling(1.0, 0, 1.0), draws) for _ in range(20)]

    assert text(1) == text(1) != text(2)
    # Its random numbers are 0.06, 0.23, 0.23, 0.18, 0.56, 0.11, 0.46, 0.71; the tokens reach to 0.15, 0.65, 0.75, 1.
    assert text(1)[:8] == [0, 1, 1, 1, 1, 0, 1, 2]


def test_temperature_zero_takes_the_likeliest_after_the_penalty():
    how = Sampling(temperature=0.0)
    assert [choose(FOUR, NONE, how, generator(seed)) for seed in range(5)] == [1] * 5
    seen = torch.tensor([False, True, False, False])
    assert choose(torch.tensor([1.0, 2.0, 0.0, 0.0]), seen, replace(how, repetition_penalty=3.0), generator()) == 0
    assert choose(FOUR, NONE, Sampling(temperature=1e-300, min_p=0.5), generator()) == 1
