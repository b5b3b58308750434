"""The attention family: each fast form against weights written down, each parallel one against its recurrence."""

import math

import pytest
import torch
import torch.nn.functional as F

from pipelines.foundations.attention import (
    Flash,
    GatedAttentionUnit,
    LinearState,
    RelativeBias,
    UnitState,
    causal_product,
    linear_attention,
    linear_weights,
    softmax_attention,
)
from pipelines.foundations.attention_config import KINDS, LanguageConfig
from pipelines.foundations.attention_model import ByteModel

CLOSE = {"rtol": 1e-8, "atol": 1e-9}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def qkv(length=37, width=5, values=7):
    return drawn(2, 3, length, width), drawn(2, 3, length, width, seed=1), drawn(2, 3, length, values, seed=2)


@pytest.mark.parametrize("causal", [False, True])
def test_softmax_attention_is_the_librarys(causal):
    q, k, v = qkv()
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    torch.testing.assert_close(softmax_attention(q, k, v, causal), expected, **CLOSE)


def test_softmax_attention_in_numbers():
    q, k = torch.tensor([[2.0], [0.0]]), torch.tensor([[math.log(3) / 2], [0.0]])
    v = torch.tensor([[4.0], [0.0]])
    assert softmax_attention(q, k, v).flatten().tolist() == pytest.approx([3.0, 2.0])
    assert softmax_attention(q, k, v, True).flatten().tolist() == pytest.approx([4.0, 2.0])


def by_loops(q, k, v, causal, feature):
    """Linear attention from the definition, one output at a time."""
    out = torch.zeros_like(v)
    for t in range(len(q)):
        seen = range(t + 1) if causal else range(len(k))
        if feature == "elu":
            phi = lambda x: torch.where(x > 0, x + 1, x.exp())  # noqa: E731
            weights = torch.stack([phi(q[t]) @ phi(k[s]) for s in seen])
            weights = weights / weights.sum()
        else:
            shares = k[list(seen)].softmax(dim=0)  # over the tokens, each feature by itself
            weights = shares @ q[t].softmax(dim=0)
        out[t] = sum(w * v[s] for w, s in zip(weights, seen, strict=True))
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("feature", ["elu", "softmax"])
def test_linear_attention_by_its_definition(feature, causal):
    q, k, v = (each[0, 0] for each in qkv(11))
    found = linear_attention(q, k, v, causal, feature, chunk=4)
    torch.testing.assert_close(found, by_loops(q, k, v, causal, feature), **CLOSE)
    weights = linear_weights(q, k, causal, feature)
    torch.testing.assert_close(weights.sum(-1), torch.ones(11, dtype=torch.float64), **CLOSE)
    assert (weights >= 0).all() and (weights.triu(1).any() != causal)


@pytest.mark.parametrize("length", [1, 8, 37])
@pytest.mark.parametrize("feature", ["elu", "softmax"])
def test_chunks_squares_and_the_recurrence_agree(feature, length):
    q, k, v = qkv(length)
    square = linear_weights(q, k, True, feature) @ v
    for chunk in (1, 8, 64):
        torch.testing.assert_close(linear_attention(q, k, v, True, feature, chunk), square, **CLOSE)
    state = LinearState()
    steps = [state.step(q[:, :, t], k[:, :, t], v[:, :, t], feature) for t in range(length)]
    torch.testing.assert_close(torch.stack(steps, dim=2), square, **CLOSE)
    assert state.total.shape == (2, 3, 5, 7)  # however long the text


def test_what_is_large_leaves_no_trace_in_what_came_before():
    """In single precision: an early token must not lose its digits to the keys at the end of its chunk."""
    q, k, v = (drawn(12, 3, seed=seed).float() for seed in range(3))
    k[7] = 20.0  # whose exp is 5e8: the last of the second chunk of four
    found = linear_attention(q, k, v, True, "softmax", chunk=4)
    exact = linear_weights(q.double(), k.double(), True, "softmax") @ v.double()
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5)


def test_the_causal_product_in_numbers():
    ones = torch.ones(5, 1)
    found = causal_product(ones, ones, torch.arange(1.0, 6)[:, None], chunk=2)
    assert found.flatten().tolist() == [1, 3, 6, 10, 15]


def test_distances_fall_into_t5s_buckets():
    bias = RelativeBias(buckets=8, far=16)
    with torch.no_grad():
        bias.table.copy_(torch.arange(16.0))
    found = bias(20, 20)
    # by hand: 0 to 3 exact, then 4 + floor(log(d / 4) / log 4 · 4), at most 7; the future has 8 more
    assert found[19, :].flip(0).tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7, 7, 7]
    assert found[0, 1:5].tolist() == [9, 10, 11, 12]
    assert (bias(1, 20) == found[19:]).all()


def test_no_distance_is_without_a_bucket():
    with pytest.raises(ValueError, match="far must be more than half of 8"):
        RelativeBias(buckets=8, far=4)
    for chunk in (1, 16, 64):
        bias = GatedAttentionUnit(4, 4, 4, chunk).bias
        with torch.no_grad():
            bias.table.copy_(torch.arange(64.0))
        past = bias(1, 200)[0].flip(0)
        assert past[:17].tolist() == list(range(17)) and (past.diff() >= 0).all() and past[-1] == 31


def unit(kind, chunk=8):
    torch.manual_seed(0)
    found = kind(6, 12, shared=5, chunk=chunk).double()
    with torch.no_grad():
        for value in found.parameters():
            value.add_(torch.randn_like(value) * 0.5)
    return found


def test_a_gated_attention_unit_by_its_equations():
    gau = unit(GatedAttentionUnit)
    x = drawn(9, 6)
    rows = F.silu(x @ gau.inward.weight.T + gau.inward.bias)
    u, v, z = rows[:, :12], rows[:, 12:24], rows[:, 24:]
    q, k = (z * gau.images.gain[i] + gau.images.shift[i] for i in (0, 1))
    bias = gau.bias(9, 9)
    for causal in (False, True):
        out = torch.zeros(9, 12, dtype=torch.float64)
        for t in range(9):
            for s in range(t + 1 if causal else 9):
                out[t] += F.relu(q[t] @ k[s] / 8 + bias[t, s]).detach() ** 2 * v[s]
        expected = (u * out) @ gau.outward.weight.T + gau.outward.bias
        torch.testing.assert_close(gau(x, causal), expected, **CLOSE)


@pytest.mark.parametrize("causal", [False, True])
def test_flash_by_its_equations(causal):
    flash, x = unit(Flash, chunk=4), drawn(10, 6)
    u, v, (near_q, near_k, far_q, far_k) = flash.split(x)
    bias, out = flash.bias(4, 4), torch.zeros(10, 12, dtype=torch.float64)
    for t in range(10):
        for s in range(10):
            if s // 4 == t // 4 and (s <= t or not causal):
                out[t] += F.relu(near_q[t] @ near_k[s] / 4 + bias[t % 4, s % 4]) ** 2 * v[s]
            if s // 4 < t // 4 or not causal:
                out[t] += (far_q[t] @ far_k[s]) * v[s] / 4 / (1 if causal else 3)
    expected = (u * out) @ flash.outward.weight.T + flash.outward.bias
    torch.testing.assert_close(flash(x, causal), expected, **CLOSE)


@pytest.mark.parametrize("kind", [GatedAttentionUnit, Flash])
def test_a_unit_decodes_what_it_reads(kind):
    layer, x = unit(kind), drawn(2, 29, 6)
    state = UnitState()
    steps = torch.stack([layer.step(x[:, t], state) for t in range(29)], dim=1)
    torch.testing.assert_close(steps, layer(x, True), **CLOSE)
    assert state.keys.shape[-2] == (5 if kind is Flash else 29)  # FLASH keeps its chunk only


@pytest.mark.parametrize("kind", KINDS)
def test_a_language_model_hears_no_byte_to_come(kind):
    torch.manual_seed(0)
    model = ByteModel(LanguageConfig(kind, width=16, layers=2, heads=2, shared=8, chunk=4)).double()
    text = torch.randint(0, 256, (1, 23))
    other = text.clone()
    other[0, 15] = (text[0, 15] + 1) % 256
    with torch.no_grad():
        changed = (model(text) - model(other)).abs().amax(dim=(0, 2)) > 1e-12
    assert not changed[:15].any() and changed[15:].all()
    found = model.entropy(text)
    logits = model(text)
    by_hand = -logits[0, 4].log_softmax(-1)[text[0, 5]]
    assert found.shape == (1, 22) and float(found.detach()[0, 4]) == pytest.approx(float(by_hand.detach()))


def test_the_language_models_are_of_equal_size():
    sizes = {k: sum(p.numel() for p in ByteModel(LanguageConfig(k)).parameters()) for k in KINDS}
    assert max(sizes.values()) / min(sizes.values()) < 1.1, sizes
