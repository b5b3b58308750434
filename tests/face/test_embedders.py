"""Chips to unit embeddings: ours against the libraries', and similarities of known people pinned."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.common import catalogue, checkpoint
from pipelines.common.errors import UserError
from pipelines.face import align, embedders
from pipelines.face.config import PRESETS
from pipelines.face.embedders import LocalEmbedder, ReferenceEmbedder
from pipelines.face.inception_resnet import InceptionResnetV1

EXAMPLES = Path(__file__).resolve().parents[2] / "assets" / "examples" / "face"
FIXTURE = Path(__file__).parent / "fixtures" / "dlib_descriptors.npz"
DLIB = catalogue.manifest()["dlib"]
# Points that MTCNN finds (eyes, nose, mouth corners), written down so that this file does not test the detector.
LANDMARKS = {
    "astronaut": [[204.7, 101.0], [247.2, 103.1], [224.7, 129.1], [202.1, 139.3], [245.1, 142.0]],
    "hopper": [[221.7, 192.2], [309.8, 186.1], [269.4, 239.2], [232.7, 279.6], [306.6, 275.9]],
    "obama": [[445.3, 214.7], [551.7, 214.2], [497.7, 277.7], [435.6, 324.8], [557.1, 320.5]],
    "obama2": [[251.4, 364.0], [374.9, 382.0], [285.2, 447.0], [247.4, 521.7], [351.0, 528.7]],
    "biden": [[535.2, 319.3], [655.4, 344.9], [597.8, 407.1], [518.9, 461.9], [625.0, 480.3]],
}


@pytest.fixture(scope="module")
def embedder():
    return LocalEmbedder.load(DLIB)


@pytest.fixture(scope="module")
def people():
    cut = []
    for name, points in LANDMARKS.items():
        # As stored, not through the one door for pixels, which makes the largest of them smaller.
        image = np.asarray(Image.open(EXAMPLES / f"{name}.jpg").convert("RGB"))
        cut.append(align.chips("dlib_resnet", image, np.zeros((1, 4)), np.array([points]))[0])
    return np.stack(cut)


@pytest.mark.parametrize(
    ("flip", "same", "others"),
    [
        (False, 0.963, [0.882, 0.810, 0.820, 0.832, 0.837, 0.822, 0.813, 0.815, 0.847]),
        (True, 0.966, [0.890, 0.818, 0.826, 0.839, 0.840, 0.829, 0.818, 0.810, 0.840]),
    ],
)
def test_similarities_of_known_people(embedder, people, flip, same, others):
    vectors = embedder.embed(people, flip)
    similarity = vectors @ vectors.T
    names = list(LANDMARKS)
    first, second = names.index("obama"), names.index("obama2")
    assert similarity[first, second] == pytest.approx(same, abs=0.004)
    pairs = [(i, j) for i in range(5) for j in range(i + 1, 5) if (i, j) != (first, second)]
    assert [similarity[pair] for pair in pairs] == pytest.approx(others, abs=0.004)


def test_unit_length_batches_and_none(embedder, people, monkeypatch):
    assert (embedder.side, embedder.dimension, embedder.backend, embedder.entry) == (150, 128, "local", DLIB)
    vectors = embedder.embed(people)
    assert vectors.shape == (5, 128) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    monkeypatch.setattr(embedders, "BATCH", 2)
    np.testing.assert_allclose(embedder.embed(list(people)), vectors, atol=1e-6)
    for flip in (False, True):
        none = embedder.embed(people[:0], flip)
        assert none.shape == (0, 128) and none.dtype == np.float32
    assert embedder.embed([]).shape == (0, 128)


def test_batches_are_bounded(embedder, monkeypatch):
    seen = []
    monkeypatch.setattr(embedder, "_describe", lambda chips: seen.append(len(chips)) or np.ones((len(chips), 128)))
    embedder.embed(np.zeros((70, 150, 150, 3), np.uint8))
    assert seen == [32, 32, 6]


def test_flip_average_cannot_tell_left_from_right(embedder, people):
    mirrored = people[:, :, ::-1]
    np.testing.assert_allclose(embedder.embed(people, True), embedder.embed(mirrored, True), atol=1e-5)
    assert np.abs(embedder.embed(people) - embedder.embed(mirrored)).max() > 1e-3


def test_red_is_the_first_channel(embedder):
    with np.load(FIXTURE) as stored:
        wanted = stored["descriptors"][2] / np.linalg.norm(stored["descriptors"][2])
    red = np.zeros((1, 150, 150, 3), np.uint8)
    red[..., 0] = 255
    assert np.abs(embedder.embed(red)[0] - wanted).max() <= 1e-5
    assert np.abs(embedder.embed(red[..., ::-1])[0] - wanted).max() > 0.02


@pytest.mark.parametrize(
    "chips", [np.zeros((1, 160, 160, 3), np.uint8), np.zeros((1, 150, 150, 3), np.float32), np.zeros((150, 150, 3))]
)
def test_other_chips_are_refused(embedder, chips):
    with pytest.raises(ValueError, match="chips are"):
        embedder.embed(chips)


def test_reference_dlib(embedder, people):
    pytest.importorskip("dlib", reason="the reference of these weights is dlib: pip install dlib-bin")
    reference = ReferenceEmbedder.load(DLIB)
    assert (reference.side, reference.dimension, reference.backend) == (150, 128, "reference")
    for flip in (False, True):
        assert np.abs(reference.embed(people, flip) - embedder.embed(people, flip)).max() <= 1e-5


def test_without_dlib_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(UserError, match="pip install dlib-bin"):
        ReferenceEmbedder.load(DLIB)


@pytest.fixture
def facenet(tmp_path, monkeypatch):
    """A catalogue entry over a random file in the published layout."""
    torch.manual_seed(0)
    network = InceptionResnetV1(replace(PRESETS["vggface2"], classes=7))
    for norm in (module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.momentum = 1.0
    with torch.no_grad():  # statistics under which pictures get different embeddings
        network.train()(torch.rand(4, 3, 160, 160) * 2 - 1)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    monkeypatch.setattr(checkpoint, "paths", lambda entry: {"model": tmp_path / "model.pt"})
    monkeypatch.setitem(PRESETS, "vggface2", replace(PRESETS["vggface2"], classes=7))
    return catalogue.manifest()["facenet-vggface2"]


def test_reference_facenet_pytorch(facenet):
    pytest.importorskip("facenet_pytorch", reason="the reference of these weights is facenet-pytorch")
    chips = np.random.default_rng(0).integers(0, 256, (3, 160, 160, 3), dtype=np.uint8)
    chips[0] = chips[0] // 4
    chips[1] = (255, 0, 0)
    ours, theirs = LocalEmbedder.load(facenet), ReferenceEmbedder.load(facenet)
    assert (ours.side, ours.dimension, theirs.side, theirs.dimension) == (160, 512, 160, 512)
    found, wanted = ours.embed(chips), theirs.embed(chips)
    assert found.shape == (3, 512)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.abs(found - wanted).max() <= 1e-5
    assert np.abs(found - theirs.embed(chips[..., ::-1])).max() > 1e-3
    assert np.abs(ours.embed(chips, True) - theirs.embed(chips, True)).max() <= 1e-5


def test_a_detector_is_no_embedder():
    with pytest.raises((TypeError, ValueError)):
        LocalEmbedder.load(replace(DLIB, preset="mtcnn"))
