"""Both backends over one file and one picture: the same answer, and sentences where the library cannot follow."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.common.catalogue import Entry, File, entries
from pipelines.common.errors import UserError
from pipelines.detection import local, reference, weights
from pipelines.detection.config import PRESETS, InputSize
from pipelines.detection.contract import Ablation
from pipelines.detection.detr import Detr
from tests.detection.lively import enliven
from tests.detection.test_parity import library, native, saved

pytest.importorskip("transformers", reason="the reference is transformers")

SIZE = InputSize(96, 160)


def photo(height, width, seed=0):
    """Colours that change slowly, an edge, and some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (9 + 5 * c) + c) + np.cos(y / (7 + 4 * c)) + (x > width // 2) for c in range(3)]
    return np.clip(np.stack(waves, -1) * 60 + 110 + rng.normal(0, 10, (height, width, 3)), 0, 255).astype(np.uint8)


def entry(path, preset):
    file = File("model", str(path))  # an absolute path stays what it is
    return Entry("it", "detection", "detector", "It", "detr", preset, "bundled", "transformers", "none", (file,))


@pytest.fixture(scope="module")
def panoptic(tmp_path_factory):
    """A tiny network with eight heads (the library's mask head needs a multiple), saved by the library."""
    with pytest.MonkeyPatch.context() as patch:
        config = replace(PRESETS["tiny-panoptic"], heads=8)
        patch.setitem(PRESETS, "tiny-panoptic", config)
        path = saved(library(config, native(config.backbone)), tmp_path_factory.mktemp("panoptic"))
        path.with_name("config.json").unlink()  # only the weights are read
        yield entry(path, "tiny-panoptic")


def difference(a, b):
    return max(float(np.abs(x - y).max()) for x, y in ((a.logits, b.logits), (a.boxes, b.boxes)))


@pytest.mark.parametrize("shape", [(120, 150), (150, 100), (96, 96), (40, 333)])
def test_both_backends_say_the_same(panoptic, shape):
    image = photo(*shape)
    ours, theirs = (module.load(panoptic).predict([image], SIZE)[0] for module in (local, reference))
    assert ours.scoring == theirs.scoring == "softmax"
    assert np.ptp(theirs.logits, axis=0).max() > 0.01
    assert difference(ours, theirs) <= 1e-4 and np.abs(ours.masks - theirs.masks).max() <= 1e-3
    assert ours.masks.dtype == ours.logits.dtype == ours.boxes.dtype == np.float32
    without = reference.load(panoptic).predict([image], SIZE, masks=False)[0]
    assert without.masks is None and difference(without, theirs) <= 1e-5


def test_a_picture_does_not_depend_on_those_beside_it(panoptic):
    images = [photo(120, 150), photo(90, 200, 1), photo(130, 130, 2)]
    for module in (local, reference):
        backend = module.load(panoptic)
        for image, found in zip(images, backend.predict(images, SIZE), strict=True):
            assert difference(found, backend.predict([image], SIZE)[0]) <= 1e-6
        assert backend.predict([], SIZE) == []


def test_colours_are_in_the_same_order(panoptic):
    red = np.zeros((100, 100, 3), np.uint8)
    red[..., 0] = 255
    ours, theirs = (module.load(panoptic).predict([red], SIZE)[0] for module in (local, reference))
    blue = local.load(panoptic).predict([red[..., ::-1]], SIZE)[0]
    assert difference(ours, theirs) <= 1e-4 < 1e-3 < difference(blue, theirs)


def test_the_local_backend_traces_and_takes_out(panoptic):
    backend, image = local.load(panoptic), photo(120, 150)
    plain, trace = backend.predict([image], SIZE, masks=False)[0], backend.trace(image, SIZE)
    assert plain.masks is None and trace.size == (96, 120)
    assert trace.logits.shape == (3, 7, 6) and trace.boxes.shape == (3, 7, 4)
    assert trace.self_attention.shape == (3, 8, 7, 7) and trace.cross_attention.shape == (3, 8, 7, 3, 4)
    assert np.abs(trace.logits[-1] - plain.logits).max() <= 1e-4
    assert np.allclose(trace.cross_attention.sum((-1, -2)), 1, atol=1e-5)
    alone = Ablation(self_attention=False)
    found = backend.predict([image], SIZE, ablation=alone)[0]
    assert difference(found, plain) > 1e-3
    assert len(backend.trace(image, SIZE, alone).self_attention) == 0


def test_reduced_precision_is_near(panoptic, monkeypatch):
    from pipelines.common.device import Device

    def pick(reduced=False, integers=False):
        return Device("cpu", "bfloat16" if reduced else "float32", "for the test")

    monkeypatch.setattr(local.forms, "pick", pick)
    backend, image = local.load(panoptic), photo(120, 150)
    full, reduced = (backend.predict([image], SIZE, precision=p)[0] for p in ("float32", "reduced"))
    assert backend.network("reduced") is backend.network("reduced") is not backend.network()
    assert next(backend.network("reduced").parameters()).dtype == torch.bfloat16
    assert 0 < difference(full, reduced) < 0.5 and reduced.logits.dtype == np.float32


def test_a_deformable_network_has_one_precision():
    network = local.LocalDetector(weights.build(PRESETS["tiny-deformable"]), PRESETS["tiny-deformable"])
    assert network.network("reduced") is network.network()


def test_what_the_reference_cannot_do_is_said(panoptic):
    backend, image = reference.load(panoptic), photo(50, 50)
    for asked in (
        lambda: backend.predict([image], SIZE, ablation=Ablation(encoder=False)),
        lambda: backend.predict([image], SIZE, precision="reduced"),
        lambda: backend.trace(image, SIZE),
    ):
        with pytest.raises(UserError, match="choose local"):
            asked()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("mask_head.lay1.bias"), "does not hold the network that is asked for: 1 keys"),
        (lambda s: s.update(extra=torch.ones(1)), "does not hold the network that is asked for: 1 keys"),
        (lambda s: s.update({"mask_head.lay1.bias": torch.ones(3)}), "cannot load"),
    ],
)
def test_the_reference_refuses_a_file_that_does_not_fit(panoptic, tmp_path, spoil, message):
    state = load_file(panoptic.files[0].path)
    spoil(state)
    save_file(state, tmp_path / "spoilt.safetensors")
    with pytest.raises(UserError, match=message):
        reference.load(entry(tmp_path / "spoilt.safetensors", "tiny-panoptic"))


def test_without_the_library_it_is_said(panoptic, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="transformers is not installed here; choose local"):
        reference.load(panoptic)


def test_the_reference_refuses_other_layouts(tmp_path):
    save_file(enliven(Detr(PRESETS["tiny"])).state_dict(), tmp_path / "own.safetensors")
    with pytest.raises(UserError, match=r"cannot read the layout of own\.safetensors; choose local"):
        reference.load(entry(tmp_path / "own.safetensors", "tiny"))


@pytest.mark.parametrize(("preset", "native_names"), [("detr-resnet-50", True), ("detr-resnet-50-dc5", False)])
def test_the_librarys_sizes_are_ours(preset, native_names, tmp_path):
    state = {"model.backbone.conv_encoder.model.embedder.embedder.convolution.weight": 0} if native_names else {}
    found = reference.library_config(PRESETS[preset], tmp_path / "model.safetensors", state)
    assert (found.num_labels, found.num_queries, found.d_model, found.decoder_layers) == (91, 100, 256, 6)
    assert found.backbone_config.model_type == ("resnet" if native_names else "timm_backbone")
    assert getattr(found.backbone_config, "output_stride", None) == (None if native_names else 16)


def test_networks_that_the_library_does_not_have_are_refused(tmp_path):
    native_names = {"model.backbone.conv_encoder.model.embedder.embedder.convolution.weight": 0}
    with pytest.raises(UserError, match="dilates only backbones of timm"):
        reference.library_config(PRESETS["detr-resnet-50-dc5"], tmp_path / "model.safetensors", native_names)
    with pytest.raises(UserError, match="timm has no backbone of these sizes"):
        reference.library_config(PRESETS["tiny"], tmp_path / "model.safetensors", {})
    with pytest.raises(UserError, match=r"no config\.json"):
        reference.library_config(PRESETS["voc"], tmp_path / "model.safetensors", {})


# --- the catalogue ---------------------------------------------------------------------------------------------------


def test_the_published_entries():
    published = [e for e in entries("detection", "detector") if e.source == "hub"]
    ids = ["detr-resnet-50-dc5", "detr-resnet-101", "detr-resnet-50", "detr-resnet-50-panoptic"]
    assert sorted(e.id for e in published) == sorted(ids)
    for e in published:
        assert e.origin == f"facebook/{e.id}" and e.preset == e.id and e.architecture == "detr"
        assert [file.name for file in e.files] == ["model"]
        assert e.facts["trained_on"] and e.facts["score"] and e.facts["megabytes"] > 150
        with torch.device("meta"):
            network = weights.build(PRESETS[e.preset])
        count = sum(t.numel() for t in network.state_dict().values())
        assert e.facts["megabytes"] == pytest.approx(count * 4 / 1e6, rel=0.01)


def test_the_bundled_model_answers_the_same_in_both():
    bundled = next(e for e in entries("detection", "detector") if e.source == "bundled")
    size, image = PRESETS[bundled.preset].input, photo(300, 420)
    ours, theirs = (module.load(bundled).predict([image], size)[0] for module in (local, reference))
    assert ours.scoring == theirs.scoring == "sigmoid" and np.ptp(theirs.boxes) > 0.1
    assert difference(ours, theirs) <= 1e-3
