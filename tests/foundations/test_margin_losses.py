"""The margin losses beside their papers' equations written out anew, their slopes, and pytorch-metric-learning."""

import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses as library

from pipelines.foundations import margin_softmax as ms

CASES = [
    ("softmax", 0, 1), ("center", 0.3, 1), ("l-softmax", 1, 1), ("l-softmax", 2, 1), ("l-softmax", 3, 1),
    ("a-softmax", 4, 1), ("am-softmax", 0.35, 30), ("am-softmax", 0.0, 4), ("arcface", 0.5, 16), ("arcface", 1.0, 2),
]  # fmt: skip


def example(name, margin, scale, classes=5, dimension=3, count=40, seed=0):
    torch.manual_seed(seed)
    loss = ms.build(name, classes, dimension, margin, scale).double()
    if name in ("softmax", "center"):
        torch.nn.init.normal_(loss.bias)
    if name == "center":
        loss.centres.normal_()
    features = torch.randn(count, dimension, dtype=torch.float64) * 2
    return loss, features.requires_grad_(), torch.randint(classes, (count,))


def psi(name, angle, m):
    """The right class's part in cos t, by the paper: with real angles and a search for k."""
    if name in ("l-softmax", "a-softmax"):
        k = next(k for k in range(m) if k * math.pi / m <= angle <= (k + 1) * math.pi / m)
        return (-1) ** k * math.cos(m * angle) - 2 * k
    if name == "am-softmax":
        return math.cos(angle) - m
    if name == "arcface":
        return math.cos(angle + m) if angle + m <= math.pi else math.cos(angle) - m * math.sin(m)
    return math.cos(angle)


def written_out(name, x, label, weights, bias, centre, m, s):
    """The loss of one sample in plain Python."""
    length = math.sqrt(sum(v * v for v in x))
    logits = []
    for j, w in enumerate(weights):
        size = math.sqrt(sum(v * v for v in w))
        angle = math.acos(sum(a * b for a, b in zip(x, w, strict=True)) / length / size)
        value = psi(name, angle, m) if j == label else math.cos(angle)
        factor = {"l-softmax": length * size, "a-softmax": length}.get(name, s)
        if name in ("softmax", "center"):
            value, factor = math.cos(angle) * length * size + bias[j], 1
        logits.append(factor * value)
    total = math.log(sum(math.exp(v) for v in logits)) - logits[label]
    if name == "center":
        total += m / 2 * sum((a - c) ** 2 for a, c in zip(x, centre, strict=True))
    return total


@pytest.mark.parametrize(("name", "margin", "scale"), CASES)
def test_a_loss_is_its_equation(name, margin, scale):
    loss, features, labels = example(name, margin, scale)
    bias = loss.bias.tolist() if hasattr(loss, "bias") else None
    centres = loss.centres[labels].tolist() if name == "center" else [None] * len(labels)
    weights = loss.weight.tolist()
    wanted = np.mean([
        written_out(name, x, y, weights, bias, c, margin, scale)
        for x, y, c in zip(features.tolist(), labels.tolist(), centres, strict=True)
    ])  # fmt: skip
    assert loss(features, labels).item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("name", "margin", "scale"), CASES)
def test_slopes_are_finite_differences(name, margin, scale):
    loss, features, labels = example(name, margin, min(scale, 4), count=6)
    grads = torch.autograd.grad(loss(features, labels), [features, loss.weight])
    step = 1e-6
    for tensor, grad in zip((features, loss.weight), grads, strict=True):
        for place in np.ndindex(*tensor.shape):
            with torch.no_grad():
                kept = tensor[place].item()
                ends = []
                for sign in (1, -1):
                    tensor[place] = kept + sign * step
                    ends.append(loss(features, labels).item())
                tensor[place] = kept
            assert grad[place].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-6), (
                place,
                tensor.shape,
            )


def beside_library(ours, theirs, features, labels):
    with torch.no_grad():
        theirs.W.copy_(ours.weight.t().float())
    mine = ours.float()
    a, b = (features.detach().float().requires_grad_() for _ in range(2))
    one, other = mine(a, labels), theirs(b, labels)
    one.backward(), other.backward()
    assert one.item() == pytest.approx(other.item(), rel=2e-5)
    assert torch.allclose(a.grad, b.grad, rtol=2e-3, atol=2e-5)
    assert torch.allclose(mine.weight.grad, theirs.W.grad.t(), rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5, 1.2])
def test_arcface_is_the_librarys(margin):
    ours, features, labels = example("arcface", margin, 16, count=200)
    beside_library(ours, library.ArcFaceLoss(5, 3, margin=math.degrees(margin), scale=16), features, labels)


@pytest.mark.parametrize("margin", [1, 2, 3, 4])
def test_sphereface_and_large_margin_are_the_librarys(margin):
    ours, features, labels = example("a-softmax", margin, 1, count=200)
    beside_library(ours, library.SphereFaceLoss(5, 3, margin=margin, scale=1), features, labels)
    ours, features, labels = example("l-softmax", margin, 1, count=200)
    beside_library(ours, library.LargeMarginSoftmaxLoss(5, 3, margin=margin, scale=1), features, labels)


def test_cosface_and_the_normalised_softmax_are_the_librarys():
    ours, features, labels = example("am-softmax", 0.35, 30, count=200)
    beside_library(ours, library.CosFaceLoss(5, 3, margin=0.35, scale=30), features, labels)
    plain = ms.MarginLoss(5, 3, scale=10.0)
    beside_library(plain, library.NormalizedSoftmaxLoss(5, 3, temperature=0.1), features, labels)


def at(name, degrees, margin, **options):
    loss = ms.LOSSES[name](2, 2, margin, 1.0, **options).double()
    return loss.psi(torch.tensor([math.cos(math.radians(degrees))], dtype=torch.float64)).item()


def test_values_that_can_be_said_by_heart():
    assert at("a-softmax", 90, 4) == pytest.approx(-3)  # k = 2: cos 360 - 4
    assert at("a-softmax", 180, 4) == pytest.approx(-7) and at("a-softmax", 0, 4) == pytest.approx(1)
    assert at("l-softmax", 60, 2) == pytest.approx(-0.5) and at("l-softmax", 120, 2) == pytest.approx(-1.5)
    assert at("am-softmax", 60, 0.25) == pytest.approx(0.25)
    assert at("arcface", 30, math.pi / 6) == pytest.approx(0.5)
    # Past pi - m: the paper's formula rises, the authors' code goes on falling.
    assert at("arcface", 170, 1.0, continued=False) > at("arcface", 130, 1.0, continued=False)
    assert at("arcface", 180, 1.0) == pytest.approx(-1 - math.sin(1.0), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "margin"), [("l-softmax", 3), ("a-softmax", 4), ("am-softmax", 0.4), ("arcface", 0.9)]
)
def test_the_logit_falls_with_the_angle_and_never_helps(name, margin):
    cosine = torch.linspace(1, -1, 2001, dtype=torch.float64)
    found = ms.build(name, 2, 2, margin, 1.0).double().psi(cosine)
    assert (found.diff() < 1e-9).all() and (found <= cosine + 1e-9).all()
    # Where the formulas meet there is no jump, but for the one that the authors of ArcFace left: down from cos(pi) to
    # cos(pi - m) - m sin(m).
    step = math.cos(margin) + margin * math.sin(margin) - 1 if name == "arcface" else 0.0
    assert found[100:].diff().abs().max() == pytest.approx(step, abs=0.02)


def test_blending_leads_from_no_margin_to_all_of_it():
    loss = ms.AngularSoftmax(2, 2, 4)
    cosine = torch.tensor([0.3])
    ends = []
    for loss.blend in (0.0, 1.0, 1e9):
        ends.append(loss.psi(cosine).item())
    assert ends[2] == pytest.approx(0.3) and ends[1] == pytest.approx((ends[0] + 0.3) / 2) and ends[0] < -1


@pytest.mark.parametrize(("name", "margin", "scale"), CASES)
def test_without_labels_no_class_has_a_margin(name, margin, scale):
    loss, features, labels = example(name, margin, scale)
    plain, told = loss.logits(features), loss.logits(features, labels)
    others = torch.ones_like(plain, dtype=torch.bool).scatter(1, labels[:, None], False)
    assert torch.equal(plain[others], told[others])
    own = ~others
    assert (told[own] <= plain[own] + 1e-9).all()
    if margin not in (0, 1) and name not in ("softmax", "center"):
        assert (told[own] < plain[own]).all()


def test_centres_follow_their_classes():
    loss = ms.CenterLoss(3, 2, rate=0.5).double()
    features = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 8.0]], dtype=torch.float64)
    loss.after_step(features, torch.tensor([0, 0, 1]))
    # (2 + 4) / (1 + 2) = 2 and 8 / (1 + 1) = 4, half of the way; class 2 had none.
    assert loss.centres.tolist() == [[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]
    assert loss.centres.requires_grad is False and "centres" in loss.state_dict()


def test_a_feature_on_its_weights_or_at_the_origin_has_a_slope():
    for name, margin, scale in CASES:
        loss, _, _ = example(name, margin, scale, classes=2, dimension=2)
        features = torch.stack([loss.weight[0].detach(), -loss.weight[0].detach(), torch.zeros(2).double()])
        features.requires_grad_()
        loss(features, torch.tensor([0, 0, 1])).backward()
        assert torch.isfinite(features.grad).all() and torch.isfinite(loss.weight.grad).all(), name
