"""Parity with transformers: random models of the library, saved by it, read by our loader, outputs compared in float32.

The saved files have the names of the published ones. Both backbones are covered: the library's own and timm's.
"""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipelines.common import catalogue
from pipelines.detection import weights
from pipelines.detection.config import PRESETS, DeformableDetrConfig, DetrConfig, ResNetConfig
from pipelines.detection.fused import fuse
from tests.detection.lively import enliven, padded, pictures

transformers = pytest.importorskip("transformers", reason="parity needs transformers")

TOLERANCE = 1e-4
SMALL = ResNetConfig((1, 2, 1, 1), (16, 24, 32, 48), 8)
BASIC = ResNetConfig((1, 1, 1, 1), (16, 24, 32, 48), 8, bottleneck=False)
RESNET26 = ResNetConfig((2, 2, 2, 2))
DC5 = ResNetConfig((2, 2, 2, 2), dilation=True)


def tiny(backbone, panoptic=False):
    return DetrConfig(backbone, 32, 8, 2, 2, 48, 7, 5, panoptic)


def timm(name, **options):
    return {
        "model_type": "timm_backbone", "backbone": name, "num_channels": 3, "features_only": True,
        "use_pretrained_backbone": False, "out_indices": [1, 2, 3, 4], **options,
    }  # fmt: skip


def native(config):
    return transformers.ResNetConfig(
        embedding_size=config.stem, hidden_sizes=list(config.widths), depths=list(config.depths),
        layer_type="bottleneck" if config.bottleneck else "basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


def library(config, backbone):
    """The library's model of these sizes, enlivened."""
    sizes = transformers.DetrConfig(
        backbone_config=backbone, d_model=config.width, num_queries=config.queries, num_labels=config.classes,
        encoder_layers=config.encoder_layers, decoder_layers=config.decoder_layers,
        encoder_attention_heads=config.heads, decoder_attention_heads=config.heads,
        encoder_ffn_dim=config.feedforward, decoder_ffn_dim=config.feedforward,
    )  # fmt: skip
    kind = transformers.DetrForSegmentation if config.panoptic else transformers.DetrForObjectDetection
    torch.manual_seed(0)
    model = enliven(kind(sizes))
    if config.panoptic:  # maps with peaks, and a head that listens to them, or a wrong map would not be seen
        with torch.no_grad():
            model.bbox_attention.q_proj.weight *= 6
            model.bbox_attention.q_proj.bias *= 20
            model.mask_head.conv1.conv.weight[:, config.width :] *= 40
    return model


def saved(model, folder):
    model.save_pretrained(folder)
    return folder / "model.safetensors"


@torch.inference_mode()
def compare(model, network, pixels, padding):
    """Largest difference of logits, boxes and masks, the last layer's; the library's say enough to mean something."""
    theirs = model(pixel_values=pixels, pixel_mask=None if padding is None else (~padding).long())
    ours = network(pixels, padding)
    assert (theirs.logits.amax(1) - theirs.logits.amin(1)).amax() > 20 * TOLERANCE, "queries answer alike"
    pairs = [(ours.logits[-1], theirs.logits), (ours.boxes[-1], theirs.pred_boxes)]
    if ours.masks is not None:
        assert theirs.pred_masks.std() > 0.02
        pairs.append((ours.masks, theirs.pred_masks))
    assert all(a.shape == b.shape for a, b in pairs)
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.fixture(scope="module")
def batch():
    return padded(pictures((96, 130), (128, 70)))


CASES = {
    "native": (tiny(SMALL), native(SMALL)),
    "native basic": (tiny(BASIC), native(BASIC)),
    "native panoptic": (tiny(SMALL, panoptic=True), native(SMALL)),
    "timm": (tiny(RESNET26), timm("resnet26")),
    "timm dc5 panoptic": (tiny(DC5, panoptic=True), timm("resnet26", output_stride=16)),
}


@pytest.mark.parametrize("case", CASES)
def test_detr(case, batch, tmp_path):
    config, backbone = CASES[case]
    model = library(config, backbone)
    network = weights.load(config, saved(model, tmp_path))
    assert compare(model, network, *batch) <= TOLERANCE
    assert compare(model, network, batch[0], None) <= TOLERANCE
    assert compare(model, fuse(network), *batch) <= 5 * TOLERANCE  # other kernels, which add in another order


@pytest.mark.parametrize("case", ["native panoptic", "timm"])
def test_the_names_of_the_librarys_modules_load_too(case, batch, tmp_path):
    config, backbone = CASES[case]
    model = library(config, backbone)
    state = model.state_dict()
    assert any(".mlp.fc1." in key for key in state), "the library's modules have other names than its files"
    save_file(state, tmp_path / "modules.safetensors")
    assert compare(model, weights.load(config, tmp_path / "modules.safetensors"), *batch) <= TOLERANCE


def swap(a, b):
    def plant(network):
        a_module, b_module = network.get_submodule(a), network.get_submodule(b)
        state = {key: value.clone() for key, value in a_module.state_dict().items()}
        a_module.load_state_dict(b_module.state_dict())
        b_module.load_state_dict(state)

    return plant


@pytest.mark.parametrize(
    "plant",
    [
        swap("encoder.0.self_attention.query", "encoder.0.self_attention.key"),
        swap("decoder.1.norm1", "decoder.1.norm2"),
        swap("decoder.0.self_attention", "decoder.0.cross_attention"),
        swap("mask_attention.query", "mask_attention.key"),
        lambda net: setattr(net.mask_head.norms[2], "num_groups", 4),
        lambda net: net.mask_attention.query.bias.zero_(),
        lambda net: setattr(net.backbone.layer2[0].conv2, "stride", (1, 1)) or setattr(
            net.backbone.layer2[0].conv1, "stride", (2, 2)
        ),
    ],
)  # fmt: skip
def test_planted_faults_are_seen(plant, batch, tmp_path):
    config, backbone = CASES["native panoptic"]
    model = library(config, backbone)
    network = weights.load(config, saved(model, tmp_path))
    plant(network)
    assert compare(model, network, *batch) > 1e-3


def test_detr_at_its_full_size(tmp_path):
    config = PRESETS["detr-resnet-50"]
    model = library(config, timm("resnet50"))
    path = saved(model, tmp_path)
    with safe_open(path, "pt") as file:
        names = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    listed = json.loads((catalogue.WEIGHTS / "keys" / "detr-resnet-50.json").read_text(encoding="utf-8"))
    assert names == {key: shape for key, shape in listed.items() if not key.endswith("num_batches_tracked")}
    pixels, padding = padded(pictures((256, 320)))
    assert compare(model, weights.load("detr-resnet-50", path), pixels, padding) <= TOLERANCE


# --- Deformable DETR over timm's MobileNetV2 -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deformable(tmp_path_factory):
    config = DeformableDetrConfig(width=32, feedforward=48, decoder_layers=2, queries=7, classes=5)
    sizes = transformers.DeformableDetrConfig(
        # Without the frozen form of timm the library replaces each norm by one that forgets the ReLU6 in it.
        backbone_config=timm("mobilenetv2_100", out_indices=[3, 4], freeze_batch_norm_2d=True),
        d_model=32, num_queries=7, num_labels=5, num_feature_levels=config.levels, with_box_refine=True,
        encoder_layers=config.encoder_layers, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, encoder_n_points=4, decoder_n_points=4,
    )  # fmt: skip
    torch.manual_seed(0)
    model = enliven(transformers.DeformableDetrForObjectDetection(sizes))
    heads = model.model.decoder.bbox_embed
    for head in heads[1:]:  # one for all layers, as ours has it
        head.load_state_dict(heads[0].state_dict())
    return config, model, saved(model, tmp_path_factory.mktemp("deformable"))


def test_deformable_detr(deformable, batch):
    config, model, path = deformable
    network = weights.load(config, path)
    assert compare(model, network, *batch) <= TOLERANCE
    assert compare(model, network, batch[0], None) <= TOLERANCE
    # In float64: where a head looks depends on every digit before it, so rounding grows.
    with torch.inference_mode():
        plain, folded = (net(batch[0].double()) for net in (network.double(), fuse(network.double())))
    assert (plain.logits - folded.logits).abs().max() <= 1e-6
