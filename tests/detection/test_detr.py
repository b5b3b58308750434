"""DETR held to its authors' numbers, fast to plain, batch to single, ablations to surgery."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from pipelines.detection import position, weights
from pipelines.detection.config import PRESETS, DetrConfig, ResNetConfig
from pipelines.detection.contract import Ablation
from pipelines.detection.detr import NEVER, Detr
from pipelines.detection.output import Record
from tests.detection.lively import enliven, padded, pictures

FIXTURE = Path(__file__).parent / "fixtures" / "detr_authors_tiny.safetensors"
CONFIG = DetrConfig(ResNetConfig((1, 1, 1, 1), (16, 24, 32, 48), 8), 32, 4, 2, 3, 48, 7, 5)


class Given(nn.Module):
    """Stands for a backbone and answers with features that were computed before."""

    def __init__(self, features):
        super().__init__()
        self.features = features  # no buffer: a state dict does not hold it

    def forward(self, pixels):
        return [self.features]


class Tiles(nn.Module):
    """A backbone whose cells see 32 x 32 pixels each and nothing beyond, so that padding cannot leak into a picture."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 32, 32)

    def forward(self, pixels):
        return [self.conv(pixels)]


# --- the authors' numbers --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authors():
    """Their transformer with its inputs and outputs (fixtures/README.md says how the file was made)."""
    tensors = load_file(FIXTURE)
    with safe_open(FIXTURE, "pt") as file:
        tensors["sizes"] = json.loads(file.metadata()["sizes"])
    return tensors


def theirs(authors):
    config = DetrConfig(ResNetConfig((1, 1, 1, 1), (4, 4, 4, 512), 1), 32, 4, 2, 2, 48, 5, 6)
    network = Detr(config)
    network.backbone = Given(authors["features"])
    state = {key.removeprefix("state."): value.float() for key, value in authors.items() if key.startswith("state.")}
    network.load_state_dict(weights.authors_keys().apply(state, network.state_dict()), strict=True)
    return network.eval()


def differences(network, authors):
    pixels, padding = padded([torch.zeros(3, *size) for size in authors["sizes"]])
    output = network(pixels, padding)
    pairs = ((output.logits[1], "logits"), (output.boxes[1], "boxes"))
    pairs += ((output.logits[0], "aux0_logits"), (output.boxes[0], "aux0_boxes"))
    return [float((found - authors[name]).abs().max()) for found, name in pairs]


@torch.inference_mode()
def test_the_authors_numbers(authors):
    spread = authors["logits"].amax(1) - authors["logits"].amin(1)
    assert spread.min() > 1e-3, "the queries must answer differently for the comparison to mean much"
    assert max(differences(theirs(authors), authors)) <= 1e-5


@torch.inference_mode()
@pytest.mark.parametrize(
    "plant",
    [
        lambda net, patch: patch.setattr(position, "TEMPERATURE", 20.0),
        lambda net, patch: patch.setattr(position, "EPSILON", 0.1),
        lambda net, patch: patch.setattr("pipelines.detection.detr.grid_padding", lambda padding, grid: None),
        lambda net, patch: setattr(net.norm, "eps", 0.01),
        lambda net, patch: setattr(net.decoder[0].norm2, "eps", 0.1),
        lambda net, patch: setattr(net.encoder[1].self_attention, "heads", 2),
        lambda net, patch: setattr(net, "decoder", net.decoder[::-1]),
    ],
)
def test_planted_faults_are_seen(authors, plant, monkeypatch):
    network = theirs(authors)
    plant(network, monkeypatch)
    assert max(differences(network, authors)) > 1e-4


# --- one network, several ways ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return enliven(Detr(CONFIG))


@pytest.fixture(scope="module")
def batch():
    return padded(pictures((96, 130), (128, 70)))


def same(a, b, tolerance=1e-5):
    return float((a.logits - b.logits).abs().max()) <= tolerance and float((a.boxes - b.boxes).abs().max()) <= tolerance


@torch.inference_mode()
def test_recorded_equals_fast_and_the_maps_add_up(network, batch):
    record = Record()
    assert same(network(*batch, record=record), network(*batch))
    assert [tuple(maps.shape) for maps in record.self_attention] == [(2, 4, 7, 7)] * 3
    assert [tuple(maps.shape) for maps in record.cross_attention] == [(2, 4, 7, 4, 5)] * 3
    for maps in record.self_attention + [maps.flatten(3) for maps in record.cross_attention]:
        torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]), rtol=0, atol=1e-5)
    # The first picture ends after 96 of 128 rows, the second after 70 of 130 columns.
    assert all(maps[0, :, :, 3:].max() == 0 and maps[1, :, :, :, 3:].max() == 0 for maps in record.cross_attention)
    assert all(maps[0, :, :, :3].min() > 0 for maps in record.cross_attention)
    assert all(maps.std(-1).max() > 0.01 for maps in record.self_attention)


@torch.inference_mode()
def test_pictures_of_other_sizes_beside_it_change_nothing():
    torch.manual_seed(3)
    network = enliven(Detr(CONFIG))
    network.backbone = Tiles(48)
    images = pictures((64, 160), (128, 96), (32, 32))
    together = network(*padded(images))
    for i, image in enumerate(images):
        alone = network(image[None])
        # Other shapes are summed in another order, and how far apart that ends differs between processors.
        assert (together.logits[:, i] - alone.logits[:, 0]).abs().max() <= 5e-5
        assert (together.boxes[:, i] - alone.boxes[:, 0]).abs().max() <= 5e-5
    unmasked = network(padded(images)[0])
    assert (together.logits - unmasked.logits).abs().max() > 1e-3, "without the padding it must differ"


@torch.inference_mode()
def test_all_layers_answer_under_the_same_norm(network, batch):
    output = network(*batch)
    assert output.logits.shape == (3, 2, 7, 6) and output.boxes.shape == (3, 2, 7, 4)
    short = Detr(replace(CONFIG, decoder_layers=2))
    short.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("decoder.2.")})
    first = short.eval()(*batch)
    assert (first.logits - output.logits[:2]).abs().max() <= 1e-6
    assert (first.boxes - output.boxes[:2]).abs().max() <= 1e-6
    assert (output.logits[1] - output.logits[2]).abs().max() > 0.01
    assert output.boxes.min() > 0 and output.boxes.max() < 1 and output.masks is None


def test_positions_by_hand():
    # One row of two cells and width 4: the row's sine and cosine, then the column's; both frequencies of a half.
    found = position.sine_positions(None, (1, 2), 8, torch.device("cpu"))
    assert found.shape == (1, 2, 8)
    # The row is the last of one: 2 pi; the columns are at pi and 2 pi. The second pair's wavelength is 100.
    wanted = [[0, 1, 0.0628, 0.9980, 0, -1, 0.0314, 0.9995], [0, 1, 0.0628, 0.9980, 0, 1, 0.0628, 0.9980]]
    torch.testing.assert_close(found[0], torch.tensor(wanted), rtol=0, atol=1e-4)
    padding = torch.tensor([[[False, False, True]]])
    assert torch.equal(position.sine_positions(padding, (1, 3), 8, torch.device("cpu"))[:, :2], found)


def test_the_grid_takes_the_nearest_pixels_padding():
    padding = torch.zeros(1, 4, 6, dtype=torch.bool)
    padding[:, :, 4:] = True
    assert position.grid_padding(padding, (2, 3)).tolist() == [[[False, False, True]] * 2]
    assert position.grid_padding(None, (2, 3)) is None


def test_sizes_on_meta():
    with torch.device("meta"):
        count = {
            name: sum(p.numel() for p in Detr(PRESETS[name]).parameters())
            for name in ("detr-resnet-50", "detr-resnet-101", "detr-resnet-50-dc5", "detr-resnet-50-panoptic")
        }
    # The authors' training log counts 41,302,368 for R50: without the stem and first stage, which they freeze.
    assert count["detr-resnet-50"] == 41_302_368 + 9_408 + 212_992
    assert count["detr-resnet-50-dc5"] == count["detr-resnet-50"]
    assert count["detr-resnet-101"] - count["detr-resnet-50"] == 42_394_816 - 23_454_912
    assert 0 < count["detr-resnet-50-panoptic"] - count["detr-resnet-50"] - 159 * 257 < 2_000_000


# --- ablations: each equals a network that was cut by hand -----------------------------------------------------------


def cut(network, operate):
    """A copy of the network after `operate`."""
    copied = copy.deepcopy(network)
    with torch.no_grad():
        operate(copied)
    return copied


@torch.inference_mode()
def test_a_dropped_query_is_as_if_it_had_never_been(network, batch):
    output = network(*batch, ablation=Ablation(queries=frozenset({1, 5})))
    kept = [0, 2, 3, 4, 6]

    def remove(net):
        net.queries.weight = nn.Parameter(net.queries.weight[kept])
        net.config = replace(net.config, queries=5)

    smaller = cut(network, remove)(*batch)
    assert (output.logits[:, :, kept] - smaller.logits).abs().max() <= 1e-5
    assert (output.boxes[:, :, kept] - smaller.boxes).abs().max() <= 1e-5
    assert (network(*batch).logits[:, :, kept] - smaller.logits).abs().max() > 1e-4
    probability = output.logits[:, :, [1, 5]].softmax(-1)
    assert (probability[..., -1] == 1).all() and (probability[..., :-1] == 0).all()


@torch.inference_mode()
@pytest.mark.parametrize("others", [{}, {"self_attention": False}, {"encoder": False, "positions": False}])
def test_dropping_all_queries_leaves_numbers(network, batch, others):
    record = Record()
    output = network(*batch, ablation=Ablation(queries=frozenset(range(7)), **others), record=record)
    assert torch.isfinite(output.logits).all() and torch.isfinite(output.boxes).all()
    assert (output.logits.argmax(-1) == 5).all()
    assert len(record.cross_attention) == 3 and len(record.self_attention) == (0 if "self_attention" in others else 3)


def zero_head(net):
    # Head 2 of 4 has channels 16 to 24 of 32.
    net.decoder[1].cross_attention.value.weight[16:24] = 0
    net.decoder[1].cross_attention.value.bias[16:24] = 0


def no_self_attention(net):
    for layer in net.decoder:
        layer.self_attention.out.weight.zero_(), layer.self_attention.out.bias.zero_()


@torch.inference_mode()
@pytest.mark.parametrize(
    ("ablation", "operate"),
    [
        (Ablation(heads=frozenset({(1, 2)})), zero_head),
        (Ablation(self_attention=False), no_self_attention),
        (Ablation(encoder=False), lambda net: setattr(net, "encoder", nn.ModuleList())),
    ],
)
def test_an_ablation_equals_surgery(network, batch, ablation, operate):
    found, plain = network(*batch, ablation=ablation), network(*batch)
    assert same(found, cut(network, operate)(*batch))
    assert not same(found, plain, 1e-3)
    record = Record()
    assert same(network(*batch, ablation=ablation, record=record), found)
    assert len(record.cross_attention) == 3 and len(record.self_attention) == (3 if ablation.self_attention else 0)


@torch.inference_mode()
def test_without_positions_a_mirrored_picture_is_the_same_picture(network):
    features = torch.randn(1, 48, 3, 5, generator=torch.Generator().manual_seed(0))
    straight, mirrored = copy.deepcopy(network), copy.deepcopy(network)
    straight.backbone, mirrored.backbone = Given(features), Given(features.flip(-1))
    pixels, blind = torch.zeros(1, 3, 96, 160), Ablation(positions=False)
    assert same(straight(pixels, ablation=blind), mirrored(pixels, ablation=blind))
    assert not same(straight(pixels), mirrored(pixels), 1e-3)


@torch.inference_mode()
def test_masks_of_dropped_queries_are_empty_and_masks_may_be_skipped(batch):
    torch.manual_seed(0)
    network = enliven(Detr(replace(CONFIG, panoptic=True)))
    output = network(*batch, ablation=Ablation(queries=frozenset({3})))
    assert output.masks.shape == (2, 7, 32, 33)
    assert (output.masks[:, 3] == NEVER).all() and output.masks[:, :3].min() > NEVER
    assert network(*batch, masks=False).masks is None
