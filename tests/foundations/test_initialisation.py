"""Recipes for random weights: their formulas, what they keep, and what goes wrong without them."""

import math

import pytest
import torch

from pipelines.common.errors import UserError
from pipelines.foundations.config import NORMS, SCHEMES, StackOptions
from pipelines.foundations.initialisation import Layer, Scaled, deepnorm, deviation, evenness, measure


def test_deviations_are_the_papers():
    assert deviation("one", 100, 50) == 1 and deviation("ntk", 100, 50) == 1
    assert deviation("lecun", 100, 50) == pytest.approx(0.1)
    assert deviation("xavier", 100, 300) == pytest.approx(math.sqrt(2 / 400))
    assert deviation("he", 200, 50) == pytest.approx(0.1)
    assert deviation("t5", 64, 64, head=16) == pytest.approx(1 / 32) and deviation("t5", 64, 64) == pytest.approx(1 / 8)
    assert deepnorm(8) == pytest.approx((2.0, 8**-0.5))
    with pytest.raises(KeyError):
        deviation("none", 1, 1)


@pytest.mark.parametrize(("scheme", "variance"), [("one", 300), ("lecun", 1), ("xavier", 1.2), ("he", 2), ("ntk", 1)])
def test_a_sum_has_the_variance_of_its_scheme(scheme, variance):
    torch.manual_seed(0)
    layer = Scaled(scheme, 300, 200)
    with torch.no_grad():
        assert layer(torch.randn(500, 300)).var().item() == pytest.approx(variance, rel=0.05)
        assert layer.weight.var().item() == pytest.approx(deviation(scheme, 300, 200) ** 2, rel=0.05)


def test_ntk_is_lecun_whose_weights_learn_at_another_pace():
    torch.manual_seed(0)
    ntk, lecun = Scaled("ntk", 64, 8), Scaled("lecun", 64, 8)
    with torch.no_grad():
        lecun.weight.copy_(ntk.weight / 8)
    x = torch.randn(5, 64)
    assert torch.allclose(ntk(x), lecun(x), atol=1e-6)
    ntk(x).square().sum().backward(), lecun(x).square().sum().backward()
    assert torch.allclose(ntk.weight.grad, lecun.weight.grad / 8, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_attention_is_written_out():
    torch.manual_seed(0)
    x = torch.randn(1, 5, 16)
    for divide, root in ((True, math.sqrt(8)), (False, 1.0)):
        torch.manual_seed(1)
        layer = Layer(StackOptions("lecun", width=16, heads=2, length=5, divide=divide))
        found = layer.weights(x)
        for head in range(2):
            rows = slice(8 * head, 8 * head + 8)
            query, key = x[0] @ layer.query.weight[rows].t(), x[0] @ layer.key.weight[rows].t()
            scores = torch.exp(query @ key.t() / root)
            assert torch.allclose(found[0, head], scores / scores.sum(1, keepdim=True), atol=1e-5)


@torch.no_grad()
def test_t5_moves_the_division_into_the_query():
    torch.manual_seed(0)
    t5, lecun = Layer(StackOptions("t5")), Layer(StackOptions("lecun"))
    assert t5.divides is False and lecun.divides is True
    t5.key.weight.copy_(lecun.key.weight)
    t5.query.weight.copy_(lecun.query.weight / math.sqrt(32))
    x = torch.randn(2, 32, 64)
    assert torch.allclose(t5.weights(x), lecun.weights(x), atol=1e-5)
    assert t5.query.weight.std() == pytest.approx(deviation("t5", 64, 64, 32), rel=0.1)


@pytest.mark.parametrize("norm", NORMS)
@torch.no_grad()
def test_where_the_norm_stands(norm):
    torch.manual_seed(0)
    options = StackOptions("lecun", norm, depth=6)
    layer, x = Layer(options), 3 * torch.randn(2, 32, 64) + 1
    said, _ = layer(x)
    place = lambda v: torch.nn.functional.layer_norm(v, (64,))  # noqa: E731
    keep = (2 * 6) ** 0.25 if norm == "deepnorm" else 1.0
    feed = lambda v: layer.out(torch.relu(layer.into(v)))  # noqa: E731
    if norm == "pre":
        middle = x + layer.attend(place(x))[0]
        wanted = middle + feed(place(middle))
    elif norm == "none":
        middle = x + layer.attend(x)[0]
        wanted = middle + feed(middle)
    else:
        middle = place(keep * x + layer.attend(x)[0])
        wanted = place(keep * middle + feed(middle))
    assert torch.allclose(said, wanted, atol=1e-4)
    if norm in ("post", "deepnorm"):
        assert said.var().item() == pytest.approx(1, abs=0.02)


def test_deepnorm_makes_four_matrices_smaller():
    torch.manual_seed(0)
    layer = Layer(StackOptions("xavier", "deepnorm", depth=32, width=128))
    for part, gain in ((layer.query, 1), (layer.key, 1), (layer.value, 1 / 4), (layer.mix, 1 / 4), (layer.into, 1 / 4)):
        inputs, outputs = part.weight.shape[1], part.weight.shape[0]
        assert part.weight.std().item() == pytest.approx(gain * math.sqrt(2 / (inputs + outputs)), rel=0.05)


def test_what_the_page_shows_is_so():
    wild, tame = measure(StackOptions("one", "none", depth=4)), measure(StackOptions("lecun", "pre", depth=4))
    assert wild.variance[-1] > 1e6 or math.isnan(wild.variance[-1])
    assert 1 < tame.variance[0] < tame.variance[-1] < 20
    with_root = measure(StackOptions("lecun", "pre", True, 4, 128, 1))
    without = measure(StackOptions("lecun", "pre", False, 4, 128, 1))
    assert with_root.entropy[0] > 0.8 > 0.35 > without.entropy[0] > 0
    post = measure(StackOptions("xavier", "post", depth=24))
    deep = measure(StackOptions("xavier", "deepnorm", depth=24))
    # Post-norm's slope shrinks on its way down; DeepNorm's hardly.
    assert post.gradient[0] / post.gradient[-1] < 0.5 * deep.gradient[0] / deep.gradient[-1]
    assert len(post.variance) == len(post.entropy) == len(post.gradient) == 24


def test_evenness_in_numbers():
    rows = torch.tensor([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0]])
    assert [evenness(row[None]) for row in rows] == pytest.approx([0, 1, 0.5], abs=1e-6)
    assert evenness(rows) == pytest.approx(0.5)


def test_entropy_and_gradient_by_another_way():
    options = StackOptions("lecun", "pre", depth=1, width=16, length=4, batch=1)
    found = measure(options, seed=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        layer = Layer(options)
        x = torch.randn(1, 4, 16)
        readout = torch.randn(16) / 4
    with torch.no_grad():
        weights = layer.weights(torch.nn.functional.layer_norm(x, (16,)))
        rows = [[float(v) for v in row] for row in weights.reshape(-1, 4)]
        entropy = sum(-sum(v * math.log(v) for v in row) for row in rows) / len(rows) / math.log(4)
        assert found.entropy == [pytest.approx(entropy, rel=1e-4)]
        slope = 0.0
        for place in range(4):
            for axis in range(16):
                ends = []
                for sign in (1, -1):
                    moved = x.clone()
                    moved[0, place, axis] += sign * 1e-2
                    ends.append(float(layer(moved)[0][0, -1] @ readout))
                slope += ((ends[0] - ends[1]) / 2e-2) ** 2
    assert found.gradient == [pytest.approx(math.sqrt(slope), rel=1e-2)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_recipe_runs_at_the_ends(scheme):
    for norm in NORMS:
        found = measure(StackOptions(scheme, norm, depth=1, width=16).checked())
        assert len(found.variance) == 1 and found.gradient[0] > 0
    for wrong in (StackOptions("odd"), StackOptions(norm="odd"), StackOptions(depth=0), StackOptions(width=999)):
        with pytest.raises(UserError):
            wrong.checked()
