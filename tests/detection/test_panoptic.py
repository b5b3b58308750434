"""The mask head: its shared convolution held to the written-out one. Parity with the library is in test_parity.py."""

import math

import pytest
import torch
import torch.nn.functional as F

from pipelines.detection import panoptic
from pipelines.detection.panoptic import MaskAttention, MaskHead
from tests.detection.lively import enliven


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    return enliven(MaskHead(32, 8, (12, 16, 20)))


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    projected = torch.randn(2, 32, 3, 5, generator=generator)
    maps = torch.rand(2, 7, 8, 3, 5, generator=generator)
    sizes = ((12, 11, 19), (16, 6, 10), (20, 3, 5))
    return projected, maps, [torch.randn(2, *size, generator=generator) for size in sizes]


def written_out(head, projected, maps, features):
    """As the paper's figure has it: everything copied for every query, one picture and query after the other."""
    masks = torch.empty(2, 7, 11, 19)
    for b in range(2):
        for q in range(7):
            x = torch.cat([projected[b], maps[b, q]])[None]
            for i in range(5):
                if i >= 2:
                    finer = head.adapters[i - 2](features[4 - i][b : b + 1])
                    x = finer + F.interpolate(x, size=finer.shape[-2:], mode="nearest")
                x = F.relu(head.norms[i](head.convs[i](x)))
            masks[b, q] = head.out(x)[0, 0]
    return masks


@torch.inference_mode()
@pytest.mark.parametrize("at_once", [1, 3, 20])
def test_shared_equals_written_out(head, inputs, at_once, monkeypatch):
    monkeypatch.setattr(panoptic, "QUERIES_AT_ONCE", at_once)
    found, wanted = head(*inputs), written_out(head, *inputs)
    assert wanted.std() > 0.05 and (wanted[0, 0] - wanted[0, 1]).abs().max() > 0.01
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_channels_and_groups():
    with torch.device("meta"):
        head = MaskHead(256, 8, (256, 512, 1024))
    assert [(c.in_channels, c.out_channels) for c in head.convs] == [
        (264, 264), (264, 128), (128, 64), (64, 32), (32, 16),
    ]  # fmt: skip
    assert [norm.num_groups for norm in head.norms] == [8] * 5
    assert [(c.in_channels, c.out_channels) for c in head.adapters] == [(1024, 128), (512, 64), (256, 32)]


@torch.inference_mode()
def test_heads_and_cells_share_one_softmax():
    torch.manual_seed(0)
    attention = enliven(MaskAttention(32, 4))
    slots, memory = torch.randn(1, 3, 32), torch.randn(1, 6, 32)
    hidden = torch.tensor([[False, False, False, False, True, True]])
    maps = attention(slots, memory, hidden)
    assert maps.shape == (1, 3, 4, 6) and (maps[..., 4:] == 0).all()
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(1, 3), rtol=0, atol=1e-5)
    assert maps[..., :4].sum(-1).std() > 0.001, "a head by itself does not sum to the same"
    # Channels 8 to 16 are head 1's.
    query, key = attention.query(slots)[0, 2, 8:16], attention.key(memory)[0, :4, 8:16]
    scores = (key @ query) / math.sqrt(8)
    torch.testing.assert_close(maps[0, 2, 1, :4].log() - scores, (maps[0, 2, 1, 0].log() - scores[0]).expand(4))
