"""dlib's descriptor network: parity with dlib itself, live where it is installed and by pinned values where it is not.

fixtures/dlib_descriptors.npz holds three 150 px chips (astronaut.jpg and hopper.jpg, aligned; pure red) and the raw
descriptors that dlib 20.0.1 computed of them.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipelines.common import catalogue, checkpoint
from pipelines.face import dlib_resnet, weights
from pipelines.face.config import DlibResnetConfig
from pipelines.face.dlib_resnet import DlibResnet, FoldedDlibResnet, padded_sum, prepare

FIXTURE = Path(__file__).parent / "fixtures" / "dlib_descriptors.npz"


@pytest.fixture(scope="module")
def path():
    return checkpoint.paths(catalogue.resolve("face", "dlib", "embedder"))["model"]


@pytest.fixture(scope="module")
def network(path):
    return weights.load("dlib", path)


@pytest.fixture(scope="module")
def pinned():
    with np.load(FIXTURE) as stored:
        return stored["chips"], stored["descriptors"]


def as_input(chips):
    return prepare(torch.from_numpy(np.ascontiguousarray(chips)).permute(0, 3, 1, 2))


@torch.inference_mode()
def worst(describe, pinned):
    return float(np.abs(describe(as_input(pinned[0])).numpy() - pinned[1]).max())


def test_pinned_descriptors_of_dlib(network, pinned):
    assert worst(network, pinned) <= 1e-5
    assert worst(FoldedDlibResnet(network), pinned) <= 1e-5
    assert worst(FoldedDlibResnet(network, onednn=False), pinned) <= 1e-5


def test_parity_with_dlib(network, path):
    dlib = pytest.importorskip("dlib", reason="live parity needs dlib: pip install dlib-bin")
    generator = np.random.default_rng(0)
    with np.load(FIXTURE) as stored:
        photos = stored["chips"][:2]
    chips = [photos[0], photos[1], photos[1][:, ::-1], 255 - photos[0], photos[0][::-1], np.zeros_like(photos[0])]
    chips.append(generator.integers(0, 256, (150, 150, 3), dtype=np.uint8))
    chips = np.stack(chips)
    model = dlib.face_recognition_model_v1(str(path))
    wanted = np.array([np.array(model.compute_face_descriptor(np.ascontiguousarray(chip))) for chip in chips])
    assert worst(network, (chips, wanted)) <= 1e-5
    assert worst(FoldedDlibResnet(network), (chips, wanted)) <= 1e-5


@torch.inference_mode()
def test_red_is_the_first_channel(network, pinned):
    chips, descriptors = pinned
    assert (chips[2] == (255, 0, 0)).all()
    blue = network(as_input(chips[2:, :, :, ::-1])).numpy()
    assert np.abs(blue - descriptors[2:]).max() > 0.05


def before(x, channels, height, width):
    return F.pad(x, (width - x.shape[3], 0, height - x.shape[2], 0, 0, channels - x.shape[1]))


def channels_first(x, channels, height, width):
    return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2], channels - x.shape[1], 0))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("padded", before),
        ("padded", channels_first),
        ("prepare", lambda x: (x.float() - 127.5) / 256),
        ("prepare", lambda x: prepare(x, DlibResnetConfig(mean=(104.298, 117.001, 122.782)))),
    ],
)
def test_planted_faults_are_seen(network, pinned, monkeypatch, name, fault):
    monkeypatch.setattr(dlib_resnet, name, fault)
    with torch.inference_mode():
        found = network(dlib_resnet.prepare(torch.from_numpy(pinned[0]).permute(0, 3, 1, 2))).numpy()
    assert np.abs(found - pinned[1]).max() > 1e-4


def test_max_pool_shortcut_would_be_seen(network, pinned, monkeypatch):
    monkeypatch.setattr(dlib_resnet.F, "avg_pool2d", F.max_pool2d)
    assert worst(network, pinned) > 1e-3


@torch.inference_mode()
def test_folded_equals_readable_with_random_affine():
    torch.manual_seed(0)
    network = DlibResnet(DlibResnetConfig())
    for module in network.modules():
        if isinstance(module, dlib_resnet.Affine):
            module.weight.uniform_(0.5, 1.8)
            module.bias.uniform_(-0.5, 0.5)
    x = torch.rand(3, 3, 150, 150) - 0.5
    wanted = network(x)
    assert wanted.abs().max() > 0.1
    for onednn in (None, False):
        folded = FoldedDlibResnet(network, onednn)
        torch.testing.assert_close(folded(x), wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(folded(x[1:2]), wanted[1:2], rtol=1e-5, atol=1e-5)
        assert folded(x[:0]).shape == (0, 128)


def test_padded_sum_by_hand():
    small = torch.tensor([[[[1.0, 2.0]]]])  # 1 channel, 1 x 2
    large = torch.full((1, 2, 2, 1), 10.0)  # 2 channels, 2 x 1
    total = padded_sum(small, large)
    assert total.tolist() == [[[[11.0, 2.0], [10.0, 0.0]], [[10.0, 0.0], [10.0, 0.0]]]]


@torch.inference_mode()
def test_sides_and_layers():
    with torch.device("meta"):
        network = DlibResnet(DlibResnetConfig())
        x = torch.empty(2, 3, 150, 150)
    sides = []
    x = F.max_pool2d(network.conv(x), 3, 2)
    for block in network.blocks:
        x = block(x)
        sides.append(x.shape[2])
    assert sides == [35] * 3 + [17] * 4 + [8] * 3 + [4] * 3 + [2]
    assert sum(isinstance(module, torch.nn.Conv2d) for module in network.modules()) == 29
    assert sum(isinstance(module, dlib_resnet.Affine) for module in network.modules()) == 29


@torch.inference_mode()
def test_a_descriptor_is_not_of_unit_length(network, pinned):
    lengths = network(as_input(pinned[0])).norm(dim=1)
    assert lengths.min() > 1.1 and lengths.max() < 1.6
