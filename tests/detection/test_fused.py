"""The fast forms held to the readable ones: fused, in 16 bits and in 8."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipelines.common.device import BYTE_PRODUCTS, processor_flags
from pipelines.common.errors import UserError
from pipelines.common.fused import FusedConv, PackedLinear, onednn_products
from pipelines.detection import forms, local, quantised, weights
from pipelines.detection.config import PRESETS, DetrConfig, InputSize, MobileNetV2Config, ResNetConfig
from pipelines.detection.contract import Ablation
from pipelines.detection.fused import FusedBackbone, cast, fuse, with_backbone
from pipelines.detection.mobilenet import MobileNetV2
from pipelines.detection.output import Record
from pipelines.detection.quantised import Bytes, Grid, QuantisedConv
from tests.detection.lively import enliven, padded, pictures

RESNET = ResNetConfig((1, 2, 1, 2), (16, 24, 32, 48), 8)
BACKBONES = {
    "bottleneck": RESNET,
    "basic": replace(RESNET, bottleneck=False),
    "basic, same width": ResNetConfig((2, 1, 1, 1), (16, 24, 32, 48), 16, bottleneck=False),
    "dilated": replace(RESNET, dilation=True),
}
needs_bytes = pytest.mark.skipif(not quantised.usable(), reason="no whole-number convolutions here")
# Without these instructions bytes are less exact, and `device.pick` stays in float32.
needs_native_bytes = pytest.mark.skipif(
    not (quantised.usable() and processor_flags() & BYTE_PRODUCTS),
    reason="no native products of bytes on this processor",
)


def detr(backbone=RESNET, **options):
    torch.manual_seed(0)
    return enliven(weights.build(DetrConfig(backbone, 32, 4, 2, 3, 48, 7, 5, **options)))


def deformable():
    torch.manual_seed(0)
    return enliven(weights.build(PRESETS["tiny-deformable"]))


@pytest.fixture(scope="module")
def batch():
    return padded(pictures((96, 130), (128, 70)))


def differences(a, b):
    """Largest of logits, of boxes, and of masks."""
    pairs = [(a.logits, b.logits), (a.boxes, b.boxes)] + ([] if a.masks is None else [(a.masks, b.masks)])
    return [float((x.float() - y).abs().max()) for x, y in pairs]


FORMS = [None, False, *([True] if onednn_products(torch.float32) else [])]

# --- fused -----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize("onednn", FORMS)
@pytest.mark.parametrize("name", BACKBONES)
def test_a_fused_detr_equals_the_readable_one(name, onednn, batch):
    network = detr(BACKBONES[name], panoptic=True)
    fast = fuse(network, onednn)
    for padding in (batch[1], None):
        wanted = network(batch[0], padding)
        assert wanted.logits.std() > 0.3 and wanted.masks.std() > 0.01
        assert max(differences(fast(batch[0], padding), wanted)) <= 1e-4
    # Another size, for which the weights are packed again, and the first one again. Logits reach 4 here, and an AMD
    # processor's sums end 1.0001e-4 apart where a Xeon's do not.
    other = torch.stack(pictures((65, 97)))
    assert max(differences(fast(other), network(other))) <= 3e-4
    assert max(differences(fast(batch[0], None), wanted)) <= 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("onednn", FORMS)
def test_a_fused_deformable_detr_equals_the_readable_one(onednn, batch):
    network = deformable()
    fast = fuse(network, onednn)
    assert fast.backbone.levels == (2, 3)
    for padding in (batch[1], None):
        wanted = network(batch[0], padding)
        assert wanted.logits.std() > 1
        assert (
            max(differences(fast(batch[0], padding), wanted)) <= 5e-4
        )  # it looks where it looked last: roundings grow


@torch.inference_mode()
def test_ablations_and_records_work_on_the_fast_form(batch):
    network, ablation = detr(), Ablation(queries=frozenset({1}), heads=frozenset({(1, 2)}), positions=False)
    fast, records = fuse(network), (Record(), Record())
    found, wanted = fast(*batch, ablation, records[0]), network(*batch, ablation, records[1])
    assert max(differences(found, wanted)) <= 1e-4
    for a, b in zip(records[0].cross_attention, records[1].cross_attention, strict=True):
        assert (a - b).abs().max() <= 1e-5


@torch.inference_mode()
def test_the_picture_and_the_readable_network_are_left_alone(batch):
    network = detr()
    wanted, before = network(*batch), batch[0].clone()
    fast = fuse(network)
    fast(*batch)
    assert torch.equal(batch[0], before)
    assert torch.equal(network(*batch).logits, wanted.logits)
    assert fast.projection is network.projection, "all but the backbone is shared"
    assert len(fast.backbone(batch[0])) == 1, "without a mask head only the last map is wanted"
    if onednn_products(torch.float32):
        packed = fuse(network, onednn=True)
        assert (
            isinstance(packed.encoder[0].linear1, PackedLinear) and type(network.encoder[0].linear1) is torch.nn.Linear
        )
        assert packed.encoder[0].norm1 is network.encoder[0].norm1, "but for the packed maps, too"


@torch.inference_mode()
@pytest.mark.parametrize(
    "plant",
    [
        lambda net: setattr(net.layer2[1].bn2, "eps", 0.3),
        lambda net: setattr(net.layer2[0].conv2, "dilation", (2, 2)) or setattr(net.layer2[0].conv2, "padding", (2, 2)),
        lambda net: net.layer3[0].downsample[1].bias.add_(0.3),
        lambda net: setattr(net.layer4[1], "downsample", net.layer4[0].downsample),
        lambda net: setattr(net, "layer4", net.layer4[:1]),
    ],
)
def test_planted_faults_are_seen(plant, batch):
    network = detr()
    other = copy.deepcopy(network)
    try:
        plant(other.backbone)
        found = fuse(other)(*batch)
    except RuntimeError:  # shapes that do not fit are a way to be seen
        return
    assert differences(found, network(*batch))[0] > 1e-3


def test_a_map_that_is_returned_is_never_overwritten():
    stages = ((1, 8, 1, 2), (2, 8, 1, 1))  # the second stage would add into what the first returns
    with pytest.raises(ValueError, match="overwrite"):
        FusedBackbone(MobileNetV2(MobileNetV2Config(8, stages, (0, 1))))


# --- 16 bits ---------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_in_16_bits_the_heads_stay_in_float32(batch):
    network = detr(panoptic=True)
    fast = fuse(network)
    short = cast(fast, torch.bfloat16)
    assert short.projection.weight.dtype == torch.bfloat16 and short.backbone.stem.weight.dtype == torch.bfloat16
    assert fast.projection.weight.dtype == torch.float32, "a copy"
    for padding in (batch[1], None):
        wanted, found = network(batch[0], padding), short(batch[0].bfloat16(), padding)
        assert found.logits.dtype == found.boxes.dtype == torch.float32
        logits, boxes, _ = differences(found, wanted)
        assert 1e-3 < logits <= 0.3 and boxes <= 0.1  # sums are rounded otherwise where bfloat16 is emulated
        assert wanted.logits.std() > 1


# --- 8 bits ----------------------------------------------------------------------------------------------------------


def test_bytes_by_hand():
    g = quantised.grid(-1.0, 4.1)
    assert g.zero == 50 and g.scale == pytest.approx(0.02)
    x = torch.tensor([-1.0, 0.0, 0.011, 4.1, 9.0, -9.0])
    assert quantised.to_bytes(x, g).tolist() == [0, 50, 51, 255, 255, 0]
    assert quantised.to_numbers(torch.tensor([0, 50, 52], dtype=torch.uint8), g).tolist() == pytest.approx(
        [-1, 0, 0.04]
    )
    assert quantised.grid(1.0, 5.1).zero == 0 and quantised.grid(0.0, 0.0).zero == 0


def test_a_few_large_numbers_may_be_cut_off():
    numbers = torch.cat([torch.linspace(0, 1, 190_000), torch.tensor([1.25])])
    assert quantised.best_grid(numbers).scale == pytest.approx(1.0 / 255, rel=0.01)
    assert quantised.best_grid(torch.linspace(-1, 1, 1000)) == quantised.grid(-1, 1)


@needs_bytes
@torch.inference_mode()
def test_a_convolution_of_bytes_by_hand():
    step = FusedConv(torch.tensor([1.27, -0.635]).view(2, 1, 1, 1), torch.tensor([0.5, 10.0]), onednn=False)
    byte = QuantisedConv(step, Grid(0.1, 0), torch.zeros(1))
    x = Bytes(torch.tensor([[[[0, 4, 40]]]], dtype=torch.uint8), Grid(0.5, 2))  # -1, 1, 19
    # 1.27 x + 0.5 and 10 - 0.635 x in tenths, cut off at 0 and at 255.
    assert byte(x).values.tolist() == [[[[0, 18, 246]], [[106, 94, 0]]]]
    other = torch.tensor([[[[3, 3, 3]], [[1, 1, 1]]]], dtype=torch.uint8)  # 2 and 0
    total = byte.add(x, Bytes(other.contiguous(memory_format=torch.channels_last), Grid(1.0, 1)))
    assert total.values.tolist() == [[[[12, 38, 255]], [[106, 94, 0]]]] and total.grid == Grid(0.1, 0)


@needs_bytes
@torch.inference_mode()
def test_the_bias_takes_back_what_rounded_weights_add():
    weight = torch.tensor([1.27, 0.004]).view(1, 2, 1, 1)  # in steps of 0.01 the second becomes 0
    step = FusedConv(weight, torch.zeros(1), onednn=False)
    x = Bytes(torch.full((1, 2, 1, 1), 100, dtype=torch.uint8), Grid(1.0, 0))
    grid = Grid(0.1, 0)
    assert QuantisedConv(FusedConv(weight[:, :1], torch.zeros(1), onednn=False), grid, torch.zeros(1)).bias.item() == 0
    step.bias.fill_(-127.0)
    assert QuantisedConv(step, grid, torch.zeros(2))(x).values.item() == 0
    assert QuantisedConv(step, grid, torch.tensor([0.0, 100.0]))(x).values.item() == 4  # 0.004 * 100


@torch.inference_mode()
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 8), (8, 7), (12, 12)])
def test_the_max_pool_of_bytes(size):
    x = torch.randint(0, 256, (2, 16, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    found = quantised.QuantisedBackbone.pool(None, Bytes(x, Grid(1.0, 0))).values
    assert torch.equal(found.float(), F.max_pool2d(x.float(), 3, 2, 1))
    assert found.is_contiguous(memory_format=torch.channels_last)


def relative(found, wanted):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True))


@needs_native_bytes
@torch.inference_mode()
@pytest.mark.parametrize("name", [*BACKBONES, "mobilenet"])
def test_a_backbone_of_bytes_is_close(name, batch):
    network = deformable() if name == "mobilenet" else detr(BACKBONES[name], panoptic=True)
    fast = FusedBackbone(network.backbone)
    scaling = [picture[None] for picture in pictures((96, 130), (80, 100), (128, 70), seed=5)]
    small = quantised.quantise(fast, scaling)
    seen = batch[0].clamp(-2.1, 2.2)  # no pixel of a picture lies beyond
    wanted = fast(seen)
    error = relative(small(seen), wanted)
    assert 0.002 < error <= 0.2
    found, plain = with_backbone(network, small)(seen, batch[1]), network(seen, batch[1])
    assert (found.logits - plain.logits).abs().mean() <= (0.4 if name == "mobilenet" else 0.1) * plain.logits.std()
    assert relative(fast(seen), wanted) == 0, "the form that it was made from still answers as before"

    def swap(step):  # a planted fault: a layer whose bytes begin below zero, so that its ReLU is gone
        if step is small.stages[1][0].first[0]:
            step = copy.copy(step)
            step.output = step.output._replace(scale=step.output.scale * 2, zero=step.output.zero + 40)
        return step

    small.rebuild(swap)
    assert relative(small(seen), wanted) > 1.5 * error


@needs_bytes
@torch.inference_mode()
def test_corrected_biases_make_the_maps_better(batch, monkeypatch):
    fast = FusedBackbone(deformable().backbone)
    scaling, seen = [batch[0][:1].clamp(-2.1, 2.2)], batch[0][1:].clamp(-2.1, 2.2)
    wanted = fast(seen)
    corrected = relative(quantised.quantise(fast, scaling)(seen), wanted)
    real = quantised.QuantisedConv.__init__
    monkeypatch.setattr(
        quantised.QuantisedConv, "__init__", lambda self, step, grid, means: real(self, step, grid, 0 * means)
    )
    assert relative(quantised.quantise(fast, scaling)(seen), wanted) > corrected


# --- which form ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("int8", marks=needs_bytes)])
def test_the_backend_answers_in_what_was_chosen(dtype, monkeypatch):
    chosen = replace(forms.pick(), dtype=dtype)
    monkeypatch.setattr(
        forms, "pick", lambda reduced=False, integers=False: chosen if reduced else forms.Device("cpu", "float32", "")
    )
    photo = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    monkeypatch.setattr(forms, "examples", lambda: [photo])
    network = detr()
    backend = local.LocalDetector(network, network.config)
    plain = backend.predict([photo], InputSize(96, 160))[0]
    found = backend.predict([photo], InputSize(96, 160), precision="reduced")[0]
    difference = np.abs(found.logits - plain.logits).max()
    assert found.logits.dtype == np.float32 and difference <= 1
    assert (difference == 0) == (dtype == "float32")
    assert backend.network("reduced") is backend.network("reduced"), "made once"
    assert np.array_equal(backend.predict([photo], InputSize(96, 160))[0].logits, plain.logits)


def test_deformable_detr_stays_in_float32_and_bytes_need_their_operators(monkeypatch):
    asked = []
    monkeypatch.setattr(forms, "pick", lambda **options: asked.append(options) or "device")
    monkeypatch.setattr(quantised, "usable", lambda: False)
    assert forms.device("reduced", PRESETS["voc"]) == forms.device("float32", PRESETS["tiny"]) == "device"
    assert asked == [{}, {}]
    forms.device("reduced", PRESETS["tiny"])
    assert asked[2] == {"reduced": True, "integers": False}


def test_without_the_operators_bytes_are_not_usable(monkeypatch):
    monkeypatch.setattr(torch.ops, "onednn", object())
    quantised.usable.cache_clear()
    assert not quantised.usable()
    quantised.usable.cache_clear()


def test_missing_example_photos_are_said(monkeypatch, tmp_path):
    monkeypatch.setattr(forms.catalogue, "ROOT", tmp_path)
    with pytest.raises(UserError, match="choose float32"):
        forms.reduced(fuse(detr()), "int8")
