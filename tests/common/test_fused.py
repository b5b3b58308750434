"""The fused convolution by hand, and against torch's own in every shape that the networks use."""

import copy

import pytest
import torch
import torch.nn.functional as F

from pipelines.common import fused


def convolution(onednn=None, **options):
    """1x1 convolution 2 x - 3."""
    return fused.FusedConv(torch.full((1, 1, 1, 1), 2.0), torch.tensor([-3.0]), onednn=onednn, **options)


@torch.inference_mode()
@pytest.mark.parametrize("onednn", [None, False])
def test_by_hand(onednn):
    # 2 x - 3, plus what stands there, through ReLU.
    step = convolution(onednn)
    x = torch.tensor([[[[1.0, 2.0, 4.0]]]])
    assert step(x).flatten().tolist() == [0.0, 1.0, 5.0]
    assert step(x, relu=False).flatten().tolist() == [-1.0, 1.0, 5.0]
    other = torch.tensor([[[[0.5, -4.0, 1.0]]]])
    total = step.add(x, other)
    assert total.flatten().tolist() == [0.0, 0.0, 6.0]
    assert total.data_ptr() == other.data_ptr()
    other = torch.tensor([[[[0.5, -4.0, 1.0]]]])
    assert step.add(x, other, relu=False).flatten().tolist() == [-0.5, -3.0, 6.0]


@torch.inference_mode()
@pytest.mark.parametrize("onednn", [None, False])
def test_a_ceiling_by_hand(onednn):
    step = convolution(onednn, ceiling=6.0)
    x = torch.tensor([[[[1.0, 2.0, 4.0, 5.0]]]])
    assert step(x).flatten().tolist() == [0.0, 1.0, 5.0, 6.0]
    assert step(x, relu=False).flatten().tolist() == [-1.0, 1.0, 5.0, 7.0]
    with pytest.raises(ValueError, match="ceiling"):
        step.add(x, torch.zeros_like(x))


# Without oneDNN's fused operations a 16-bit convolution is torch's own: nothing of ours to hold to anything.
FORMS = [(None, torch.float32), (False, torch.float32)]
if fused.onednn_fusion(torch.bfloat16):
    FORMS.append((None, torch.bfloat16))


@torch.inference_mode()
@pytest.mark.parametrize(("onednn", "dtype"), FORMS)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups"),
    [(3, (1, 1), (1, 1), (1, 1), 1), (3, (2, 1), (1, 2), (1, 1), 1), (3, (1, 1), (2, 2), (2, 2), 1),
     (3, (2, 2), (1, 1), (1, 1), 32), (1, (2, 2), (0, 0), (1, 1), 1), (7, (2, 2), (3, 3), (1, 1), 1)],
)  # fmt: skip
def test_equals_torchs_convolution_at_every_size(onednn, kernel, stride, padding, dilation, groups, dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 32 // groups, kernel, kernel, generator=generator) / kernel
    bias = torch.randn(64, generator=generator)
    step = fused.FusedConv(weight.to(dtype), bias.to(dtype), stride, padding, onednn, dilation, groups)
    tolerance = 1e-4 if dtype == torch.float32 else 0.3
    for size in ((9, 14), (30, 40), (9, 14)):  # the weight is packed for one size, then for another, then again
        x = torch.randn(2, 32, *size, generator=generator)
        wanted = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        found = step(x.to(dtype).contiguous(memory_format=torch.channels_last), relu=False)
        assert found.dtype == dtype and (found.float() - wanted).abs().max() <= tolerance
        other = torch.randn(wanted.shape, generator=generator)
        given = other.to(dtype).contiguous(memory_format=torch.channels_last)
        total = step.add(x.to(dtype).contiguous(memory_format=torch.channels_last), given)
        assert (total.float() - (wanted + other).relu()).abs().max() <= tolerance
        assert wanted.std() > 1, "the differences are to be read against this"


def test_without_onednn_the_plain_path_is_taken(monkeypatch):
    monkeypatch.setattr(fused, "onednn_fusion", lambda dtype: False)
    assert not convolution().onednn
    assert not fused.FusedConv(torch.ones(1, 1, 1, 1).double(), torch.zeros(1).double()).onednn


def test_padding_by_name_is_refused():
    with pytest.raises(ValueError, match="two numbers"):
        convolution(padding="same")


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


PRODUCTS = [(False, torch.float32)]
PRODUCTS += [(True, dtype) for dtype in (torch.float32, torch.bfloat16) if fused.onednn_products(dtype)]


@torch.inference_mode()
@pytest.mark.parametrize(("onednn", "dtype"), PRODUCTS)
@pytest.mark.parametrize("biased", [True, False])
def test_a_linear_map_equals_torchs(onednn, dtype, biased):
    weight, bias = drawn(24, 32), drawn(24, seed=1) if biased else None
    step = fused.FusedLinear(weight.to(dtype), None if bias is None else bias.to(dtype), onednn)
    assert torch.equal(step.weight, weight.to(dtype)), "it can be had back as it was"
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    for rows in ((5,), (2, 7), (1,)):  # however many, however laid out
        x = drawn(*rows, 32, seed=2)
        wanted = F.linear(x, weight, bias)
        given, other = x.to(dtype), drawn(*rows, 24, seed=3)
        kept = other.clone()
        assert (step(given).float() - wanted).abs().max() < tolerance
        assert (step.gelu(given).float() - F.gelu(wanted)).abs().max() < tolerance
        assert (step.add(given, other.to(dtype)).float() - (wanted + other)).abs().max() < tolerance
        found = step.times(given, other.to(dtype))
        assert found.dtype == dtype and (found.float() - wanted * other).abs().max() < 2 * tolerance
        assert torch.equal(other, kept)
        assert wanted.std() > 3, "the differences are to be read against this"


@torch.inference_mode()
@pytest.mark.parametrize(("onednn", "dtype"), PRODUCTS)
def test_attention_equals_the_formula(onednn, dtype, monkeypatch):
    monkeypatch.setattr(fused, "SCORES_BYTES", 1 << 15)  # so that the rows come in parts, the last a short one
    q, k, v = (drawn(2, 3, length, 16, seed=length) for length in (150, 70, 71))
    v = v[:, :, :70]
    wanted = (q @ k.transpose(2, 3) / 4).softmax(dim=-1) @ v
    strided = (each.to(dtype).transpose(1, 2).contiguous().transpose(1, 2) for each in (q, k, v))  # as heads come
    found = fused.attend(*strided, onednn)
    assert found.shape == wanted.shape and found.dtype == dtype
    assert (found.float() - wanted).abs().max() < (1e-5 if dtype == torch.float32 else 0.03)


def test_what_is_slower_or_unknown_is_not_taken(monkeypatch):
    monkeypatch.setattr(fused, "onednn_linear", lambda dtype: False)
    monkeypatch.setattr(fused, "onednn_attention", lambda dtype: False)
    monkeypatch.setattr(fused, "_attend", lambda *_: pytest.fail("not asked for"))
    assert not fused.FusedLinear(torch.ones(2, 2)).onednn
    q = torch.ones(1, 1, 200, 8)
    assert fused.attend(q, q, q).shape == q.shape
    monkeypatch.setattr(fused, "onednn_linear", lambda dtype: True)
    assert not fused.FusedLinear(torch.ones(2, 2).double()).onednn


@pytest.mark.parametrize(("seconds", "answer"), [((1.0, 2.0), True), ((2.0, 1.0), False), ((1.0, 1.01), False)])
def test_the_faster_of_two(seconds, answer, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(fused.time, "perf_counter", lambda: now[0])
    calls = [lambda cost=cost: now.__setitem__(0, now[0] + cost) for cost in seconds]
    assert fused.faster(*calls) is answer


@torch.inference_mode()
@pytest.mark.skipif(not fused.onednn_products(torch.float32), reason="no linear maps of oneDNN here")
def test_a_packed_network_shares_the_rest_and_can_be_cast():
    inner = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.LayerNorm(8))
    plain = torch.nn.ModuleDict({"a": inner, "b": torch.nn.Linear(8, 3, bias=False), "c": torch.nn.ReLU()})
    packed = fused.pack_linears(plain, onednn=True)
    assert packed["a"][1] is inner[1] and packed["c"] is plain["c"] and type(plain["b"]) is torch.nn.Linear
    x = drawn(4, 6)
    wanted = plain["b"](inner(x))
    assert (packed["b"](packed["a"](x)) - wanted).abs().max() < 1e-5
    state = packed.state_dict()
    assert state.keys() == plain.state_dict().keys() and all(
        torch.equal(state[k], plain.state_dict()[k]) for k in state
    )
    short = copy.deepcopy(packed).to(torch.bfloat16)
    found = short["b"](short["a"](x.bfloat16()))
    assert found.dtype == torch.bfloat16 and 0 < (found.float() - wanted).abs().max() < 0.1
    assert torch.equal(packed["b"].weight, plain["b"].weight), "the one that was copied stays as it is"
    assert fused.pack_linears(plain, onednn=False) is plain


def test_the_trials_find_what_a_known_processor_has():
    """A trial that always fails would turn the fast paths off in silence."""
    assert fused.onednn_products(torch.float32) == (
        torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
    assert not fused.onednn_products(torch.float64)
