"""Published layouts load strictly at real size, on meta; wrong and damaged files are refused in a sentence."""

import argparse
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from pipelines.common import catalogue
from pipelines.common.convert import ConversionError
from pipelines.common.errors import UserError
from pipelines.detection import deformable_layout, weights
from pipelines.detection.config import PRESETS
from pipelines.detection.deformable import DeformableDetr
from pipelines.detection.detr import Detr
from tests.detection.lively import enliven

KEYS = catalogue.WEIGHTS / "keys"
PUBLISHED = [  # key list, preset, keys
    ("detr-resnet-50", "detr-resnet-50", 534),
    ("detr-resnet-50-no-timm", "detr-resnet-50", 530),
    ("detr-resnet-101", "detr-resnet-101", 789),
    ("detr-resnet-50-dc5", "detr-resnet-50-dc5", 534),
    ("detr-resnet-50-panoptic", "detr-resnet-50-panoptic", 566),
    ("detr-r50", "detr-resnet-50", 458),
    ("detr-r101", "detr-resnet-101", 713),
    ("detr-r50-dc5", "detr-resnet-50-dc5", 458),
    ("detr-r50-panoptic", "detr-resnet-50-panoptic", 490),
]


def published(name):
    shapes = json.loads((KEYS / f"{name}.json").read_text(encoding="utf-8"))
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def on_meta(preset):
    with torch.device("meta"):
        return weights.build(PRESETS[preset])


# --- DETR ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "preset", "count"), PUBLISHED)
def test_published_keys_load_at_real_size(name, preset, count):
    state, network = published(name), on_meta(preset)
    assert len(state) == count
    layout = weights.layout_of(state)
    assert layout == ("authors" if name.startswith("detr-r50") or name == "detr-r101" else "transformers")
    weights.assign(network, state, weights.keymap(PRESETS[preset], layout))
    tensors = {"detr-resnet-101": 785, "detr-resnet-50-panoptic": 562}.get(preset, 530)
    assert len(network.state_dict()) == tensors and all(t.is_meta for t in network.state_dict().values())


def test_the_tables_take_each_tensor_to_its_place():
    """Names by hand, a few of each part: shapes alone would not tell a query from a key, or norm1 from norm2."""
    by_hand = {
        "authors": {
            "detr.transformer.decoder.layers.2.multihead_attn.out_proj.bias": "decoder.2.cross_attention.out.bias",
            "detr.transformer.decoder.layers.2.norm3.weight": "decoder.2.norm3.weight",
            "detr.transformer.decoder.norm.weight": "norm.weight",
            "detr.backbone.0.body.layer1.0.downsample.1.bias": "backbone.layer1.0.downsample.1.bias",
            "bbox_attention.k_linear.weight": "mask_attention.key.weight",
            "mask_head.gn5.weight": "mask_head.norms.4.weight",
        },
        "transformers": {
            "model.decoder.layers.5.encoder_attn.k_proj.bias": "decoder.5.cross_attention.key.bias",
            "model.decoder.layers.5.encoder_attn.o_proj.bias": "decoder.5.cross_attention.out.bias",
            "model.decoder.layers.0.self_attn.out_proj.bias": "decoder.0.self_attention.out.bias",
            "model.decoder.layers.0.encoder_attn_layer_norm.bias": "decoder.0.norm2.bias",
            "model.decoder.layers.0.final_layer_norm.bias": "decoder.0.norm3.bias",
            "detr.model.encoder.layers.0.final_layer_norm.bias": "encoder.0.norm2.bias",
            "model.encoder.layers.0.fc2.bias": "encoder.0.linear2.bias",
            "model.encoder.layers.0.mlp.fc1.bias": "encoder.0.linear1.bias",
            "model.backbone.conv_encoder.model.encoder.stages.3.layers.2.layer.0.convolution.weight":
                "backbone.layer4.2.conv1.weight",
            "model.backbone.model.encoder.stages.0.layers.0.shortcut.normalization.weight":
                "backbone.layer1.0.downsample.1.weight",
            "model.backbone.model.bn1.running_var": "backbone.bn1.running_var",
            "mask_head.fpn_stages.2.refine.norm.bias": "mask_head.norms.4.bias",
            "mask_head.conv1.conv.bias": "mask_head.convs.0.bias",
            "mask_head.lay3.bias": "mask_head.convs.2.bias",
        },
    }  # fmt: skip
    for layout, names in by_hand.items():
        keys = weights.keymap(PRESETS["detr-resnet-50-panoptic"], layout)
        state = {theirs: torch.tensor(float(i)) for i, theirs in enumerate(names)}
        found = keys.apply(state, {ours: torch.empty(()) for ours in names.values()})
        assert {ours: float(value) for ours, value in found.items()} == {
            ours: float(i) for i, ours in enumerate(names.values())
        }


def test_the_authors_one_matrix_is_query_key_and_value():
    state = {"transformer.encoder.layers.0.self_attn.in_proj_bias": torch.arange(6.0)}
    expected = {f"encoder.0.self_attention.{name}.bias": torch.empty(2) for name in ("query", "key", "value")}
    found = weights.authors_keys().apply(state, expected)
    assert [found[key].tolist() for key in expected] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("model.decoder.layers.3.fc1.bias"), r"missing: decoder\.3\.linear1\.bias"),
        (lambda s: s.update(extra=torch.empty(1)), "not used: extra"),
        (lambda s: s.update({"model.input_projection.bias": torch.empty(3)}), r"shape: projection\.bias"),
        (lambda s: s.update({"model.encoder.layers.0.mlp.fc1.bias": torch.empty(3)}), "twice"),
    ],
)
def test_every_key_must_fit(spoil, message):
    state = published("detr-resnet-50")
    spoil(state)
    with pytest.raises(ConversionError, match=message):
        weights.assign(on_meta("detr-resnet-50"), state, weights.transformers_keys())


def test_a_network_without_a_mask_head_refuses_a_file_with_one():
    with pytest.raises(ConversionError, match=r"not used: mask_head\.out\.weight"):
        weights.assign(on_meta("detr-resnet-50"), published("detr-resnet-50-panoptic"), weights.transformers_keys())
    with pytest.raises(ValueError, match="no layout 'authors'"):
        weights.keymap(PRESETS["voc"], "authors")


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return enliven(Detr(PRESETS["tiny"]))


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "wrapped.pth"])
def test_a_file_loads_whole_and_in_float32(tiny, tmp_path, suffix):
    path, state = tmp_path / f"tiny.{suffix}", {k: v.half() for k, v in tiny.state_dict().items()}
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state} if "wrapped" in suffix else state, path)
    found = weights.load("tiny", path)
    assert isinstance(found, Detr) and not found.training
    assert all(torch.equal(found.state_dict()[key], value.float()) for key, value in state.items())
    tensors = [*found.parameters(), *found.buffers()]
    assert not any(t.is_meta or t.requires_grad for t in tensors) and {t.dtype for t in tensors} == {torch.float32}


def test_a_file_with_python_objects_is_refused(tiny, tmp_path):
    # As the authors' training script saves it: with its arguments.
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": tiny.state_dict(), "args": argparse.Namespace(lr=1e-4)}, path)
    with pytest.raises(UserError, match=r"^checkpoint\.pth holds Python objects besides tensors.*convert it"):
        weights.load("tiny", path)


@pytest.mark.parametrize(
    "content", [{"model": {"a": 1}}, {"state": {"a": torch.ones(1)}}, [torch.ones(1)], {"a": "text"}, 3]
)
def test_a_file_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth is no file of weights"):
        weights.load("tiny", tmp_path / "other.pth")


@pytest.mark.parametrize("length", [0, 5, 1000, -1])
def test_a_damaged_file_is_refused(tiny, tmp_path, length):
    path = tmp_path / "cut.safetensors"
    save_file(tiny.state_dict(), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"cut\.safetensors is damaged"):
        weights.load("tiny", path)


@pytest.mark.parametrize("preset", ["tiny-panoptic", "detr-resnet-50", "tiny-deformable"])
def test_another_network_is_refused(tiny, tmp_path, preset):
    save_file(tiny.state_dict(), tmp_path / "tiny.safetensors")
    with pytest.raises(UserError, match=r"tiny\.safetensors does not hold the network that is asked for: \d+ keys"):
        weights.load(preset, tmp_path / "tiny.safetensors")


# --- Deformable DETR -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deformable():
    torch.manual_seed(0)
    return enliven(DeformableDetr(PRESETS["tiny-deformable"], groups=3))


def test_deformable_detr_goes_out_and_comes_back(deformable, tmp_path):
    config = deformable.config
    state = deformable_layout.to_library(deformable.state_dict(), config)
    assert state["model.query_position_embeddings.weight"].shape == (config.queries, 2 * config.width)
    heads = [key for key in state if key.startswith("model.decoder.bbox_embed.")]
    assert len(heads) == 6 * config.decoder_layers
    save_file(state, tmp_path / "model.safetensors")
    found = weights.load(config, tmp_path / "model.safetensors").state_dict()
    for key, value in deformable.state_dict().items():
        assert torch.equal(found[key], value[: config.queries] if key == "queries" else value), key


def test_box_heads_that_differ_are_refused(deformable, tmp_path):
    state = deformable_layout.to_library(deformable.state_dict(), deformable.config)
    state["model.decoder.bbox_embed.1.layers.2.bias"][1] += 1e-3
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="does not hold the network"):
        weights.load("tiny-deformable", tmp_path / "model.safetensors")


def test_a_deformable_networks_key_that_has_no_name_there_is_refused(deformable):
    with pytest.raises(ConversionError, match="not known: dense"):
        deformable_layout.to_library({"dense": torch.ones(1)}, deformable.config)


def test_a_deformable_network_at_real_size_on_meta():
    with torch.device("meta"):
        network = DeformableDetr(PRESETS["voc"])
        state = deformable_layout.to_library(network.state_dict(), network.config)
    fresh = on_meta("voc")
    weights.assign(fresh, state, weights.keymap(network.config))
    with pytest.raises(ConversionError, match=r"missing: encoder\.0"):
        without = {key: value for key, value in state.items() if ".encoder.layers.0." not in key}
        weights.assign(on_meta("voc"), without, weights.keymap(network.config))
    with pytest.raises(ConversionError, match="not used"):
        smaller = replace(network.config, decoder_layers=1)
        with torch.device("meta"):
            weights.assign(weights.build(smaller), state, weights.keymap(smaller))
