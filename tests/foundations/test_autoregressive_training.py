"""The recipes of the autoregressive models: that they learn, go on after a stop, and write what the page reads."""

import json

import numpy as np
import pytest
import torch

from pipelines.foundations import pixels, train_pixels

rng = np.random.default_rng(0)


@pytest.fixture
def stripes(tmp_path):
    """200 pictures of white columns on black, grey at the edges: easy to learn."""
    images = np.zeros((200, 28, 28), np.uint8)
    for image in images:
        column = rng.integers(4, 22)
        image[:, column : column + 3] = (128, 255, 128)
    for part in ("train", "test"):
        np.savez(tmp_path / f"{part}.npz", images=images)
    return tmp_path


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(train_pixels, "KEPT_BACK", 40)
    small = {name: train_pixels.Recipe(60, 3e-2, 20) for name in pixels.MODELS}
    monkeypatch.setattr(train_pixels, "RECIPES", small)
    tiny = {
        name: pixels.PixelModel(m.kind, m.title, tuple(12 for _ in m.hidden), m.order, min(m.count, 2), m.binarise)
        for name, m in pixels.MODELS.items()
    }
    monkeypatch.setattr(train_pixels, "MODELS", tiny)
    monkeypatch.setattr(pixels, "MODELS", tiny)


@pytest.mark.parametrize("name", ["fvsbn-columns", "nade", "made-32", "orderless"])
def test_it_learns_and_its_file_tells_the_same(name, stripes, short, tmp_path):
    train_pixels.train(name, stripes, tmp_path, 5)
    network = train_pixels.trained(name, tmp_path)
    found = train_pixels.export(name, stripes, tmp_path, tmp_path / "weights")
    assert found["test_nats"] < 400  # 543.4 before
    assert found["test_nats"] == pytest.approx(found["test_nats_float"], rel=0.01)
    assert json.loads((tmp_path / "weights" / f"{name}.json").read_text()) == {**found, "steps": 60}
    before = {key: value.clone() for key, value in network.named_parameters()}
    train_pixels.train(name, stripes, tmp_path, 5)  # it is done: nothing changes
    assert all((value == before[key]).all() for key, value in train_pixels.trained(name, tmp_path).named_parameters())


def test_a_lost_run_goes_on_from_its_export(stripes, short, tmp_path):
    train_pixels.train("made-32", stripes, tmp_path, 5)
    exported, fresh = tmp_path / "weights", tmp_path / "fresh"
    train_pixels.export("made-32", stripes, tmp_path, exported)
    fresh.mkdir()
    train_pixels.train("made-32", stripes, fresh, 0, exported)
    network, other = train_pixels.trained("made-32", fresh), train_pixels.trained("made-32", tmp_path)
    found, wanted = (train_pixels.test_nats("made-32", each, stripes) for each in (network, other))
    assert found == pytest.approx(wanted, rel=0.01) and found < 400


def test_test_pictures_are_drawn_once(stripes):
    images = train_pixels.pictures(stripes, "test")
    assert images.shape == (200, 784) and images.dtype == np.uint8
    network = pixels.build(pixels.MODELS["fvsbn"])
    assert train_pixels.mean_nats(network, images > 0) == pytest.approx(784 * np.log(2), rel=1e-6)
    with torch.no_grad():
        network.bias.fill_(-2.0)
    first, again = (train_pixels.test_nats("fvsbn", network, stripes) for _ in range(2))
    white = (2 * 128 / 255 + 1) * 28  # expected white pixels of a stripe
    expected = white * np.log(1 + np.exp(2)) + (784 - white) * np.log(1 + np.exp(-2))
    assert first == again == pytest.approx(expected, rel=0.01)


def test_the_recipe_of_a_kind_is_that_of_all_its_models_without_their_own():
    assert train_pixels.recipe("nade-threshold") == train_pixels.RECIPES["nade"]
    assert train_pixels.recipe("fvsbn-spiral").steps < train_pixels.recipe("fvsbn").steps
    assert train_pixels.recipe("made-32") != train_pixels.recipe("made")
