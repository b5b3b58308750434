"""The trainings of the page Scale: what the division by sqrt(d) is worth, and what the page says of it."""

import math

import pytest
import torch

from pipelines.common.errors import UserError
from pipelines.foundations import scale_page as page
from pipelines.foundations.config import NORMS, ScaleRecipe, StackOptions
from pipelines.foundations.scale_training import GUESS, LENGTH, Reverser, train
from tests.stubs import visitor

EN, ZH = visitor("en"), visitor("zh-CN")


def test_without_the_division_it_diverges_and_with_it_it_converges():
    lost, learnt = 0, 0
    for seed in range(3):  # two of them at least: of a single one the last digits decide
        *_, (done, (with_it, without)) = train(ScaleRecipe(steps=60, seed=seed))
        assert with_it.divide and not without.divide
        assert done == max(len(with_it.losses), len(without.losses))
        learnt += with_it.lost is None and sum(with_it.losses[-5:]) / 5 < 3 < with_it.losses[0] / 3
        if without.lost is not None:
            lost += 1
            assert without.lost == len(without.losses) < 40
            assert without.losses[-1] > 1e3 or not math.isfinite(without.losses[-1])
    assert lost >= 2 and learnt >= 2


def test_with_pre_norm_only_the_divided_one_learns():
    *_, (_, (with_it, without)) = train(ScaleRecipe("pre", 0.1, steps=80))
    ends = [sum(way.losses[-5:]) / 5 for way in (with_it, without)]
    assert ends[0] < 1 and 1.5 < ends[1] < 2.5 and abs(GUESS - 2.0794) < 1e-4
    assert with_it.entropies[0] > without.entropies[0]


def test_the_two_begin_with_the_same_weights_and_end_when_both_are_lost():
    *_, (done, ways) = train(ScaleRecipe(rate=0.1, steps=60))
    assert done < 60 and all(way.lost is not None for way in ways) and done == max(way.lost for way in ways)
    torch.manual_seed(0)
    network = Reverser(StackOptions("lecun", "none", False, 4, 64, 1))
    rows = torch.randint(0, 8, (32, LENGTH), generator=torch.Generator().manual_seed(0))
    loss = torch.nn.functional.cross_entropy(network(rows)[0].flatten(0, 1), rows.flip(1).flatten())
    assert float(loss) == pytest.approx(ways[1].losses[0], rel=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_the_page_tells_what_it_trains(norm, monkeypatch):
    monkeypatch.setattr(page, "EVERY", 0.0)
    shown = list(page.train(norm, 0.001, 5, 0, EN))
    assert len(shown) == 5 and "Step 5 of 5." in shown[-1][0] and shown[-1][1].count("<svg viewBox") == 2
    assert "第 5 步" in list(page.train(norm, 0.001, 5, 0, ZH))[-1][0]


def test_stop_and_bad_numbers():
    running = page.train("none", 0.001, 500, 0, EN)
    next(running)
    page.halt(EN)
    (last,) = running
    assert last[0].startswith('<p class="gh-verdict">Stopped. ')
    for wrong in (("odd", 0.001, 5, 0), ("pre", 0, 5, 0), ("pre", None, 5, 0), ("pre", 0.1, 0, 0), ("pre", 0.1, 5, -1)):
        with pytest.raises(UserError):
            list(page.train(*wrong, EN))
