"""The three networks: published weights load strictly, outputs are facenet-pytorch's, fast halves are the whole."""

import pytest
import torch
import torch.nn.functional as F
from facenet_pytorch.models import mtcnn as published

from pipelines.common import catalogue
from pipelines.common.checkpoint import paths, read
from pipelines.common.errors import UserError
from pipelines.face import local, reference
from pipelines.face.mtcnn import MTCNN, _max_pairs, normalise

ENTRY = catalogue.manifest()["mtcnn"]
NAMES = ("pnet", "rnet", "onet")


@pytest.fixture(scope="module")
def ours():
    return local.load(ENTRY).networks


@pytest.fixture(scope="module")
def theirs():
    networks = {}
    for name, kind in zip(NAMES, (published.PNet, published.RNet, published.ONet), strict=True):
        networks[name] = kind(pretrained=False).eval()
        networks[name].load_state_dict(read(paths(ENTRY)[name]))
    return networks


def pixels(*shape):
    return normalise(torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 255)


def test_constructor_reads_nothing_and_runs_on_meta():
    with torch.device("meta"):
        networks = MTCNN()
    assert {p.device.type for p in networks.parameters()} == {"meta"}
    assert sum(p.numel() for p in networks.parameters()) == 6632 + 100178 + 389040


def test_every_published_key_is_loaded_and_no_other(ours):
    for name in NAMES:
        state = read(paths(ENTRY)[name])
        mine = getattr(ours, name).state_dict()
        assert mine.keys() == state.keys()
        assert all(torch.equal(mine[key], state[key]) for key in state)


@pytest.mark.parametrize("fault", ["missing", "extra"])
def test_a_wrong_key_list_is_refused(fault, monkeypatch):
    def broken(path):
        state = read(path)
        if fault == "missing":
            del state["conv2.bias"]
        else:
            state["conv9.bias"] = torch.zeros(1)
        return state

    monkeypatch.setattr(local, "read", broken)
    with pytest.raises(RuntimeError, match=r"conv2\.bias|conv9\.bias"):
        local.load(ENTRY)


@torch.inference_mode()
def test_outputs_are_the_published_ones(ours, theirs):
    x = pixels(2, 3, 61, 94)
    probability, offsets = ours.pnet(x)
    expected = theirs["pnet"](x)
    assert probability.shape == (2, 26, 42)
    torch.testing.assert_close(probability, expected[1][:, 1], atol=2e-6, rtol=0)
    torch.testing.assert_close(offsets, expected[0], atol=2e-6, rtol=0)
    x = pixels(7, 3, 24, 24)
    expected = theirs["rnet"](x)
    for mine, other in zip(ours.rnet(x), (expected[1][:, 1], expected[0]), strict=True):
        torch.testing.assert_close(mine, other, atol=2e-6, rtol=0)
    x = pixels(7, 3, 48, 48)
    offsets, points, probability = theirs["onet"](x)
    points = torch.stack([points[:, :5], points[:, 5:]], 2)
    for mine, other in zip(ours.onet(x), (probability[:, 1], offsets, points), strict=True):
        torch.testing.assert_close(mine, other, atol=2e-6, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(12, 12), (13, 12), (12, 13), (13, 13), (40, 57), (57, 40)])
def test_stem_and_heads_are_forward(ours, size):
    x = pixels(*size, 3)
    probability, offsets = ours.pnet.heads(ours.pnet.stem(x))
    expected = ours.pnet(x.permute(2, 0, 1)[None])
    torch.testing.assert_close(probability, expected[0][0], atol=2e-6, rtol=0)
    torch.testing.assert_close(offsets, expected[1][0], atol=5e-6, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (8, 8)])
def test_max_of_pairs_is_the_pool_that_keeps_half_squares(size):
    x = torch.randn(*size, 10, generator=torch.Generator().manual_seed(1)) - 3
    expected = F.max_pool2d(x.permute(2, 0, 1)[None], 2, 2, ceil_mode=True)[0].permute(1, 2, 0)
    assert torch.equal(_max_pairs(x), expected)


@torch.inference_mode()
def test_networks_take_no_crops(ours):
    assert [tuple(out.shape) for out in ours.rnet(pixels(0, 3, 24, 24))] == [(0,), (0, 4)]
    assert [tuple(out.shape) for out in ours.onet(pixels(0, 3, 48, 48))] == [(0,), (0, 4), (0, 5, 2)]


def test_load_knows_its_architectures():
    from dataclasses import replace

    strange = replace(ENTRY, architecture="something else")
    for backend in (local, reference):
        with pytest.raises(ValueError, match="something else"):
            backend.load(strange)
    with pytest.raises(UserError, match="not on this machine"):
        local.load(replace(ENTRY, origin="no_such_package"))
