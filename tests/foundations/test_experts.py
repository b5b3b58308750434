"""The toy mixture of experts: routing, room and balance by brute force, costs by counting, and the page's handlers."""

import math
import re
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch

from pipelines.common.errors import UserError
from pipelines.foundations import experts_page as page
from pipelines.foundations import experts_training as training
from pipelines.foundations import experts_view as view
from pipelines.foundations.config import ExpertsRecipe, Knobs
from pipelines.foundations.toy_experts import (
    ToyDense,
    ToyExperts,
    bill,
    dense_bill,
    dense_of_cost,
    dense_of_size,
    patchwork,
    route,
)  # fmt: skip
from tests.stubs import visitor

EN = visitor("en")


def by_hand(logits, top, capacity):
    """Experts, weights and refusals of each point by loops over Python numbers."""
    count, experts = len(logits), len(logits[0])
    room = math.inf if capacity is None else math.ceil(capacity * count * top / experts)
    chosen, weights = [], []
    for row in logits:
        shares = [math.exp(v) for v in row]
        shares = [v / sum(shares) for v in shares]
        order = sorted(range(experts), key=lambda e: -shares[e])[:top]
        chosen.append(order)
        total = sum(shares[e] for e in order) if top > 1 else 1.0
        weights.append([shares[e] / total for e in order])
    taken, refused = [0] * experts, [[False] * top for _ in range(count)]
    for place in range(top):
        for point in range(count):
            expert = chosen[point][place]
            taken[expert] += 1
            if taken[expert] > room:
                refused[point][place], weights[point][place] = True, 0.0
    return chosen, weights, refused


@pytest.mark.parametrize("top", [1, 2, 4])
@pytest.mark.parametrize("capacity", [None, 0.25, 0.6, 1.0])
def test_routing_is_what_loops_say(top, capacity):
    logits = torch.randn(37, 4, generator=torch.Generator().manual_seed(3)) * 2
    found = route(logits, top, capacity)
    chosen, weights, refused = by_hand(logits.tolist(), top, capacity)
    assert found.experts.tolist() == chosen and found.refused.tolist() == refused
    assert torch.allclose(found.weights, torch.tensor(weights), atol=1e-6)
    if capacity is not None:
        kept = torch.bincount(found.experts[~found.refused], minlength=4)
        assert kept.max() <= math.ceil(capacity * 37 * top / 4)
        assert capacity == 1.0 or found.refused.any()


@torch.no_grad()
def test_the_network_is_its_experts_weighted():
    torch.manual_seed(0)
    network, points = ToyExperts(3, 5), torch.rand(11, 2) * 2 - 1
    said, routing = network(points, 2, 0.5)
    for b in range(11):
        total = 0.0
        for k in range(2):
            e = int(routing.experts[b, k])
            hidden = (points[b] @ network.into[e] + network.bias[e]).clamp(min=0)
            total += float(routing.weights[b, k]) * float(hidden @ network.out[e] + network.shift[e])
        assert said[b].item() == pytest.approx(total, abs=1e-5)
    nobody = routing.refused.all(dim=1)
    assert nobody.any() and (said[nobody] == 0).all()
    whole, _ = network(points, 3)  # all of them: a plain soft mixture
    soft = (network.answers(points) * network.router(points).softmax(1)).sum(1)
    assert torch.allclose(whole, soft, atol=1e-5)


def test_the_router_learns_from_one_expert_too():
    network = ToyExperts(4, 3)
    network(torch.rand(20, 2), 1)[0].sum().backward()
    assert network.router.weight.grad.abs().sum() > 0


def test_balance_is_one_if_even_and_the_number_of_experts_if_not():
    even = route(torch.eye(4).repeat(5, 1) * 1e-3, 1)
    assert even.balance().item() == pytest.approx(1.0, abs=1e-5)
    one = route(torch.tensor([[50.0, 0, 0, 0]]).repeat(8, 1), 1)
    assert one.balance().item() == pytest.approx(4.0)
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found = route(logits, 2)
    share = np.bincount(found.experts.numpy().ravel(), minlength=4) / 60
    assert found.balance().item() == pytest.approx(4 * float(share @ logits.softmax(1).mean(0).detach().numpy()))
    (slope,) = torch.autograd.grad(found.balance(), logits)
    busiest = share.argmax()
    assert slope[:, busiest].mean() > 0  # going down it takes work from the busiest


def test_the_pattern_has_four_patches_and_two_colours():
    points = torch.rand(20000, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    colours = patchwork(points)
    assert set(colours.tolist()) == {0.0, 1.0} and 0.4 < colours.mean() < 0.6
    # a turn by a quarter is another pattern: no single set of stripes would do
    turned = patchwork(torch.stack((-points[:, 1], points[:, 0]), 1))
    assert 0.3 < (turned == colours).float().mean() < 0.7


@pytest.mark.parametrize(("experts", "hidden", "top"), [(4, 8, 1), (4, 8, 2), (8, 32, 2), (2, 2, 1)])
def test_bills_are_counted(experts, hidden, top):
    network, price = ToyExperts(experts, hidden), bill(experts, hidden, top)
    assert price.parameters == sum(p.numel() for p in network.parameters())
    assert price.products == network.router.weight.numel() + top * (2 * hidden + hidden + 1)
    same = dense_of_size(price.parameters)
    assert abs(sum(p.numel() for p in ToyDense(same).parameters()) - price.parameters) <= 2
    assert dense_bill(same).parameters == sum(p.numel() for p in ToyDense(same).parameters())
    assert abs(dense_bill(dense_of_cost(price.products)).products - price.products) <= 1


# --- training and page


RECIPE = ExpertsRecipe(steps=40, batch=64)


def test_training_learns_and_a_seed_is_one_training():
    first, *_, last = training.train(RECIPE, Knobs())
    again = list(training.train(RECIPE, Knobs()))[-1]
    assert first.step == 0 and last.step == 40 and [row[0] for row in last.curves] == [0, 10, 20, 30, 40]
    assert np.array_equal(last.curves, again.curves)
    assert last.load.sum() == pytest.approx(1) and last.expert.shape == (training.SIDE, training.SIDE)
    right = (last.answers["size"] > 0.5) == (last.wanted > 0.5)
    assert (
        last.curves[-1, 2] == pytest.approx(right.mean()) and last.curves[-1, 1:5].max() > first.curves[-1, 1:5].max()
    )


def test_the_frozen_router_stays_and_the_other_moves():
    torch.manual_seed(RECIPE.seed)
    networks = training.Quartet(RECIPE)
    networks.loss(torch.rand(30, 2), torch.ones(30), Knobs(balance=0.1)).backward()
    assert networks.frozen.router.weight.grad is None and networks.frozen.into.grad.abs().sum() > 0
    assert networks.experts.router.weight.grad.abs().sum() > 0


def test_knobs_are_read_at_every_step():
    knobs = Knobs(top=1)
    pictures = training.train(RECIPE, knobs)
    next(pictures), next(pictures)
    knobs.top, knobs.capacity = 2, 0.25
    later = next(pictures)
    assert later.knobs == Knobs(2, 0.25, 0.05) and later.refused > 0.5
    assert later.curves[-1, 0] == 20


def run(**changes):
    values = dict(top=1, limited=False, capacity=1, balanced=True, balance=0.05, experts=4, hidden=4, steps=30, seed=0)
    return list(page.train(*{**values, **changes}.values(), EN))


def test_the_page_shows_it_all(monkeypatch):
    monkeypatch.setattr(page, "EVERY", 0.0)
    shown = run()
    assert [each[0] for each in shown] == [False, False, False, True]
    _, pictures, loads, chart, table, told = shown[-1]
    assert pictures.count("<svg") == 6 and pictures.count("data:image/png") == 6
    assert loads.count("gh-bar ") == 4 and chart.count("<polyline") == 4
    assert "Step 30 of 30" in told and table.count("<tr>") == 5
    found = [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<td>(.*?)</td>", table)]
    assert found[1:4] == ["16", str(4 * 17 + 12), str(8 + 13)]
    assert len(page.turns) == 0 and page.live == {}


def test_the_worst_balance_is_that_of_so_many_experts_a_point():
    for top, most in ((1, "4 is one"), (2, "2 is one")):
        assert f"(1 is even, {most} expert for everything)" in run(top=top, steps=1)[-1][2]
        worst = route(torch.tensor([[50.0, 1.0, 0.0, 0.0]]).repeat(8, 1), top).balance().item()
        assert worst == pytest.approx(int(most[0]))


def test_switches_turn_what_runs_and_stop_ends_it(monkeypatch):
    monkeypatch.setattr(page, "EVERY", 0.0)
    steps = page.train(1, False, 1, True, 0.05, 4, 4, 5000, 0, EN)
    next(steps)
    page.switch(2, True, 0.5, False, 0.3, EN)
    assert page.live["test"] == Knobs(2, 0.5, 0.0)
    shown = next(steps)
    assert "k = 2, C = 0.5, α = 0" in shown[3]
    page.halt(EN)
    *_, last = steps
    assert last[0] is True and "Stopped. Step " in last[5] and page.live == {}
    page.switch(1, False, 1, True, 0.05, EN)  # nothing runs: nothing happens


def test_the_first_opening_trains_once_and_bad_numbers_are_said():
    *_, last = page.train_first(False, 1, False, 1, True, 0.05, 2, 2, 10, 0, EN)
    assert last[0] is True
    assert list(page.train_first(True, 1, False, 1, True, 0.05, 2, 2, 10, 0, EN)) == [(gr.skip(),) * 6]
    for wrong in ({"steps": None}, {"experts": 99}, {"balance": float("nan")}, {"top": 3}, {"hidden": 0},
                  {"limited": True, "capacity": 0}, {"seed": -1}):  # fmt: skip
        with pytest.raises(UserError, match="must be a number from"):
            run(**wrong)
    with pytest.raises(UserError):
        page.switch(5, False, 1, True, 0, EN)


def test_sliders_at_their_ends():
    for ends in ({"experts": 2, "hidden": 2, "top": 2, "limited": True, "capacity": 0.25, "balance": 1},
                 {"experts": 8, "hidden": 32, "limited": True, "capacity": 4, "balance": 0}):  # fmt: skip
        assert "Step 10 of 10" in run(steps=10, **ends)[-1][5]


def test_a_map_names_each_expert_within_its_land():
    expert = np.zeros((56, 56), int)
    expert[:, 28:] = 2
    picture = SimpleNamespace(expert=expert, load=np.array([0.5, 0.0, 0.5]))
    marks = re.findall(r'<text x="(\d+)" y="(\d+)".*?>(\d)</text>', view._numbers(picture))
    assert [number for *_, number in marks] == ["1", "3"] and float(marks[0][0]) < 50 < float(marks[1][0])
