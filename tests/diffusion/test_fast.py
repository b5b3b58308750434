"""The fast form held to the readable one: every family, several sizes, records, in 16 bits, and planted faults."""

import copy

import pytest
import torch

from pipelines.diffusion import fast, forms
from pipelines.diffusion.config import TINY
from pipelines.diffusion.unet import FeedForward, Record, TransformerBlock
from tests.diffusion.tiny import FAMILIES, networks


def given(cfg, height, width, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, cfg.unet.in_channels, height, width, generator=generator)
    text = torch.randn(batch, 16, cfg.unet.cross_attention_dim, generator=generator)
    return latents, torch.full((batch,), 300.5), text


def unets(cfg=TINY, onednn=None):
    plain = networks(cfg)["unet"].requires_grad_(False)
    return plain, fast.fuse(copy.deepcopy(plain), onednn)


def difference(a, b):
    assert a.shape == b.shape and b.std() > 1e-2
    return float((a - b).abs().max() / b.abs().max())


@torch.inference_mode()
@pytest.mark.parametrize("onednn", [None, True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fast_denoiser_equals_the_readable_one(family, onednn):
    cfg = FAMILIES[family]
    plain, quick = unets(cfg, onednn)
    width = cfg.unet.time_cond_proj_dim
    guidance = None if width is None else torch.randn(2, width, generator=torch.Generator().manual_seed(2))
    for size in ((8, 8), (12, 20), (8, 8)):  # the weights are packed again for another size
        assert difference(quick(*given(cfg, *size), guidance), plain(*given(cfg, *size), guidance)) < 1e-5
    assert difference(quick(*given(cfg, 8, 8, batch=1)), plain(*given(cfg, 8, 8, batch=1))) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fast_autoencoder_equals_the_readable_one(family):
    plain = networks(FAMILIES[family])["vae"].requires_grad_(False)
    quick = fast.fuse(copy.deepcopy(plain))
    latents = given(FAMILIES[family], 6, 10)[0]
    pixels = plain.decode(latents)
    assert difference(quick.decode(latents), pixels) < 1e-5
    assert difference(quick.encode(pixels).mean, plain.encode(pixels).mean) < 1e-5


@torch.inference_mode()
def test_what_is_given_stays_as_it_was_and_records_are_the_same():
    plain, quick = unets()
    inputs, records = given(TINY, 8, 8), (Record(), Record())
    before = [each.clone() for each in inputs]
    wanted, found = plain(*inputs, record=records[0]), quick(*inputs, record=records[1])
    assert difference(found, wanted) < 1e-5 and torch.equal(quick(*inputs), found), "nothing is left over from a call"
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))
    assert len(records[1].cross_attention) == 4
    for a, b in zip(*(record.cross_attention for record in records), strict=True):
        assert (a - b).abs().max() < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("onednn", [True, False])
def test_the_gated_mlp_in_parts(rows, onednn, monkeypatch):
    monkeypatch.setattr(fast, "ROWS", rows)
    torch.manual_seed(0)
    block = TransformerBlock(32, 24, 4).eval()
    quick = fast.FastTransformerBlock(copy.deepcopy(block), onednn)
    x, text = torch.randn(2, 10, 32), torch.randn(2, 5, 24)
    wanted = block(x, text)
    seen = []
    quick.ff.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    assert difference(quick(x.clone(), text), wanted) < 1e-5
    assert sum(seen) == 20 and max(seen) == min(rows, 20), "every token once, and no more of them at once"
    transposed = x.transpose(1, 2).contiguous().transpose(1, 2)  # as a map that is not channels_last would give it
    assert difference(quick(transposed, text), wanted) < 1e-5


@torch.inference_mode()
def test_the_gated_mlp_by_hand():
    mlp = FeedForward(1)
    mlp.net["0"].proj.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0])[:, None])
    mlp.net["0"].proj.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, 20.0, 30.0, -20.0, 0.0]))
    mlp.net["2"].weight.fill_(1.0), mlp.net["2"].bias.fill_(0.5)
    # gelu passes 20 and 30, and nothing of -20 and 0: 2 * 1 * 20 + 2 * 2 * 30 + 0.5
    assert fast.FastFeedForward(mlp)(torch.tensor([[2.0]])).item() == pytest.approx(160.5)


@torch.inference_mode()
def test_a_state_dict_is_what_it_was():
    plain, quick = unets()
    quick(*given(TINY, 8, 8))  # now the weights are in the kernel's order
    state, wanted = quick.state_dict(), plain.state_dict()
    assert state.keys() == wanted.keys() and all(torch.equal(state[key], wanted[key]) for key in wanted)
    packed = [name for name, module in quick.named_modules() if isinstance(module, fast.PackedConv)]
    assert "down_blocks.0.resnets.0.conv1" in packed and "conv_in" not in packed and "conv_out" not in packed
    held = {parameter.data_ptr() for parameter in quick.parameters()}
    assert sum(p.numel() for p in quick.parameters()) < 0.6 * sum(p.numel() for p in plain.parameters())
    assert len(held) == len(list(quick.parameters())), "a packed weight is held once"


@torch.inference_mode()
def test_in_16_bits_it_is_close():
    plain, quick = unets()
    small = forms.reduced(quick, "bfloat16")
    latents, steps, text = given(TINY, 8, 8)
    wanted = plain(latents, steps, text)
    found = small(latents.bfloat16(), steps, text.bfloat16())
    assert found.dtype == torch.bfloat16 and any(isinstance(each, fast.PackedConv) for each in small.modules())
    assert 1e-4 < difference(found.float(), wanted) < 0.1
    assert difference(quick(latents, steps, text), wanted) < 1e-5, "the form that it was made from answers as before"


@torch.inference_mode()
@pytest.mark.parametrize(
    "plant",
    [
        lambda net: net.down_blocks[0].resnets[0].conv1.step.bias[0].add_(0.3),
        lambda net: net.up_blocks[0].resnets[0].time_emb_proj.bias[0].add_(0.3),
        lambda net: setattr(net.up_blocks[1].resnets[0].norm2, "eps", 0.3),
        lambda net: (
            setattr(net.down_blocks[0].downsamplers[0].conv.step, "dilation", [2, 2])
            or setattr(net.down_blocks[0].downsamplers[0].conv.step, "padding", [2, 2])
        ),
        lambda net: net.mid_block.attentions[0].transformer_blocks[0].ff.net["2"].step.bias[0].add_(0.3),
    ],
)
def test_planted_faults_are_seen(plant):
    """In one channel, where it is a bias: what all share, a group norm takes away."""
    plain, quick = unets()
    plant(quick)
    assert difference(quick(*given(TINY, 8, 8)), plain(*given(TINY, 8, 8))) > 1e-4


def test_a_lone_convolution_is_no_network():
    with pytest.raises(TypeError, match="not a single convolution"):
        fast.fuse(torch.nn.Conv2d(16, 16, 3))
