"""Autoregressive models: exact probabilities, by brute force over all pictures of a few pixels."""

import itertools
import math

import numpy as np
import pytest
import torch

from pipelines.foundations import pixels
from pipelines.foundations.autoregressive import (
    Fvsbn,
    Made,
    Nade,
    OrderlessNade,
    complete,
    known_first,
    log_likelihood,
    made_degrees,
    pixel_nats,
)

SIDE = 3
D = SIDE * SIDE
ALL = torch.tensor(list(itertools.product((0.0, 1.0), repeat=D)))


def shaken(network, seed=0, size=1.0):
    """Random weights: those of a new network are partly zero, and hide a mask that leaks."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * size)
    return network.double()


def order(name, count=1):
    return torch.from_numpy(pixels.orders(pixels.PixelModel("made", "", order=name, count=count), SIDE))


MODELS = {
    "fvsbn-rows": lambda: Fvsbn(order("rows")),
    "fvsbn-spiral": lambda: Fvsbn(order("spiral")),
    "nade-columns": lambda: Nade(order("columns"), 6),
    "made-rows": lambda: Made(order("rows"), (12,)),
    "made-random": lambda: Made(order("random"), (12, 10), direct=False),
    "made-masks": lambda: Made(order("random", 3), (12, 10)),
    "orderless": lambda: OrderlessNade(order("spiral"), (8, 8)),
    "orderless-two": lambda: OrderlessNade(order("random", 2), (8,)),
}


@pytest.fixture(params=MODELS)
def network(request):
    return shaken(MODELS[request.param]())


def test_all_pictures_together_have_probability_one(network):
    each = log_likelihood(network, ALL.double()).detach()
    assert each.shape == (512,) and float(each.exp().sum()) == pytest.approx(1, abs=1e-9)
    assert float(each.exp().max()) > 0.01  # and it is not spread evenly, 1/512


def test_a_mask_that_leaks_is_found():
    network = shaken(Fvsbn(order("rows")))
    network.mask |= torch.eye(D, dtype=torch.bool)
    assert abs(float(log_likelihood(network, ALL.double()).detach().exp().sum()) - 1) > 0.05


def test_a_pixel_hears_those_before_it_and_no_other(network):
    x = torch.rand(1, D, dtype=torch.float64)
    other = x + torch.eye(D, dtype=torch.float64)  # row i: pixel i is another
    with torch.no_grad():
        for which in range(len(network.orders)):
            hears = (network.logits(other, which) != network.logits(x.expand(D, -1), which)).T  # (hears, is heard)
            place = network.orders[which].argsort()
            assert not (hears & (place[:, None] <= place[None, :])).any()
            assert hears[network.orders[which][-1]].sum() >= D - 4  # the last hears nearly all: a ReLU may rest


def test_a_walk_answers_what_the_whole_does(network):
    x = ALL[torch.randperm(512, generator=torch.Generator().manual_seed(1))[:5]].double()
    for which in range(len(network.orders)):
        state, found = network.begin(len(x), which), torch.zeros_like(x)
        with torch.no_grad():
            for pixel in network.orders[which].tolist():
                found[:, pixel] = network.ask(state, pixel, which)
                network.tell(state, pixel, x[:, pixel], which)
            torch.testing.assert_close(found, network.logits(x, which), rtol=1e-9, atol=1e-9)


def test_nade_by_the_loop_and_by_the_equations():
    network = shaken(Nade(order("spiral"), 7))
    x = ALL[5:300:17].double()
    grads = []
    for answer in (network.logits, network.logits_at_once):
        found = answer(x)
        grads.append((found, *torch.autograd.grad((found * torch.arange(D)).sin().sum(), list(network.parameters()))))
    for scan, plain in zip(*grads, strict=True):
        torch.testing.assert_close(scan, plain, rtol=1e-9, atol=1e-9)
        assert float(plain.detach().abs().max()) > 0.1


def test_fvsbn_in_numbers():
    network = Fvsbn(torch.tensor([[1, 0]])).double()
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[5.0, 2.0], [7.0, 9.0]]))
        network.bias.copy_(torch.tensor([-1.0, 0.5]))
    # pixel 1 comes first: only its bias; pixel 0 hears it with weight 2; 5, 7 and 9 are masked away
    x = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    expected = math.log(1 / (1 + math.exp(-0.5))) + math.log(1 / (1 + math.exp(-1.0)))
    assert float(log_likelihood(network, x).detach()[0]) == pytest.approx(expected, abs=1e-12)


def test_masks_of_made_by_the_paper():
    """Equations 8 and 9: a unit of degree k hears inputs up to k; an output hears units below its place."""
    network = Made(torch.tensor([[2, 0, 3, 1]]), (3, 5))  # degrees 1 2 3, and 1 1.5 2 2.5 3 rounded to even
    first, second, last = (network.hears(depth, 0) for depth in range(3))
    inputs = torch.tensor([2, 4, 1, 3])  # place of each pixel, from 1
    assert first.tolist() == [[bool(k >= d) for d in inputs] for k in (1, 2, 3)]
    assert second.shape == (5, 3) and second[0].tolist() == [True, False, False] and second[4].all()
    assert not last[2].any() and last[1].all()  # the first pixel hears nobody, the last one all
    reach = last.long() @ second.long() @ first.long()
    before = inputs[:, None] > inputs[None, :]
    assert ((reach > 0) == before).all() and (network.hears(None, 0) == before).all()
    assert (network.hears(2, 0, slice(1, 2)) == last[1:2]).all()
    assert (network.hears(0, 0, columns=slice(3, 4)) == first[:, 3:4]).all()
    drawn = [made_degrees(torch.arange(6), (9,), torch.Generator().manual_seed(seed))[1] for seed in (0, 0, 1)]
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any() and drawn[0].min() >= 1 and drawn[0].max() <= 5


def test_several_orders_are_a_mixture():
    network = shaken(MODELS["made-masks"]())
    x = ALL[:40].double()
    each = torch.stack([-pixel_nats(network, x, which).sum(1) for which in range(3)])
    assert float((each[0] - each[1]).detach().abs().max()) > 0.1
    torch.testing.assert_close(log_likelihood(network, x), each.exp().mean(0).log(), rtol=1e-9, atol=1e-9)


def test_the_orderless_loss_is_the_mean_over_all_orders():
    """Equation 14 against all 24 orders of four pixels."""
    every = torch.tensor(list(itertools.permutations(range(4))))
    network = shaken(OrderlessNade(every, (6,)))
    x = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    exact = float(torch.stack([pixel_nats(network, x, which).sum() for which in range(24)]).mean().detach())
    estimate = network.loss(x.expand(40_000, -1), torch.Generator().manual_seed(0)).detach()
    error = float(estimate.std()) / 200
    assert abs(float(estimate.mean()) - exact) < 4 * error and error < 0.03


@pytest.mark.parametrize("name", ["fvsbn-rows", "nade-columns", "made-rows", "orderless"])
def test_a_picture_is_completed_as_often_as_its_probability_says(name):
    network = shaken(MODELS[name](), size=0.7)
    visits = network.orders[0]
    known = torch.zeros(D, dtype=torch.bool)
    known[visits[: D - 2]] = True  # the last two pixels are drawn: four outcomes
    given = ALL[341].double()
    outcomes = given.repeat(4, 1)
    outcomes[:, visits[-2:]] = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]).double()
    expected = log_likelihood(network, outcomes).softmax(dim=0)
    count = 20_000
    drawn = given.repeat(count, 1)
    drawn[:, ~known] = 0.5  # what is not known must not be heard
    for pixel, value in complete(network, drawn.clone(), known, torch.Generator().manual_seed(3)):
        drawn[:, pixel] = value
    assert (drawn[:, known] == given[known]).all()
    shares = torch.bincount((drawn[:, visits[-2:]] @ torch.tensor([2.0, 1.0]).double()).long(), minlength=4) / count
    assert (shares - expected).abs().max() < 0.015 and expected.min() > 0.005


def test_a_walk_without_gradients_follows_changed_weights_and_other_orders():
    network = shaken(MODELS["made-masks"]())
    x = ALL[341:342].to(next(network.parameters()).dtype)
    for which, factor in ((0, 1.0), (1, 1.0), (1, 3.0)):
        with torch.no_grad():
            network.layers[1].weight *= factor
            state = network.begin(1, which)
            asked = torch.empty_like(x)
            for pixel in network.orders[which].tolist():
                asked[:, pixel] = network.ask(state, pixel, which)
                network.tell(state, pixel, x[:, pixel], which)
            assert torch.allclose(asked, network.logits(x, which))


def test_the_coldest_completion_takes_the_likelier_value():
    network = shaken(MODELS["nade-columns"]())
    x = torch.zeros(2, D, dtype=torch.float64)
    for pixel, value in complete(network, x, torch.zeros(D, dtype=torch.bool), torch.Generator(), temperature=0):
        x[:, pixel] = value
    chosen = network.logits(x)
    assert ((chosen > 0) == x.bool()).all() and (x[0] == x[1]).all()


def test_known_pixels_go_first():
    known = torch.tensor([False, True, False, True])
    assert known_first(torch.tensor([2, 3, 0, 1]), known).tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize("name", pixels.ORDERS)
def test_an_order_visits_each_pixel_once(name):
    found = pixels.order(name)
    assert sorted(found) == list(range(784))
    assert (pixels.order(name, 1) != found).any() == (name == "random")


def test_what_the_orders_are():
    assert pixels.order("rows")[:3].tolist() == [0, 1, 2] and pixels.order("columns")[:3].tolist() == [0, 28, 56]
    rows, columns = np.divmod(pixels.order("spiral"), 28)
    ring = np.maximum(abs(rows - 13.5), abs(columns - 13.5))
    assert (np.diff(ring) >= 0).all() and set(zip(rows[:4], columns[:4], strict=True)) == {
        (13, 13), (13, 14), (14, 13), (14, 14)
    }  # fmt: skip
    with pytest.raises(pixels.UserError, match="order of pixels"):
        pixels.order("upside")


def test_black_and_white():
    greys = np.array([0, 127, 128, 255], np.uint8)
    rng = np.random.default_rng(0)
    assert pixels.black_and_white(greys, "threshold", rng).tolist() == [False, False, True, True]
    shares = pixels.black_and_white(np.tile(greys, (20_000, 1)), "stochastic", rng).mean(axis=0)
    assert shares[0] == 0 and shares[3] == 1 and shares[1:3] == pytest.approx([127 / 255, 128 / 255], abs=0.012)
    with pytest.raises(ValueError, match="stochastic or threshold"):
        pixels.black_and_white(greys, "magic", rng)


@pytest.mark.parametrize("name", MODELS)
def test_packed_weights_lose_little_and_hold_nothing_masked(name):
    network = shaken(MODELS[name](), size=0.5).float()
    packed = pixels.pack(network)
    again = MODELS[name]()
    pixels.unpack(again, packed)
    x = ALL[::7]
    worst = float((log_likelihood(again, x) - log_likelihood(network, x)).detach().abs().max())
    assert 0 < worst < 0.2
    if name == "fvsbn-rows":
        assert packed["weight"].numel() == D * (D - 1) // 2 and packed["weight"].dtype == torch.int8
    broken = dict(packed)
    key = next(iter(broken))
    del broken[key]
    with pytest.raises(ValueError, match="no whole"):
        pixels.unpack(MODELS[name](), broken)
    with pytest.raises(ValueError, match="too much"):
        pixels.unpack(MODELS[name](), {**packed, "other": torch.zeros(1)})
    with pytest.raises(ValueError, match="size"):
        pixels.unpack(MODELS[name](), {**packed, key: packed[key][:-1]})


def test_every_shipped_model_can_be_built():
    for name, model in pixels.MODELS.items():
        assert model.kind in ("fvsbn", "nade", "made", "orderless") and len(pixels.orders(model)) == model.count, name
    network = pixels.build(pixels.MODELS["fvsbn-columns"])
    assert network.orders[0, 1] == 28 and network.weight.shape == (784, 784)
