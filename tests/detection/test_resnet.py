"""The backbone held to torchvision's, and its folded form to the readable one."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from pipelines.detection.config import PRESETS, ResNetConfig
from pipelines.detection.fused import FusedBackbone
from pipelines.detection.norm import FrozenBatchNorm2d
from pipelines.detection.resnet import ResNet
from tests.detection.lively import enliven, pictures

BASIC = ResNetConfig(depths=(1, 1, 1, 2), widths=(64, 128, 256, 512), bottleneck=False)
DEEP = ResNetConfig(depths=(1, 2, 1, 1))
DILATED = ResNetConfig(depths=(1, 1, 1, 3), dilation=True)


def torchvisions(config):
    torch.manual_seed(0)
    network = torchvision.models.ResNet(
        Bottleneck if config.bottleneck else BasicBlock,
        list(config.depths),
        replace_stride_with_dilation=[False, False, config.dilation],
        norm_layer=torchvision.ops.FrozenBatchNorm2d,
    )
    return enliven(network)


def features(theirs, x):
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    found = []
    for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        x = stage(x)
        found.append(x)
    return found


def ours(theirs, config):
    network = ResNet(config)
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    network.load_state_dict(state, strict=True)
    return network.eval()


def largest(a, b):
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module", params=[BASIC, DEEP, DILATED], ids=["basic", "bottleneck", "dilated"])
def pair(request):
    theirs = torchvisions(request.param)
    return theirs, ours(theirs, request.param)


@torch.inference_mode()
def test_equals_torchvisions_and_folded_equals_readable(pair):
    theirs, network = pair
    x = torch.stack(pictures((65, 97), (65, 97)))
    wanted, found = features(theirs, x), network(x)
    last = (5, 7) if network.config.dilation else (3, 4)
    assert [tuple(f.shape[2:]) for f in found] == [(17, 25), (9, 13), (5, 7), last]
    assert min(float(f.std()) for f in wanted) > 0.1, "the features must say something for the comparison to mean much"
    assert largest(found, wanted) <= 1e-5
    assert largest(FusedBackbone(network)(x), wanted) <= 1e-5
    # A copy: the readable form still has its norms and answers as before.
    assert isinstance(network.bn1, FrozenBatchNorm2d) and network.conv1.bias is None
    assert largest(network(x), wanted) <= 1e-5


def swap_statistics(network):
    norm = network.layer2[0].bn2
    norm.running_mean, norm.bias = norm.bias, norm.running_mean


@torch.inference_mode()
@pytest.mark.parametrize(
    "plant",
    [
        swap_statistics,
        lambda net: setattr(net.layer4[0].conv2, "dilation", (2, 2)) or setattr(net.layer4[0].conv2, "padding", (2, 2)),
        lambda net: setattr(net.layer4[1].conv2, "dilation", (1, 1)) or setattr(net.layer4[1].conv2, "padding", (1, 1)),
        lambda net: setattr(net.layer3[0].downsample[1], "eps", 0.1),
        lambda net: setattr(net.layer1[0], "downsample", nn.Sequential(net.layer1[0].downsample[0])),
    ],
)
def test_planted_faults_are_seen(plant):
    theirs = torchvisions(DILATED)
    network = ours(theirs, DILATED)
    plant(network)
    x = torch.stack(pictures((64, 96)))
    assert largest(network(x), features(theirs, x)) > 1e-3


def test_a_bottleneck_strides_in_its_3x3_convolution():
    block = ResNet(DEEP).layer2[0]
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))


@torch.inference_mode()
def test_frozen_norm_by_hand():
    norm = FrozenBatchNorm2d(1)
    norm.weight.fill_(3.0), norm.bias.fill_(-1.0), norm.running_mean.fill_(2.0), norm.running_var.fill_(4.0)
    assert norm(torch.full((1, 1, 1, 1), 6.0)).item() == pytest.approx(5.0, abs=1e-4)
    assert not list(norm.parameters())


def test_sizes_on_meta():
    with torch.device("meta"):
        networks = {name: ResNet(PRESETS[name].backbone) for name in ("detr-resnet-50", "detr-resnet-101")}
    count = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    # torchvision's counts without the classifier and without the norms, which are buffers here.
    assert count == {"detr-resnet-50": 23_454_912, "detr-resnet-101": 42_394_816}


def test_only_bottlenecks_are_dilated():
    with pytest.raises(ValueError, match="only bottleneck"):
        ResNet(ResNetConfig(depths=(1, 1, 1, 2), widths=(8, 8, 8, 8), bottleneck=False, dilation=True))
