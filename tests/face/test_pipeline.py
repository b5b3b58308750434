"""Requests and results: validation, the two backends behind one door, and real photos end to end."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.common import backends
from pipelines.common.errors import UserError
from pipelines.face import CascadeOptions, FaceRequest, compare, run
from pipelines.face import local as local_module
from tests.stubs import stub_load

PHOTOS = Path(__file__).resolve().parents[2] / "assets" / "examples" / "face"


def photo(name):
    return np.asarray(Image.open(PHOTOS / name).convert("RGB"))


@pytest.fixture
def stubbed(monkeypatch):
    """No weights: a stub detector that finds `count` faces, and a stub embedder."""

    def use(count):
        monkeypatch.setattr(local_module, "load", stub_load(count))
        fresh = backends.Backends(10**9)
        monkeypatch.setattr(backends, "shared", lambda: fresh)

    return use


GREY = np.full((60, 400, 3), 120, np.uint8)


def test_zero_one_and_many_faces(stubbed):
    for count in (0, 1, 6):
        stubbed(count)
        result = run(FaceRequest(GREY))
        assert len(result.faces) == count and result.weights == "dlib" and result.detector == "mtcnn"
        for face in result.faces:
            assert face.chip.shape == (150, 150, 3) and face.chip.dtype == np.uint8
            assert face.embedding.dtype == np.float32 and abs(np.linalg.norm(face.embedding) - 1) < 1e-5


def test_more_faces_than_the_limit_are_said_not_cut_in_silence(stubbed):
    stubbed(300)
    result = run(FaceRequest(GREY, embed=False))
    assert len(result.faces) == 256 and "300 faces" in result.notes[0] and "256" in result.notes[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": GREY[..., 0]}, "array of shape"),
        ({"weights": "nonsense"}, "no weights called"),
        ({"weights": "mtcnn"}, "no weights called"),  # a detector describes nobody
        ({"weights": "facenet-casia"}, "not on this machine"),
        ({"backend": "somebody"}, "no implementation called"),
        ({"cascade": CascadeOptions(thresholds=(0.6, 0.7, 1.1))}, "between 0 and 1"),
        ({"cascade": CascadeOptions(thresholds=(float("nan"), 0.7, 0.7))}, "between 0 and 1"),
        ({"cascade": CascadeOptions(thresholds=(None, 0.7, 0.7))}, "between 0 and 1"),
        ({"cascade": CascadeOptions(min_face=4)}, "smallest face"),
        ({"cascade": CascadeOptions(factor=0.99)}, "pyramid factor"),
        ({"normalise": ("beauty",)}, "no normalisation"),
    ],
)
def test_requests_that_cannot_be_served_say_why(stubbed, change, words, monkeypatch, tmp_path):
    monkeypatch.setenv("GLASSHOUSE_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    stubbed(1)
    with pytest.raises(UserError, match=words):
        run(replace(FaceRequest(GREY), **change))


def test_real_photos_end_to_end():
    one, two, other = (run(FaceRequest(photo(name))).faces[0] for name in ("obama.jpg", "obama2.jpg", "biden.jpg"))
    assert np.allclose(one.box, [367, 79, 616, 428], atol=1.5) and one.score > 0.999
    same, different = compare(one.embedding, two.embedding, "dlib"), compare(one.embedding, other.embedding, "dlib")
    assert same.same and not different.same
    assert same.similarity == pytest.approx(0.963, abs=0.01)
    assert different.similarity < same.threshold - 0.02
    assert one.pose.yaw > two.pose.yaw + 10  # in the second photo he looks to the left of the picture


def test_normalisation_and_flip_average_change_the_embedding_but_not_the_person():
    plain = run(FaceRequest(photo("hopper.jpg"))).faces[0].embedding
    for options in ({"normalise": ("clahe",)}, {"flip_average": True}):
        changed = run(FaceRequest(photo("hopper.jpg"), **options)).faces[0].embedding
        assert 0.95 < float(plain @ changed) < 0.99999


@pytest.mark.parametrize("name", ["group.jpg", "biden.jpg"])
def test_both_implementations_agree(name):
    if "dlib" not in sys.modules:
        pytest.importorskip("dlib")
    ours, theirs = (run(FaceRequest(photo(name), backend=backend)) for backend in ("local", "reference"))
    assert len(ours.faces) == len(theirs.faces) >= 1
    for a, b in zip(ours.faces, theirs.faces, strict=True):
        assert np.abs(a.box - b.box).max() < 0.5 and np.abs(a.landmarks - b.landmarks).max() < 0.5
        assert abs(a.score - b.score) < 1e-3
        assert np.abs(a.embedding - b.embedding).max() < 1e-3


def test_the_channel_order_matters_and_is_rgb():
    """A face painted blue must not be described as the same face in its own colours."""
    image = photo("astronaut.jpg")
    right, swapped = run(FaceRequest(image)).faces[0], run(FaceRequest(image[..., ::-1])).faces
    assert swapped and 1 - float(right.embedding @ swapped[0].embedding) > 0.003


def test_pure_red_has_no_face():
    red = np.zeros((200, 200, 3), np.uint8)
    red[..., 0] = 255
    assert run(FaceRequest(red)).faces == ()


def test_compare_refuses_embeddings_that_do_not_belong_together():
    strange = [
        (np.ones(128), np.ones(512)),
        (np.ones(512), np.ones(512)),
        (None, np.ones(128)),
        (np.ones((1, 128)),) * 2,
    ]
    for a, b in strange:
        with pytest.raises(UserError, match="same weights"):
            compare(a, b, "dlib")
