"""InceptionResnetV1: parity with facenet-pytorch from one state dict, and the folded form held to the readable one."""

import pytest
import torch
from torch import nn

from pipelines.face import weights
from pipelines.face.config import PRESETS, InceptionResnetConfig
from pipelines.face.inception_resnet import FoldedInceptionResnetV1, InceptionResnetV1, prepare

CLASSES = 7


def lively(network, images, seed=0):
    """Random statistics under which activations keep their size: with torch's initial weights every picture would
    get the same embedding, and a comparison would see nothing of the network."""
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in network.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for norm in norms:
        norm.momentum = 1.0
        norm.weight.data.uniform_(0.6, 1.4, generator=generator)
        norm.bias.data.uniform_(-0.3, 0.3, generator=generator)
    with torch.no_grad():
        network.train()(images)
    for norm in norms:
        norm.running_mean += 0.1 * torch.randn(norm.running_mean.shape, generator=generator)
        norm.running_var *= 0.7 + 0.6 * torch.rand(norm.running_var.shape, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def images():
    # Pictures with structure at several scales: pure noise looks alike to a network.
    generator = torch.Generator().manual_seed(1)
    coarse = [torch.rand(4, 3, side, side, generator=generator) for side in (4, 20, 160)]
    mixed = sum(nn.functional.interpolate(part, size=160, mode="bilinear") for part in coarse)
    return prepare((mixed / 3 * 255).to(torch.uint8))


@pytest.fixture(scope="module")
def reference(images):
    facenet_pytorch = pytest.importorskip("facenet_pytorch", reason="parity needs facenet-pytorch")
    torch.manual_seed(0)
    return lively(facenet_pytorch.InceptionResnetV1(classify=True, num_classes=CLASSES), images)


def loaded(reference):
    with torch.device("meta"):
        network = InceptionResnetV1(InceptionResnetConfig(classes=CLASSES))
    state = {key: value.clone() for key, value in reference.state_dict().items()}
    weights.assign(network, state, weights.facenet_keys(network.config))
    return network.eval()


@pytest.fixture(scope="module")
def ours(reference):
    return loaded(reference)


def embeddings(reference, images):
    reference.classify = False
    try:
        return reference(images)
    finally:
        reference.classify = True


@torch.inference_mode()
def test_parity_with_facenet_pytorch(reference, ours, images):
    wanted = embeddings(reference, images)
    assert (wanted @ wanted.T - torch.eye(4)).max() < 0.98, "the pictures must differ for the comparison to mean much"
    assert (ours(images) - wanted).abs().max() <= 1e-5
    torch.testing.assert_close(ours.class_logits(images), reference(images), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("onednn", [None, False])
def test_folded_equals_readable(ours, images, onednn):
    folded = FoldedInceptionResnetV1(ours, onednn)
    wanted = ours(images)
    assert (folded(images) - wanted).abs().max() <= 1e-5
    # A second call uses the packed weights, another batch size those packed for the first.
    assert (folded(images[:1]) - wanted[:1]).abs().max() <= 1e-5
    assert folded(images[:0]).shape == (0, 512)


@torch.inference_mode()
@pytest.mark.parametrize(
    "plant",
    [
        lambda net: setattr(net.repeat_1[4], "scale", 0.2),
        lambda net: setattr(net.repeat_2[9], "scale", 0.17),
        lambda net: setattr(net.repeat_3[0], "scale", 0.17),
        lambda net: setattr(net.block8, "relu", True),
        lambda net: setattr(net.conv2d_4b.bn, "eps", 0.1),
        lambda net: setattr(net.repeat_1[2], "branches", ("branch1", "branch0", "branch2")),
        lambda net: setattr(net, "repeat_3", net.repeat_3[:4]),
    ],
)
def test_planted_faults_are_seen(reference, images, plant):
    network = loaded(reference)
    plant(network)
    assert (network(images[:2]) - embeddings(reference, images[:2])).abs().max() > 1e-4


@torch.inference_mode()
def test_batch_equals_single_and_length_is_one(ours, images):
    folded = FoldedInceptionResnetV1(ours)
    together = folded(images)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4), rtol=0, atol=1e-5)
    for i in range(4):
        assert (folded(images[i : i + 1]) - together[i]).abs().max() <= 1e-5


@torch.inference_mode()
def test_the_input_is_left_alone_and_the_folded_form_is_a_copy(ours, images):
    before, folded = images.clone(), FoldedInceptionResnetV1(ours)
    wanted = folded(images)
    assert torch.equal(images, before)
    weight = ours.conv2d_1a.conv.weight
    kept = weight.clone()
    weight.mul_(0)
    try:
        assert torch.equal(folded(images), wanted)
    finally:
        weight.copy_(kept)


def test_constructor_runs_on_meta_and_presets_differ_in_the_head_and_depth():
    with torch.device("meta"):
        networks = {name: InceptionResnetV1(PRESETS[name]) for name in ("vggface2", "casia-webface", "tiny")}
    count = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    assert networks["vggface2"].logits.out_features == 8631
    assert count["casia-webface"] - count["vggface2"] == (10575 - 8631) * 513
    assert len(networks["tiny"].repeat_2) == 1 and count["tiny"] < count["vggface2"]
    assert not hasattr(InceptionResnetV1(InceptionResnetConfig(blocks=(0, 0, 0))), "logits")


def test_prepare_is_facenets_standardisation():
    pixels = torch.tensor([0, 127, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    torch.testing.assert_close(prepare(pixels).flatten(), torch.tensor([-0.99609375, -0.00390625, 0.99609375]))
